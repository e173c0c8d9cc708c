"""Tables: every cell once, whatever happens in between, and honest summaries."""

import csv
import gzip
import inspect
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from skvae import VAE, SequenceVAE
from skvae.cli import main
from skvae.metrics import active_units
from skvae.model_selection import _batching
from skvae.reproductions import TABLES, Options, discrete, load_table, recovery, text
from skvae.reproductions._images import images
from skvae.reproductions._measures import held_out_rows, linear_accuracy, usage
from skvae.reproductions._table import Cell, Table, append, read
from skvae.reproductions.mixtures import majority_accuracy
from skvae.reproductions.recovery import PROBLEMS

RESULTS = sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("*.csv"))


def toy(calls, stop_at=None):
    """A table whose measurements are known, and which may be interrupted."""

    def measure(method, seed):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append((method, seed))
        return {"value": 10 * seed + len(method)}

    def cells(options):
        for seed in options.seed_range(3):
            for method in options.chosen(["a", "bb"], options.methods, "method"):
                yield Cell(
                    {"method": method, "seed": seed},
                    lambda m=method, s=seed: measure(m, s),
                )

    return Table(
        "Toy",
        "A protocol.",
        ("method", "seed"),
        {"value": "{:.1f}"},
        cells,
        published={("bb",): {"value": "12"}},
        source="Nowhere.",
    )


def silent(*arguments):
    """Report nothing."""


def test_interrupted_runs_continue_where_they_stopped(tmp_path):
    path, calls = tmp_path / "toy.csv", []
    with pytest.raises(KeyboardInterrupt):
        toy(calls, stop_at=4).run(path, Options(), silent)
    assert len(calls) == 4
    toy(calls).run(path, Options(), silent)
    assert sorted(calls) == [(m, s) for m in ("a", "bb") for s in range(3)]
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["seed"])) for row in rows] == calls
    assert all(float(row["seconds"]) >= 0 and row["torch"] for row in rows)
    toy(calls).run(path, Options(seeds=3), silent)
    assert len(calls) == 6


def test_rendered_medians_and_ranges(tmp_path):
    path = tmp_path / "toy.csv"
    toy([]).run(path, Options(command="a command"), silent)
    text = toy([]).render(path)
    assert "| a | 3 | 11.0 (1.0 to 21.0) |" in text
    assert "| bb | 3 | 12.0 (2.0 to 22.0); published 12 |" in text
    assert "- `a command`" in text


def test_seeds_trained_together_find_what_they_find_alone(tmp_path, monkeypatch):
    sizes, trained = [], _batching.train_together

    def counting(requests):
        sizes.append(len(requests))
        return trained(requests)

    def measure(width, seed):
        X = np.random.default_rng(seed).standard_normal((60, 4))
        vae = VAE(1, width=width, depth=1, max_iter=2, n_init=2, random_state=seed)
        return {"bound": vae.fit(X).best_bound_}

    def cells(options):
        for seed in options.seed_range(3):
            for width in (4, 8):
                key = {"width": width, "seed": seed}
                yield Cell(key, partial(measure, **key))

    monkeypatch.setattr(_batching, "train_together", counting)
    table = Table("Toy", "", ("width", "seed"), {"bound": "{:.1f}"}, cells)
    alone, together = tmp_path / "alone.csv", tmp_path / "together.csv"
    table.run(alone, Options(), silent)
    assert sizes == []
    table.together, reported = True, []
    table.run(together, Options(seeds=1), silent)
    table.run(together, Options(), lambda n, total, key, row: reported.append((n, row)))
    assert sizes == [2, 2]
    assert [n for n, row in reported if row is not None] == [3, 4, 5, 6]

    def bounds(path):
        return {(row["width"], row["seed"]): float(row["bound"]) for row in read(path)}

    assert bounds(together) == pytest.approx(bounds(alone), rel=1e-5)


def test_rows_of_other_columns_are_refused(tmp_path):
    path = tmp_path / "toy.csv"
    append(path, {"method": "a", "seed": 0})
    append(path, {"seed": 1, "method": "b"})
    with pytest.raises(ValueError, match="differs from this version's rows in value"):
        append(path, {"method": "c", "seed": 2, "value": 1})
    assert [row["method"] for row in read(path)] == ["a", "b"]


