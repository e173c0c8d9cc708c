"""The command line, run in this process on tiny data."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas
import pytest
from scipy.special import logsumexp
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae.cli import _figures, _methods, _page, main
from skvae.cli._data import Prepared, choose_likelihood
from skvae.cli._methods import Result
from skvae.cli._terminal import plain_table, print_table
from skvae.probes import mlp_probe

ROOT = Path(__file__).parents[1]
ESTIMATORS = [cls.__name__ for cls in skvae.all_estimators()]
# A comparison is at one number of latents, which a flow cannot choose.
COMPARED = [name for name in ESTIMATORS if name != "iFlow"]
WITH_LABELS = {"iVAE", "IdentifiableVAE"}
SMALL = ["--max-iter", "4", "--width", "16", "-k", "3"]


def run(*argv):
    """Exit code, standard output and standard error of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, argv)))
    return code, out.getvalue(), err.getvalue()


def ran(*argv):
    """Standard output and standard error of a command that must succeed."""
    code, out, err = run(*argv)
    assert code == 0, err
    return out, err


def read_table(text):
    """The first table of an output: a dict of dicts, without the marks of the best."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if re.fullmatch("-{10,}", line))
    # Columns are separated by two spaces at least, or by the mark of a best value.
    headers = re.split(r" {2,}", lines[rule - 1].strip())
    rows = {}
    for line in lines[rule + 1 :]:
        if not line.strip():
            break
        name, *values = re.split(r" {2,}|\* *", line.strip())
        rows[name] = dict(zip(headers[1:], values, strict=False))
    return rows


@pytest.fixture(scope="module")
def arrays():
    """Digits with a test part, as grey levels of eight bits."""
    X, y = load_digits(return_X_y=True)
    X = (X * (255 / 16)).astype(np.uint8)
    return {
        "X_train": X[:150],
        "y_train": y[:150],
        "X_test": X[150:230],
        "y_test": y[150:230],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("data")
    np.savez(path / "digits.npz", **arrays)
    iris = load_iris(as_frame=True)
    frame = iris.data.copy()
    frame.columns = ["sepal length", "sepal width", "petal length", "petal width"]
    frame["kind"] = iris.target_names[iris.target]
    frame.to_csv(path / "iris.csv", index=False)
    frame.to_parquet(path / "iris.parquet")
    np.save(path / "plain.npy", frame.drop(columns="kind").to_numpy())
    return path


@pytest.fixture(scope="module")
def compared(folder):
    """Output and page of one comparison of everything."""
    before = dict(matplotlib.rcParams)
    page = folder / "page.html"
    out, err = ran("compare", "--data", folder / "digits.npz", *SMALL, "-o", page)
    assert dict(matplotlib.rcParams) == before
    return out, err, page.read_text("utf-8")


# compare: the table


def test_every_method_has_a_row_in_the_table(compared):
    rows = read_table(compared[0])
    assert [name.rstrip("+") for name in rows] == [
        "raw X",
        "PCA",
        "FactorAnalysis",
        *COMPARED,
    ]
    assert {name.rstrip("+") for name in rows if name.endswith("+")} == WITH_LABELS
    for name in COMPARED:
        row = rows.get(name) or rows[name + "+"]
        assert re.fullmatch(r"[0-3]/3", row["active"])
        assert float(row["KL"]) >= 0
        assert float(row["MI (<4.4)"]) <= np.log(80)
        assert (row["slope"] != "-") == (
            name in {"LIDVAE", "LIDMVAE", "IdentifiableVAE"}
        )
    # The likelihood is not Gaussian: linear models have no density to compare.
    assert rows["PCA"]["log p(x)"] == rows["PCA"]["KL"] == "-"


@pytest.fixture(scope="module")
def parameters():
    return {
        "n_components": 3,
        "max_iter": 4,
        "width": 16,
        "batch_size": 16,
        "likelihood": "bernoulli",
        "random_state": 0,
    }


@pytest.fixture
def unit(arrays):
    return {name: arrays[name] / np.float32(255) for name in ("X_train", "X_test")}


def linear_probe(Z, Z_test, arrays):
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    score = probe.fit(Z, arrays["y_train"]).score(Z_test, arrays["y_test"])
    return f"{100 * score:.1f}%"


def test_probe_of_a_baseline_is_what_it_says(compared, arrays):
    X, X_test = arrays["X_train"] / 255, arrays["X_test"] / 255
    pca = PCA(3, random_state=0).fit(X)
    score = linear_probe(pca.transform(X), pca.transform(X_test), arrays)
    assert read_table(compared[0])["PCA"]["probe"] == score


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_probe_reads_latents_that_saw_no_labels(compared, unit, arrays, parameters):
    model = skvae.iVAE(**parameters).fit(unit["X_train"], arrays["y_train"])
    Z, Z_test = model.transform(unit["X_train"]), model.transform(unit["X_test"])
    found = read_table(compared[0])["iVAE+"]["probe"]
    assert found == linear_probe(Z, Z_test, arrays)
    told = model.transform(unit["X_train"], u=arrays["y_train"])
    assert found != linear_probe(told, Z_test, arrays)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_row_of_an_estimator_is_what_it_says(compared, unit, parameters):
    vae = skvae.VAE(**parameters).fit(unit["X_train"])
    row = read_table(compared[0])["VAE"]
    assert row["log p(x)"] == f"{vae.score(unit['X_test']):.2f}"
    assert row["KL"] == f"{vae.kl_per_component_.sum():.2f}"
    mean, std = vae.posterior(unit["X_test"])
    assert row["active"] == f"{skvae.metrics.active_units(mean).count}/3"
    information = skvae.metrics.mutual_information(mean, std, random_state=0)
    assert row["MI (<4.4)"] == f"{information.value:.2f}"


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_density_of_a_conditional_model_is_that_without_labels(
    compared, unit, arrays, parameters
):
    model = skvae.iVAE(**parameters).fit(unit["X_train"], arrays["y_train"])
    shown = read_table(compared[0])["iVAE+"]["log p(x)"]
    assert shown == f"{model.score_samples(unit['X_test']).mean():.2f}"
    shares = np.bincount(arrays["y_train"]) / 150
    parts = [
        model.score_samples(unit["X_test"], u=np.full(80, label)) for label in range(10)
    ]
    summed = logsumexp(parts, axis=0, b=shares[:, None]).mean()
    assert float(shown) == pytest.approx(summed, abs=0.1)


def test_labels_of_held_out_rows_reach_the_probes_only(folder, arrays):
    argv = ["--no-page", "--methods", "iVAE,IdentifiableVAE", *SMALL]
    wrong = folder / "wrong.npz"
    np.savez(wrong, **{**arrays, "y_test": (arrays["y_test"] + 1) % 10})
    tables = [
        read_table(ran("compare", "--data", path, *argv)[0])
        for path in (folder / "digits.npz", wrong)
    ]
    for name in ("iVAE+", "IdentifiableVAE+"):
        right, wronged = (table[name] for table in tables)
        assert right["probe"] != wronged["probe"]
        for column in ("active", "KL", "MI (<4.4)", "log p(x)"):
            assert right[column] == wronged[column]


def test_same_seed_same_table(folder):
    argv = ["compare", "--data", folder / "digits.npz", "--no-page", *SMALL]
    argv += ["--methods", "VAE", "--rows", 60, "--max-iter", 30, "--seed"]
    texts = [ran(*argv, seed)[0] for seed in (1, 1, 2)]
    scores = [read_table(text)["VAE"]["log p(x)"] for text in texts]
    assert scores[0] == scores[1] != scores[2]


def test_what_was_chosen_is_said(compared):
    _, err, _ = compared
    assert "150 training and 80 held-out rows, 64 features" in err
    assert "Likelihood bernoulli: X holds grey levels 0 to 255" in err
    assert "divided by 255" in err
    for name in COMPARED:
        assert re.search(rf"^{name}: [\d.]+ s$", err, re.MULTILINE)


def test_collapse_is_a_short_note_and_no_raw_warning(folder):
    argv = ["--no-page", "--methods", "VAE,SkipVAE", *SMALL, "--max-iter", 20]
    argv += ["--set", "beta=100", "--set", "learning_rate=0.03"]
    out, err = ran("compare", "--data", folder / "digits.npz", *argv)
    assert "* Collapsed on training rows: VAE 3 of 3, SkipVAE 3 of 3." in out
    assert "Warning" not in out + err
    assert "foretold 0 of 3 alive" in out


def test_gaussian_data_are_standardised_and_linear_models_compared(folder):
    argv = ["--target", "kind", "--no-page", "--methods", "VAE", *SMALL]
    out, err = ran("compare", "--data", folder / "iris.csv", *argv)
    assert "Likelihood gaussian: X holds real numbers" in err
    assert "standardised" in err
    assert "no estimator here beats a linear model" in out
    # 112 rows of four columns with unit variance: about -1.4 nats per column at most.
    assert -6 < float(read_table(out)["PCA"]["log p(x)"]) < 0


def test_without_labels_there_are_no_probes_and_no_ivae(folder):
    argv = ["--data", folder / "plain.npy", "--no-page", "--methods", "iVAE,VAE"]
    out, err = ran("compare", *argv, *SMALL)
    assert "iVAE is left out" in err
    rows = read_table(out)
    assert list(rows) == ["raw X", "PCA", "FactorAnalysis", "VAE"]
    assert "probe" not in rows["VAE"]
    assert "probe" not in out


def test_labels_can_be_kept_out_of_training(folder):
    argv = ["--no-page", "--without-labels", "--methods", "IdentifiableVAE", *SMALL]
    out, _ = ran("compare", "--data", folder / "digits.npz", *argv)
    rows = read_table(out)
    assert "IdentifiableVAE" in rows
    assert "probe" in rows["IdentifiableVAE"]


def test_quantities_are_probed_by_regression(folder, tmp_path):
    argv = ["--no-page", "--methods", "VAE", *SMALL, "--target", "petal width"]
    frame = pandas.read_csv(folder / "iris.csv").drop(columns="kind")
    frame.to_csv(tmp_path / "numbers.csv", index=False)
    out, _ = ran("compare", "--data", tmp_path / "numbers.csv", *argv)
    assert 0.5 < float(read_table(out)["PCA"]["probe R2"]) <= 1


def test_a_method_that_fails_does_not_stop_the_others(folder):
    argv = ["--data", folder / "plain.npy", "--no-page", *SMALL, "-k", 6]
    out, err = ran("compare", *argv, "--methods", "LIDVAE,VAE")
    assert "LIDVAE failed: Anchored needs n_components <= n_features" in out
    assert read_table(out)["VAE"]["active"].endswith("/6")
    code, out, err = run("compare", *argv, "--methods", "LIDVAE")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("skvae compare: error: No estimator")


X_UNIT = np.linspace(0, 1, 12).reshape(6, 2)


@pytest.mark.parametrize(
    ("X", "image_shape", "expected"),
    [
        (X_UNIT, None, "bernoulli"),
        (np.round(X_UNIT), None, "bernoulli"),
        (np.arange(12.0).reshape(6, 2), None, "poisson"),
        (np.full((6, 4), 255, np.uint8), (2, 2), "bernoulli"),
        (np.full((6, 4), 255, np.uint8), None, "poisson"),
        (X_UNIT - 0.5, None, "gaussian"),
        (X_UNIT * 1.5, None, "gaussian"),
    ],
)
def test_likelihood_follows_the_values(X, image_shape, expected):
    assert choose_likelihood(X, image_shape)[0] == expected


# compare: the page


class Page(HTMLParser):
    """Tags with their attributes, and whether every tag is closed."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_needs_nothing_else(compared):
    page = Page(compared[2])
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png")), (tag, name, value)
    style = re.search(r"<style>(.*?)</style>", compared[2], re.DOTALL).group(1)
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", compared[2]) == []
    addresses = re.findall(r"https?://[^\s\"'<]+", compared[2])
    assert set(addresses) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_page_shows_numbers_pictures_and_origin(compared):
    out, _, text = compared
    page = Page(text)
    words = " ".join(page.text)
    for row in read_table(out).values():
        for value in row.values():
            assert value in words
    alternatives = [a["aria-label"] for _, a in page.tags if a.get("role") == "img"]
    assert len(alternatives) == sum(tag == "svg" for tag, _ in page.tags)
    assert all(len(alternative) > 20 for alternative in alternatives)
    for name in COMPARED:
        # forecast, scatter, traversal
        assert sum(a.startswith(f"{name}: ") for a in alternatives) == 3
    assert any("reconstruct" in a or "decodes" in a for a in alternatives)
    assert sum(tag == "b" for tag, _ in page.tags) >= 2
    for expected in (
        "How to read this",
        f"skvae {skvae.__version__}",
        "skvae compare --data",
        "rough guide",
        "prefers-color-scheme: dark",
    ):
        assert expected in words
    # What the terminal says in sentences stands on the page as well.
    assert all(line in words for line in out.splitlines() if line.startswith("Of 3"))