@pytest.mark.parametrize(
    "path", [p for p in RESULTS if p.stem in TABLES], ids=lambda path: path.stem
)
def test_kept_results_can_be_rendered(path):
    table, rows = load_table(path.stem), read(path)
    assert {*table.keys, *table.columns} <= rows[0].keys()
    assert len({tuple(row[key] for key in table.keys) for row in rows}) == len(rows)
    shown = table.render(path)
    assert all(f"| {row[table.keys[0]]} |" in shown for row in rows)


def test_chosen_seeds_and_methods(tmp_path):
    calls = []
    options = Options(seeds=2, first_seed=5, methods=["bb"])
    toy(calls).run(tmp_path / "toy.csv", options, silent)
    assert calls == [("bb", 5), ("bb", 6)]
    with pytest.raises(ValueError, match=r"Unknown method c\. This table has a, bb"):
        toy(calls).run(tmp_path / "toy.csv", Options(methods=["c"]), silent)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_names_its_cells_uniquely(name):
    table = load_table(name)
    cells = list(table.cells(Options(seeds=2)))
    keys = [tuple(cell.key[k] for k in table.keys) for cell in cells]
    assert len(set(keys)) == len(keys) > 1
    assert table.keys[-1] == "seed"
    known = {key[:-1] for key in keys}
    assert set(table.published) <= known
    assert all(set(value) <= set(table.columns) for value in table.published.values())


def test_unknown_table():
    with pytest.raises(ValueError, match="Unknown table 'nothing'"):
        load_table("nothing")


def test_problems_hold_out_rows_of_every_segment():
    data, held_out = PROBLEMS["n=2, d=4, uncentred"].draw(0)
    assert data.data.shape == (48_000, 4)
    assert set(np.bincount(data.u[held_out])) == {200}
    assert set(np.bincount(data.u[~held_out])) == {1000}
    again, _ = PROBLEMS["n=2, d=4, uncentred"].draw(0)
    np.testing.assert_array_equal(again.data, data.data)


def test_majority_accuracy():
    y = np.array([0, 0, 1, 1, 1, 2])
    assert majority_accuracy(np.zeros(6), y) == 0.5
    assert majority_accuracy(y[::-1], y[::-1]) == 1.0
    assert majority_accuracy(np.array([0, 0, 1, 1, 1, 1]), y) == pytest.approx(5 / 6)


def test_held_out_rows_are_those_of_each_segment():
    u = np.repeat([3, 1, 2], [10, 20, 30])
    held_out = held_out_rows(u, 5, seed=0)
    assert [held_out[u == segment].sum() for segment in (1, 2, 3)] == [5, 5, 5]
    assert (held_out != held_out_rows(u, 5, seed=1)).any()


@pytest.mark.parametrize("module", [recovery, discrete], ids=["recovery", "discrete"])
def test_methods_that_read_u_are_given_it(module):
    def built(name):
        make = module.METHODS[name]
        return make(2, 1) if module is recovery else make(likelihood="gaussian")

    reading = {
        name
        for name in module.METHODS
        if "u" in inspect.signature(built(name).transform).parameters
    }
    assert reading == module.WITH_U
    assert {*recovery.METHODS} >= recovery.OF_SQUARES | recovery.SQUARE


def test_usage_and_probe_in_closed_form():
    mean, std = np.zeros((50, 3)), np.ones((50, 3))
    assert usage(mean, std) == {"kl": 0.0, "mi": 0.0, "active": 0}
    mean[:, 1] = np.where(np.arange(50) % 2, 2.0, -2.0)
    found = usage(mean, std)
    assert (found["kl"], found["active"]) == (2.0, 1)
    y = np.arange(50) % 2
    assert linear_accuracy(mean, y, mean, y) == 1.0
    assert linear_accuracy(mean[:, :1], y, mean[:, :1], y) == 0.5


# ---------------------------------------------------------------------------- images