def test_rows_of_images_are_shown_as_images(tmp_path):
    """Six by five pixels, of which no square can be guessed."""
    X, y = load_digits(return_X_y=True)
    images = X.reshape(-1, 8, 8)[:80, 1:7, 2:7] / 16
    np.savez(tmp_path / "images.npz", X=images, y=y[:80])
    page = tmp_path / "page.html"
    argv = ["--data", tmp_path / "images.npz", "--methods", "VAE,LIDMVAE", *SMALL]
    ran("compare", *argv, "-o", page)
    parsed = Page(page.read_text("utf-8"))
    words = " ".join(parsed.text)
    assert "Held-out images and their reconstructions" in words
    assert "New images" in words
    alternatives = [a["aria-label"] for _, a in parsed.tags if a.get("role") == "img"]
    assert "New images, a row for each of VAE, LIDMVAE." in alternatives


def test_images_in_colour_are_shown_and_divided(tmp_path):
    rng = np.random.default_rng(0)
    # Red on the left or blue on the right.
    y = np.arange(80) % 2
    images = rng.integers(0, 40, size=(80, 6, 5, 3), dtype=np.uint8)
    images[y == 0, :, :2, 0] = 255
    images[y == 1, :, 3:, 2] = 255
    np.savez(tmp_path / "colours.npz", X=images, y=y)
    page = tmp_path / "page.html"
    argv = ["--data", tmp_path / "colours.npz", "--methods", "VAE", *SMALL]
    _, err = ran("compare", *argv, "-o", page)
    assert "X holds colours 0 to 255" in err
    parsed = Page(page.read_text("utf-8"))
    words = " ".join(parsed.text)
    assert "Held-out images and their reconstructions" in words
    assert "New images" in words
    flat = images.reshape(80, -1)
    np.save(tmp_path / "flat.npy", flat)
    ran(
        "compare", "--data", tmp_path / "flat.npy", "--image-shape", "6,5,3",
        "--methods", "VAE", *SMALL, "-o", page,
    )  # fmt: skip
    assert "New images" in " ".join(Page(page.read_text("utf-8")).text)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_new_images_are_draws_of_the_models(unit, parameters):
    vae = skvae.VAE(**parameters).fit(unit["X_train"])
    data = Prepared(
        "d", unit["X_train"], unit["X_test"], None, None, "bernoulli", (8, 8)
    )
    result = Result("VAE", estimator=vae)
    drawn = vae.sample(12, random_state=3)
    expected = _figures.labelled_images({"VAE": drawn}, data, "samples")
    assert _figures.sample_picture([result], data, 3) == expected
    assert _figures.sample_picture([result], data, 4) != expected


# compare: t-SNE


def clusters(n=90):
    """Three far clusters in five dimensions, and their numbers."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    centres = 20 * np.eye(5)[:3]
    return centres[y] + rng.standard_normal((n, 5)), y


def test_embedded_rows_keep_their_neighbours():
    Z, y = clusters()
    plane = _figures.embedded(Z, 0)
    assert plane.shape == (90, 2)
    nearest = KNeighborsClassifier(2).fit(plane, y).kneighbors(plane)[1][:, 1]
    np.testing.assert_array_equal(y[nearest], y)
    np.testing.assert_array_equal(_figures.embedded(Z, 0), plane)
    # Collapsed latents vary in nothing; few rows have few neighbours.
    assert np.isfinite(_figures.embedded(np.zeros((20, 3)), 0)).all()
    assert np.isfinite(_figures.embedded(Z[:4], 0)).all()


@pytest.mark.parametrize(
    ("k", "labelled", "by_tsne"), [(3, True, True), (3, False, False), (2, True, False)]
)
def test_latents_are_embedded_where_a_plane_is_not_all(k, labelled, by_tsne):
    Z, y = clusters()
    data = Prepared("d", Z, Z, y, y if labelled else None, "gaussian")
    result = Result("VAE", Z_test=Z[:, :k], n_components=k)
    raw = Result("raw X", Z_test=Z[:, :k])
    assert _figures.is_embedded([raw, result], data) is by_tsne
    shown = [r.name for r, _ in _figures.scatter_pictures([raw, result], data, 0, 1)]
    assert shown == (["raw X", "VAE"] if by_tsne else ["VAE"])
    text = _page.scatter_section([raw, result], data, 0, 1)
    assert ("Distances between clusters" in text) is by_tsne
    assert ("plane of components 0 and 1" in text) is not by_tsne


def test_the_network_is_probed_where_asked(folder, arrays, monkeypatch):
    monkeypatch.setattr(
        "skvae.cli._methods.mlp_probe", lambda **options: mlp_probe((16,), **options)
    )
    argv = ["--no-page", "--methods", "VAE", *SMALL]
    out, _ = ran("compare", "--data", folder / "digits.npz", "--probe", "mlp", *argv)
    X, X_test = arrays["X_train"] / 255, arrays["X_test"] / 255
    pca = PCA(3, random_state=0).fit(X)
    probe = mlp_probe((16,), early_stopping=True, random_state=0)
    score = probe.fit(pca.transform(X), arrays["y_train"]).score(
        pca.transform(X_test), arrays["y_test"]
    )
    assert read_table(out)["PCA"]["MLP"] == f"{100 * score:.1f}%"


@pytest.mark.parametrize("rare", [1, 5])
def test_the_network_holds_rows_out_where_each_class_has_some(rare):
    Z, y = clusters()
    y[:rare] = 9
    data = Prepared("d", Z, Z, y, y, "gaussian")
    network = _methods.probes(data, "mlp")[-1][-1]
    assert network.early_stopping is (rare > 1)
    assert len(_methods.probes(data)) == 2


def test_page_of_a_table_names_its_features(folder, tmp_path):
    page = tmp_path / "page.html"
    argv = ["--data", folder / "iris.parquet", "--target", "kind", *SMALL]
    ran("compare", *argv, "--methods", "VAE", "-o", page)
    text = page.read_text("utf-8")
    assert "petal length" in text
    assert "exact for a linear decoder" in text
    assert "setosa" in text


def test_names_from_the_data_are_escaped(tmp_path):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.standard_normal((60, 3)), columns=["<i>", "b", "c"])
    frame["y"] = np.array(["<script>alert(1)</script>", "&"])[np.arange(60) % 2]
    frame.to_csv(tmp_path / "a<b>.csv", index=False)
    page = tmp_path / "page.html"
    argv = ["--data", tmp_path / "a<b>.csv", "--target", "y", *SMALL]
    ran("compare", *argv, "--methods", "VAE", "-o", page)
    assert "script" not in {tag for tag, _ in Page(page.read_text("utf-8")).tags}


def test_without_matplotlib_there_is_a_table_and_a_word(folder, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    argv = ["--data", folder / "plain.npy", "--methods", "VAE", *SMALL]
    out, err = ran("compare", *argv, "-o", tmp_path / "page.html")
    assert "VAE" in read_table(out)
    assert "pip install skvae[plot]" in err
    assert os.listdir(tmp_path) == []


# Interruptions


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["fit", "draw", "write"])
def test_interruption_leaves_the_old_page_and_nothing_else(
    moment, folder, monkeypatch, tmp_path
):
    page = tmp_path / "page.html"
    page.write_text("the old page")
    if moment == "fit":
        monkeypatch.setattr(skvae.VAE, "fit", interrupt)
    elif moment == "draw":
        monkeypatch.setattr("skvae.cli._page.page", interrupt)
    else:
        monkeypatch.setattr(os, "replace", interrupt)
    argv = ["--data", folder / "plain.npy", "--methods", "VAE", *SMALL]
    code, _, err = run("compare", *argv, "-o", page)
    assert code == 130
    assert err.splitlines()[-1] == "skvae: interrupted; nothing was written."
    assert page.read_text() == "the old page"
    assert os.listdir(tmp_path) == ["page.html"]


def test_interrupted_fit_leaves_no_model(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(skvae.VAE, "fit", interrupt)
    argv = ["VAE", folder / "plain.npy", "-o", tmp_path / "m.skvae"]
    code, _, _ = run("fit", *argv)
    assert code == 130
    assert os.listdir(tmp_path) == []


# fit, transform, score


@pytest.fixture(scope="module")
def model(folder):
    """A model of the iris file, its output, and the frame it saw."""
    path = folder / "iris.skvae"
    argv = ["LIDVAE", folder / "iris.csv", "--target", "kind", "--set", "width=16"]
    argv += ["--set", "learning_rate=0.01"]
    argv += ["--n-components", "2", "--max_iter=30", "--beta", "0.5", "-o", path]
    out, err = ran("fit", *argv, "--random-state", "0")
    frame = pandas.read_csv(folder / "iris.csv").drop(columns="kind")
    return path, out, err, frame


def test_fit_takes_parameters_from_the_command_line(model):
    path, out, err, frame = model
    estimator = skvae.load(path)
    assert type(estimator).__name__ == "LIDVAE"
    found = estimator.get_params()
    wanted = {"n_components": 2, "max_iter": 30, "beta": 0.5, "width": 16}
    wanted["learning_rate"] = 0.01
    assert {name: found[name] for name in wanted} == wanted
    expected = skvae.LIDVAE(**wanted, random_state=0).fit(frame)
    np.testing.assert_array_equal(estimator.transform(frame), expected.transform(frame))
    assert f"{expected.kl_per_component_[0]:.3f}" in out
    assert "2 of 2 components active." in out
    assert f"Certificate: |f(z) - f(z')| >= {expected.inverse_lipschitz_:.3g}" in out
    assert "Likelihood gaussian" in err


@pytest.mark.parametrize("suffix", [".npy", ".csv", None])
def test_transform_writes_or_prints_the_latents(model, folder, tmp_path, suffix):
    path, _, _, frame = model
    # The label column is still in the file; the model knows its columns by name.
    argv = ["transform", path, folder / "iris.csv"]
    expected = skvae.load(path).transform(frame)
    if suffix is None:
        out, _ = ran(*argv)
        found = pandas.read_csv(io.StringIO(out))
        assert list(found.columns) == ["lidvae0", "lidvae1"]
    else:
        output = tmp_path / f"latents{suffix}"
        ran(*argv, "-o", output)
        found = np.load(output) if suffix == ".npy" else pandas.read_csv(output)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_score_is_the_mean_with_its_standard_error(model, folder):
    path, _, _, frame = model
    out, _ = ran("score", path, folder / "iris.csv")
    mean, error = re.match(r"(\S+) \+- (\S+) nats per row", out).groups()
    scores = skvae.load(path).score_samples(frame)
    assert float(mean) == pytest.approx(scores.mean(), abs=1e-4)
    expected = scores.std(ddof=1) / np.sqrt(len(scores))
    assert float(error) == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_auxiliary_variable_comes_from_a_column_or_a_file(folder, tmp_path):
    frame = pandas.read_csv(folder / "iris.csv")
    kinds = frame["kind"].to_numpy(dtype=str)
    np.save(tmp_path / "u.npy", kinds)
    common = ["--max-iter", 4, "--width", 16, "--random-state", 0, "-o"]
    argv = ["iVAE", folder / "iris.csv", "--u", "kind", *common]
    ran("fit", *argv, tmp_path / "a.skvae")
    argv = ["iVAE", folder / "plain.npy", "--u-file", tmp_path / "u.npy", *common]
    ran("fit", *argv, tmp_path / "b.skvae")
    X = np.load(folder / "plain.npy")
    by_column, by_file = (skvae.load(tmp_path / f"{name}.skvae") for name in "ab")
    found = by_column.transform(frame.iloc[:, :4], u=kinds)
    np.testing.assert_array_equal(found, by_file.transform(X, u=kinds))
    out, _ = ran("score", tmp_path / "a.skvae", folder / "iris.csv", "--u", "kind")
    expected = by_column.score_samples(frame.iloc[:, :4], u=frame["kind"]).mean()
    assert out.startswith(f"{expected:.4f} ")


def test_images_are_scaled_the_same_in_fit_and_score(folder, arrays, tmp_path):
    path = tmp_path / "m.skvae"
    argv = ["VAE", folder / "digits.npz", "--n-components", 1, "--max-iter", 2]
    _, err = ran("fit", *argv, "--width", 16, "-o", path)
    assert "divided by 255" in err
    out, err = ran("score", path, folder / "digits.npz")
    assert "test part" in err
    X = arrays["X_test"] / np.float32(255)
    assert out.startswith(f"{skvae.load(path).score_samples(X).mean():.4f} ")
    out, _ = ran("score", path, folder / "digits.npz", "--part", "train")
    assert "(150 rows" in out


def test_unequal_scales_are_pointed_out(folder, tmp_path):
    X = np.load(folder / "plain.npy") * [1, 1, 1, 1000]
    np.save(tmp_path / "X.npy", X)
    argv = ["VAE", tmp_path / "X.npy", "--max-iter", 1, "--n-components", 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, err = ran("fit", *argv, "--width", 8, "-o", tmp_path / "m.skvae")
    assert "the large ones will decide what is learned" in err


# forecast, list, help


def test_forecast_prints_what_the_library_computes(folder):
    X = np.load(folder / "plain.npy")
    out, _ = ran("forecast", folder / "plain.npy", "--beta", 2, "-k", 3)
    rows = read_table(out)
    expected = skvae.collapse_forecast(X, beta=2.0, n_components=3)
    for i, kl in enumerate(expected.kl_per_component):
        assert rows[str(i)]["KL in nats"] == f"{kl:.3f}"
        assert rows[str(i)]["lives below beta"] == f"{expected.max_beta(i + 1):.3g}"
        assert (rows[str(i)]["forecast"] == "lives") == (i < expected.n_active)
    assert f"{expected.n_active} of 3 components live" in out
    out, _ = ran("forecast", folder / "plain.npy", "--noise-variance", 0.5, "-k", 3)
    expected = skvae.collapse_forecast(X, noise_variance=0.5, n_components=3)
    assert f"{expected.n_active} of 3 components live" in out
    assert "fixed noise variance 0.5" in out


def test_list_shows_estimators_with_papers_and_parts():
    out, _ = ran("list")
    for name in ESTIMATORS:
        assert re.search(rf"^  {name} +\S.*\n +\S.* (19|20)\d\d", out, re.MULTILINE)
    assert "Kingma, Welling 2014" in out
    for part in ("gaussian", "poisson", "skip", "anchored"):
        assert re.search(rf"^  {part} ", out, re.MULTILINE)
    out, _ = ran("list", "lidvae")
    assert "inverse_lipschitz : float, default=0.3" in out


def test_help_comes_without_the_heavy_imports():
    code = (
        "import sys; from skvae.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'sklearn', 'matplotlib', 'pandas', 'rich', 'numpy'};"
        "print('loaded', sorted(heavy & set(sys.modules)), code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "loaded [] 0"
    for command in ("compare", "fit", "transform", "score", "forecast", "list"):
        assert command in done.stdout


def test_module_runs_as_a_program():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "skvae", "--version"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.strip() == skvae.__version__


# Mistakes


MISTAKES = [
    (["compare", "--data", "nothing.csv"], "There is no file nothing.csv"),
    (["compare", "--data", "data.dat"], "unknown kind of file"),
    (["forecast", "data.txt"], "Text is for the sequence models"),
    (["compare", "--methods", "SkpVAE"], "Did you mean 'SkipVAE'?"),
    (["compare", "--likelihood", "bernouli"], "Did you mean 'bernoulli'?"),
    (["compare", "--n-components", "0"], "invalid positive integer value: '0'"),
    (["compare", "--colour", "red"], "unrecognized arguments: --colour"),
    (["compare", "--set", "bta=1"], "Did you mean 'beta'?"),
    (["compare", "--set", "beta"], "not of the form name=value"),
    (["compare", "--image-shape", "4,4,4"], "invalid image shape value: '4,4,4'"),
    (["compare", "--image-shape", "3,3"], "makes 9 numbers and does not make 64"),
    (["compare", "--probe", "forest"], "invalid choice: 'forest'"),
    (["compare", "--set", "merge=sum", "--methods", "VAE"], "no parameter 'merge'"),
    (["compare", "-o", "no/such/page.html"], "There is no folder"),
    (["compare", "--data", "iris.csv", "--target", "knd"], "Did you mean 'kind'?"),
    (["compare", "--data", "iris.csv"], "Column 'kind' of iris.csv is not numeric"),
    (["compare", "--data", "gaps.csv"], "Column 'b' of gaps.csv holds NaN"),
    (["compare", "--data", "broken.npz"], "broken.npz cannot be read"),
    (["compare", "--data", "odd.npz"], "Expected X_train"),
    (["compare", "--data", "plain.npy", "--target", "y"], "one array without names"),
    (["fit", "VEA", "plain.npy"], "Did you mean 'VAE'?"),
    (["fit", "VAE", "plain.npy", "--betta", "4"], "Did you mean 'beta'?"),
    (["fit", "VAE", "plain.npy", "--beta", "-1"], "'beta' parameter of VAE must be"),
    (["fit", "VAE", "plain.npy", "--beta"], "--beta needs a value"),
    (["fit", "VAE", "iris.csv", "--u", "kind"], "takes no auxiliary variable"),
    (["fit", "iVAE", "plain.npy"], "requires y"),
    (["fit", "VAE", "plain.npy", "--likelihood", "poisson"], "needs counts"),
    (["fit", "VAE"], "the following arguments are required: DATA"),
    (["transform", "nothing.skvae", "plain.npy"], "There is no model file"),
    (["score", "plain.npy", "plain.npy"], "plain.npy"),
    (["forecast", "plain.npy", "--beta", "0"], "beta"),
    (["forecast", "plain.npy", "--likelihood", "x"], "Unknown likelihood 'x'"),
    (["list", "VEA"], "Did you mean 'VAE'?"),
    ([], "the following arguments are required: COMMAND"),
    (["comparee"], "invalid choice: 'comparee'"),
]


@pytest.fixture(scope="module")
def mistaken(folder):
    """A folder with files that are wrong in one way each."""
    frame = pandas.DataFrame({"a": [1.0, 2.0, 3.5], "b": [1.0, np.nan, 0.5]})
    frame.to_csv(folder / "gaps.csv", index=False)
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 not an archive")
    np.savez(folder / "odd.npz", first=np.eye(3), second=np.eye(3))
    for name in ("data.dat", "data.txt"):
        (folder / name).write_text("1 2 3")
    return folder


@pytest.mark.parametrize(("argv", "message"), MISTAKES)
def test_mistakes_are_told_in_one_line(argv, message, mistaken, monkeypatch, tmp_path):
    monkeypatch.chdir(mistaken)
    before = sorted(os.listdir("."))
    code, out, err = run(*argv)
    *chatter, last = err.splitlines()
    assert (code, out) == (2, "")
    assert message in last
    assert last.startswith("skvae")
    assert ": error: " in last
    assert not any("error" in line or "Traceback" in line for line in chatter)
    assert sorted(os.listdir(".")) == before


def test_missing_columns_of_a_model_are_named(model, tmp_path, folder):
    frame = model[3].rename(columns={"petal width": "petal_width"})
    frame.to_csv(tmp_path / "other.csv", index=False)
    code, _, err = run("transform", model[0], tmp_path / "other.csv")
    assert code == 2
    assert "lacks the column 'petal width'" in err
    assert "Did you mean 'petal_width'?" in err


def test_missing_pandas_is_told_with_its_remedy(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    code, _, err = run("forecast", folder / "iris.csv")
    assert code == 2
    assert "pip install skvae[data]" in err


def test_traceback_is_there_for_those_who_ask(folder):
    with pytest.raises(FileNotFoundError):
        run("--traceback", "compare", "--data", folder / "nothing.csv")


def test_mistakes_of_the_program_are_not_hidden(folder, monkeypatch):
    monkeypatch.setattr(skvae.VAE, "fit", lambda *args, **kwargs: {}["bug"])
    with pytest.raises(KeyError):
        run("compare", "--data", folder / "plain.npy", "--methods", "VAE", "--no-page")


# Tables


def test_plain_table_is_aligned_and_marks_the_best():
    text = plain_table(
        ["name", "x"], [["a", "1.0"], ["bc", "10.0"]], emphasised=[(1, 1)]
    )
    assert text.splitlines() == [
        "name     x",
        "-----------",
        "a      1.0",
        "bc    10.0*",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_terminal_table_with_and_without_rich(rich, monkeypatch):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    print_table(["name", "x"], [["[b]a", "1.0"], ["bc", "10.0"]], emphasised=[(1, 1)])
    text = screen.getvalue()
    assert "[b]a" in text
    assert ("10.0*" in text) is not rich
    assert ("─" in text) is rich


def test_processes_side_by_side_find_what_one_finds():
    command = ["compare", "--quick", "--no-page", "--methods", "VAE,LIDVAE,iVAE"]
    command += ["--max-iter", "2", "--rows", "200"]
    tables = [read_table(ran(*command, "--jobs", jobs)[0]) for jobs in (1, 2)]
    for table in tables:
        for row in table.values():
            row.pop("seconds")
    assert [*tables[0]] == [*tables[1]]
    assert {"VAE", "LIDVAE"} < tables[0].keys()
    assert tables[0] == tables[1]