@pytest.fixture
def image_directory(tmp_path):
    """Tiny images in the local form of the loaders: two classes, two halves."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 120), ("test", 60)):
        y = np.arange(n, dtype=np.uint8) % 2
        ink = np.where(np.arange(784) < 392, y[:, None], 1 - y[:, None])
        arrays[f"X_{part}"] = (ink * rng.integers(100, 255, (n, 1))).astype(np.uint8)
        arrays[f"y_{part}"] = y
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    return tmp_path


def test_images_are_drawn_with_their_grey_levels(image_directory):
    with np.load(image_directory / "mnist.npz") as arrays:
        grey, classes = arrays["X_train"] / 255.0, arrays["y_train"]
    X, y, X_test, _ = images("mnist", image_directory, seed=1)
    assert (X.dtype, X.shape, X_test.shape) == (np.uint8, (120, 784), (60, 784))
    assert set(np.unique(X)) == {0, 1}
    np.testing.assert_array_equal(y, classes)
    assert not X[grey == 0].any()
    error = X[:, :392][y == 1].mean(1) - grey[:, 0][y == 1]
    assert np.abs(error).max() < 4 * 0.5 / np.sqrt(392)
    np.testing.assert_array_equal(images("mnist", image_directory, seed=1)[0], X)
    assert (images("mnist", image_directory, seed=2)[0] != X).any()
    some, labels, *_ = images("mnist", image_directory, 1, (30, 20))
    assert some.shape == (30, 784)
    np.testing.assert_array_equal(some[:, :392].any(1), labels == 1)


def reproduced(table, directory, *options):
    """Rows of a table run from the command line with one seed."""
    output = directory / "results"
    command = ["reproduce", table, "--seeds", "1", "--data-dir", str(directory)]
    assert main([*command, *options, "-o", str(output)]) == 0
    return read(output / f"{table}.csv")


@pytest.mark.usefixtures("capsys")
def test_decoders(image_directory):
    methods = "VAE|LIDVAE, anchored"
    rows = reproduced(
        "decoders",
        image_directory,
        *("--problems", "mnist", "--methods", methods, "--max-iter", "3"),
    )
    assert [row["method"] for row in rows] == methods.split("|")
    for row in rows:
        assert int(row["epochs"]) == 3
        assert float(row["kl"]) > 0
        assert 0 <= float(row["mi_ceiling"]) <= round(np.log(60), 3)
        # Which half holds the ink is the class.
        assert float(row["probe"]) == 1.0
    assert float(rows[0]["inverse_lipschitz"]) == 0.0
    assert float(rows[1]["inverse_lipschitz"]) >= 0.99


@pytest.mark.usefixtures("capsys")
def test_pixelcnn(image_directory):
    rows = reproduced(
        "pixelcnn", image_directory, "--problems", "1 layer", "--max-iter", "1"
    )
    assert [row["method"] for row in rows] == ["VAE", "SkipVAE"]
    assert all(float(row["ll"]) < 0 and row["channels"] == "16" for row in rows)
    assert rows[0]["ll"] != rows[1]["ll"]


# ------------------------------------------------------------------------- documents


def write_documents(path, lines):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


@pytest.fixture
def text_directory(tmp_path):
    """Documents in their local form: the label of a review decides its words."""
    rng = np.random.default_rng(0)
    words = [[f"{tone}-{k}" for k in range(20)] for tone in ("bad", "good")]
    for part, n in (("train10k", 240), ("test", 60)):
        reviews = [
            f"{row % 2}\t{' '.join(rng.choice(words[row % 2], rng.integers(3, 7)))}"
            for row in range(n)
        ]
        write_documents(tmp_path / f"short_yelp_{part}.tsv.gz", reviews)
    for part in ("valid", "test"):
        answers = [" ".join(["what", "_UNK", *["is"] * 60])] * 24
        write_documents(tmp_path / f"yahoo_{part}.txt.gz", answers)
    return tmp_path


def test_documents_are_read_at_even_spacing(tmp_path):
    path = tmp_path / "documents.tsv.gz"
    write_documents(path, [f"{row % 2}\tdocument {row} \u2028 ." for row in range(10)])
    texts, labels = text.read_documents(path, 4)
    assert list(texts) == [f"document {row} \u2028 ." for row in (0, 3, 6, 9)]
    np.testing.assert_array_equal(labels, [0, 1, 0, 1])
    write_documents(path, ["a b", "c"])
    texts, labels = text.read_documents(path, 4)
    assert (list(texts), labels) == (["a b", "c"], None)
    with pytest.raises(OSError, match=r"there is no .*missing\.gz"):
        text.read_documents(tmp_path / "missing.gz", 4)


def test_documents_are_cut_and_their_rare_words_unknown(text_directory):
    X, y, X_test, _, n_tokens = text.documents("yahoo", str(text_directory))
    assert X.shape == X_test.shape == (24, 40)
    assert y is None
    assert n_tokens == 5
    assert (X[:, 1] == 1).all()
    assert not (X == 2).any()


def test_active_units_are_watched_after_each_epoch():
    rng = np.random.default_rng(0)
    X = 3 + (rng.random((100, 10)) < rng.random((100, 1)))
    watched = text.ActiveUnits(X[:50])
    vae = SequenceVAE(1, beta=0.0, width=16, embedding_size=8, max_iter=8)
    vae.set_params(random_state=0, learning_rate=0.01).set_callbacks(watched).fit(X)
    assert len(watched.counts) == 8
    assert watched.counts[0] == 0
    assert watched.counts[-1] == active_units(vae.transform(X[:50])).count == 1


@pytest.mark.usefixtures("capsys")
def test_text(text_directory):
    methods = "language model|LIDSVAE, slope 1"
    rows = reproduced(
        "text",
        text_directory,
        *("--problems", "short_yelp", "--methods", methods, "--max-iter", "4"),
    )
    X, _, X_test, _, n_tokens = text.documents("short_yelp", str(text_directory))
    for row in rows:
        assert int(row["documents"]) == len(X) == 240
        assert int(row["tokens"]) == n_tokens == 43
        per_token = float(row["nll"]) * len(X_test) / (X_test > 0).sum()
        assert float(row["ppl"]) == pytest.approx(np.exp(per_token), rel=1e-3)
        counts = [int(count) for count in row["active_by_epoch"].split()]
        assert len(counts) == 4
        assert int(row["least_active"]) == min(counts)
        assert int(row["active"]) == counts[-1]
    model, injective = rows
    assert model["active"] == "0"
    assert float(model["kl"]) < 0.01 < float(injective["kl"])
    assert float(injective["inverse_lipschitz"]) >= 0.99
    # The words say which label it is.
    assert float(injective["probe"]) > 0.9


@pytest.mark.usefixtures("capsys")
def test_covariates(tmp_path):
    (row,) = reproduced(
        "covariates",
        tmp_path,
        *("--problems", "diagonal", "--methods", "covariate_informed"),
        *("--max-iter", "5"),
    )
    assert float(row["ll"]) < float(row["ll_given_u"])
    assert float(row["probe"]) > 0.8
    assert row["epochs"] == "5"


# ---------------------------------------------------------------------- command line


def test_command_line(tmp_path, capsys, monkeypatch):
    assert main(["reproduce"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in TABLES)
    drawn = []
    monkeypatch.setattr(load_table("pinwheel"), "picture", lambda *a: drawn.append(a))
    command = ["reproduce", "pinwheel", "--seeds", "1", "-o", str(tmp_path)]
    command += ["--methods", "GaussianMixture on X"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "[1/1] GaussianMixture on X" in shown.err
    with (tmp_path / "pinwheel.csv").open() as file:
        (row,) = csv.DictReader(file)
    from sklearn.mixture import GaussianMixture

    from skvae.reproductions.pinwheel import problem

    X, X_held_out, arms = problem(0)
    labels = GaussianMixture(5, n_init=10, random_state=0).fit(X).predict(X_held_out)
    assert float(row["ari"]) == round(adjusted_rand_score(arms, labels), 4)
    assert str(tmp_path) not in row["command"]
    assert "DIRECTORY" in row["command"]
    assert (tmp_path / "pinwheel.md").read_text().strip() in shown.out
    assert len(drawn) == 1
    assert main(["reproduce", "pinwheel", "--methods", "x", "-o", str(tmp_path)]) == 2
    assert "Unknown method x" in capsys.readouterr().err


def test_interruption_is_told(tmp_path, capsys, monkeypatch):
    table = toy([], stop_at=1)
    monkeypatch.setattr("skvae.cli._reproduce.load_table", lambda name: table)
    assert main(["reproduce", "toy", "-o", str(tmp_path)]) == 130
    assert "keeps the rows so far" in capsys.readouterr().err
