"""The identifiability report: its statistics, its findings, its words, its command."""

import contextlib
import dataclasses
import io
import json
import warnings

import numpy as np
import pytest
from scipy.stats import t, ttest_ind
from sklearn.base import clone
from sklearn.decomposition import PCA

import skvae
from skvae.cli import main
from skvae.datasets import make_nonlinear_ica
from skvae.diagnostics import Estimate, IdentifiabilityReport, PermutedNull
from skvae.diagnostics._identifiability import _split
from skvae.diagnostics._intervals import (
    chance_agreement,
    difference,
    mean_correlation,
    variance_given_u,
)
from skvae.diagnostics._restarts import fit_restarts

SMALL = {"width": 32, "depth": 1, "batch_size": 64, "learning_rate": 1e-2}


# Statistics


def test_interval_of_a_mean_is_students():
    values = np.array([0.7, 0.8, 0.75, 0.6])
    found = mean_correlation(values)
    expected = t.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    assert found.value == pytest.approx(values.mean())
    assert found[1:] == pytest.approx(expected)


def test_interval_of_correlations_stays_between_zero_and_one():
    assert mean_correlation([0.99, 0.2]) == Estimate(0.595, 0.0, 1.0)
    assert mean_correlation([0.9]) == Estimate(0.9, 0.0, 1.0)
    assert np.isnan(mean_correlation([])).all()


def test_difference_is_welchs():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=7), rng.normal(1, 3, size=5)
    found = difference(first, second)
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert found[1:] == pytest.approx((expected.low, expected.high))


def test_rows_widen_a_difference():
    first, second = np.array([1.0, 1.1, 0.9]), np.array([0.0, 0.1, -0.1])
    rows = np.random.default_rng(0).normal(1.0, 5.0, size=50)
    narrow, wide = difference(first, second), difference(first, second, rows)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_chance_of_two_components_is_the_angles_mean():
    # |cos| of an angle that is uniform up to 45 degrees.
    chance, bound = chance_agreement(2, 4, np.random.RandomState(0))
    assert chance == pytest.approx(4 / np.pi * np.sin(np.pi / 4), abs=0.015)
    assert chance < bound < 1
    assert chance_agreement(2, 40, np.random.RandomState(0))[1] < bound
    assert chance_agreement(12, 4, np.random.RandomState(0))[0] < 0.75
    assert chance_agreement(1, 4, np.random.RandomState(0)) == (0.0, 0.0)


def test_variance_within_categories_is_unbiased():
    rng = np.random.default_rng(0)
    u = np.repeat(["a", "b", "c", "d"], 2000)
    shift = np.repeat([-5.0, 0.0, 3.0, 9.0], 2000)
    means = np.column_stack([shift + rng.normal(0, 2, 8000), shift])
    within = variance_given_u(means, u, discrete=True)
    np.testing.assert_allclose(within, [4.0, 0.0], rtol=0.1, atol=1e-12)


def test_variance_given_a_continuous_u_is_that_of_the_noise():
    rng = np.random.default_rng(0)
    u = rng.uniform(0, 1, size=(4000, 1))
    noise = rng.normal(0, 0.5, 4000)
    means = np.column_stack([3 * np.sin(6 * u[:, 0]) + noise, np.cos(4 * u[:, 0])])
    within = variance_given_u(means, u, discrete=False)
    np.testing.assert_allclose(within, [0.25, 0.0], rtol=0.1, atol=1e-4)


def test_every_category_is_in_the_training_rows():
    u = np.array([*"aaaaaaaaaaaaaaaaaaaaaa", *"bcdefg"])
    train, test = _split(len(u), u, np.random.RandomState(0))
    assert set(u[train]) == set("abcdefg")
    assert len(test) == 7
    assert sorted([*train, *test]) == list(range(len(u)))


# Restarts


def test_restarts_are_those_of_n_init():
    X, u = make_nonlinear_ica(200, n_segments=4, random_state=0)
    model = skvae.iVAE(2, max_iter=3, **SMALL)
    restarts, best = fit_restarts(model, X, u, 3, seed=5)
    usual = clone(model).set_params(n_init=3, random_state=5).fit(X, u=u)
    np.testing.assert_array_equal(
        restarts[best].transform(X, u=u), usual.transform(X, u=u)
    )
    scores = [restart.score(X, u=u) for restart in restarts]
    assert len(set(scores)) == 3
    # Each replica is a model of its own: the best of one start is that start.
    alone = clone(model).set_params(n_init=1, random_state=5).fit(X, u=u)
    np.testing.assert_allclose(
        restarts[0].transform(X, u=u), alone.transform(X, u=u), atol=2e-3
    )


def test_estimators_without_n_init_are_refitted_one_by_one():
    X = np.random.default_rng(0).normal(size=(80, 4)) * [4, 3, 2, 1]
    report = skvae.identifiability_report(PCA(2), X, n_restarts=3, random_state=0)
    np.testing.assert_allclose(report.correlations, 1.0)
    assert report.reproducible.all()
    assert report.theorem is None
    assert report.null is None


# Findings


@pytest.fixture(scope="module")
def informed():
    """The report on sources that u identifies."""
    X, u = make_nonlinear_ica(
        1600,
        n_segments=8,
        n_layers=2,
        modulation_range=(0.1, 3.0),
        noise_std=0.1,
        random_state=2,
    )
    model = skvae.iVAE(2, max_iter=40, covariance="full", **SMALL)
    before = dict(vars(model))
    report = skvae.identifiability_report(
        model, X, u, n_restarts=5, n_permutations=1, random_state=0
    )
    assert vars(model) == before
    return report


def test_u_makes_sources_reproducible(informed):
    assert informed.reproducible.all()
    assert min(found.low for found in informed.consistency) > informed.chance
    assert informed.null.consistency_gap.low > 0.02
    assert informed.null.log_likelihood_gap.low > 0.05
    assert informed.null.u_matters
    assert informed.active_given_u.all()


def test_rank_is_full_with_permuted_u_too(informed):
    # What the docstring warns of: the rank alone proves nothing.
    assert informed.full_rank == 4
    assert informed.rank == [4] * 5
    assert informed.null.rank == [4] * 5
    assert len(informed.condition) == 5


def test_report_reads_well(informed):
    assert informed.verdict.startswith("Components 0 and 1 of 2 are reproducible (")
    assert "u helps to identify them (consistency higher by 0." in informed.verdict
    assert informed.verdict.endswith("missing: injective decoder.")
    text = str(informed)
    assert informed.verdict in text
    assert "By chance (random rotation): 0.90" in text
    assert repr(informed) == f"<IdentifiabilityReport: {informed.verdict}>"


def test_report_survives_json(informed):
    found = json.loads(json.dumps(informed.to_dict(), allow_nan=False))
    assert found["verdict"] == informed.verdict
    assert found["consistency"][0]["value"] == informed.consistency[0].value
    np.testing.assert_array_equal(found["correlations"], informed.correlations)
    assert found["null"]["rank"] == informed.null.rank


def test_rotation_invariant_data_are_not_reproducible():
    rng = np.random.default_rng(0)
    loadings = np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    X = 3.0 * rng.normal(size=(600, 2)) @ loadings + 0.3 * rng.normal(size=(600, 5))
    model = skvae.VAE(2, max_iter=60, **{**SMALL, "depth": 0})
    report = skvae.identifiability_report(model, X, n_restarts=8, random_state=2)
    assert report.active.all()
    assert not report.reproducible.any()
    mean = np.mean([found.value for found in report.consistency])
    assert mean == pytest.approx(report.chance, abs=0.06)
    assert report.verdict.startswith("No component of 2 is reproducible (0.")
    # These fit equally well, so it is not the optimisation.
    assert report.n_near >= 5


def test_latents_that_repeat_u_are_found():
    rng = np.random.default_rng(0)
    u = rng.integers(5, size=800)
    centres = np.array([[-4.0], [-2.0], [0.0], [2.0], [4.0]]) @ np.ones((1, 4))
    X = centres[u] + rng.normal(size=(800, 4))
    model = skvae.iVAE(1, max_iter=30, **SMALL)
    report = skvae.identifiability_report(
        model, X, u, n_restarts=3, n_permutations=0, random_state=0
    )
    assert report.active.all()
    assert not report.active_given_u.any()
    assert report.states == ["only repeats u"]
    assert "component 0 only repeats u" in report.verdict
    # The same data hold news once each class has a direction of its own to vary in.
    X = X + 3.0 * rng.normal(size=(800, 1))
    report = skvae.identifiability_report(
        model, X, u, n_restarts=3, n_permutations=0, random_state=0
    )
    assert report.active_given_u.all()


def test_fitted_estimator_is_the_reference(small_X):
    model = skvae.VAE(2, max_iter=5, random_state=0, **SMALL).fit(small_X)
    before = model.transform(small_X)
    report = skvae.identifiability_report(model, small_X, n_restarts=3, random_state=0)
    assert report.reference == "the fitted estimator"
    assert report.correlations.shape == (report.n_near, 2)
    np.testing.assert_array_equal(model.transform(small_X), before)


def test_same_seed_same_report(small_X):
    model = skvae.VAE(2, max_iter=2, **SMALL)
    reports = [
        skvae.identifiability_report(model, small_X, n_restarts=3, random_state=seed)
        for seed in (3, 3, 4)
    ]
    first, second, third = (json.dumps(report.to_dict()) for report in reports)
    assert first == second != third


def test_continuous_u(segments):
    X, u = segments
    model = skvae.iVAE(2, max_iter=2, **SMALL)
    report = skvae.identifiability_report(
        model, X, u + 0.25, n_restarts=3, n_permutations=1, random_state=0
    )
    assert report.null is not None
    assert 0 < report.variance_given_u.max() <= 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_restarts": 2}, "n_restarts must be an integer, 3 or larger. Got 2"),
        ({"n_permutations": -1}, "n_permutations must be an integer, 0 or larger"),
        ({"tolerance": -0.5}, "tolerance must be a number of nats"),
        ({"u": np.zeros(3)}, "u has 3 entries, but X has 60 rows"),
        ({"u": np.arange(60)}, "Pass a continuous u as floats"),
    ],
)
def test_bad_arguments_are_named(small_X, options, message):
    with pytest.raises(ValueError, match=message):
        skvae.identifiability_report(skvae.iVAE(), small_X, **options)
    with pytest.raises(ValueError, match="10 rows are too few"):
        skvae.identifiability_report(skvae.VAE(), small_X[:10])


# Words


NULL = PermutedNull(
    n_permutations=1,
    consistency=Estimate(0.8, 0.7, 0.9),
    consistency_gap=Estimate(0.15, 0.05, 0.25),
    agreement=0.8,
    log_likelihood_gap=Estimate(1.0, 0.5, 1.5),
    rank=[],
    condition=[],
)


def report_with(**changes):
    good = Estimate(0.98, 0.97, 0.99)
    fields = {
        "estimator": "iVAE",
        "reference": "the best restart",
        "n_restarts": 5,
        "n_near": 5,
        "n_train": 75,
        "n_held_out": 25,
        "consistency": [good] * 5,
        "correlations": np.full((4, 5), 0.98),
        "chance": 0.7,
        "chance_bound": 0.8,
        "active": np.ones(5, dtype=bool),
        "active_given_u": np.ones(5, dtype=bool),
        "reproducible": np.ones(5, dtype=bool),
        "variance_given_u": np.ones(5),
        "theorem": None,
        "assumptions_hold": None,
        "missing_assumptions": [],
        "rank": [],
        "full_rank": None,
        "condition": [],
        "log_likelihoods": [-1.0] * 5,
        "null": NULL,
        "seed": 0,
    }
    return IdentifiabilityReport(**{**fields, **changes})


def mask(*numbers):
    return np.isin(np.arange(5), numbers)


def null_with(**changes):
    return dataclasses.replace(NULL, **changes)


NATS = ": permuting it costs 0.50 to 1.50 nats per row"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "Components 0 to 4 of 5 are reproducible (0.98 over 5 restarts, 0.70 by "
            "chance); u helps to identify them (consistency higher by 0.05 to 0.25)"
            f"{NATS}.",
        ),
        (
            {"active": mask(0, 1, 3), "reproducible": mask(0), "null": None},
            "Component 0 of 5 is reproducible (0.98 over 5 restarts, 0.70 by chance), "
            "components 1 and 3 are not; components 2 and 4 are collapsed; no u was "
            "used, so the data, the prior or a shared bias decide them.",
        ),
        (
            {"active_given_u": mask(0, 1, 2), "n_near": 4},
            "Components 0 to 4 of 5 are reproducible (0.98 over the best 4 of 5 "
            "restarts, 0.70 by chance); components 3 and 4 only repeat u; u helps to "
            f"identify them (consistency higher by 0.05 to 0.25){NATS}.",
        ),
        (
            {
                "reproducible": mask(),
                "null": null_with(log_likelihood_gap=Estimate(0, -0.1, 0.1)),
                "theorem": "A theorem",
                "assumptions_hold": True,
            },
            "No component of 5 is reproducible (0.98 over 5 restarts, 0.70 by chance); "
            "no use of u is seen: permuting it costs -0.10 to 0.10 nats per row; for A "
            "theorem, all assumptions hold.",
        ),
        (
            {"null": null_with(consistency_gap=Estimate(0, -0.1, 0.1))},
            "Components 0 to 4 of 5 are reproducible (0.98 over 5 restarts, 0.70 by "
            f"chance); restarts agree as well without u, though it is used{NATS}.",
        ),
        (
            {"correlations": np.zeros((0, 5)), "n_near": 1, "null": None},
            "Nothing can be said about reproducibility, because only 1 of 5 restarts "
            "came near the best likelihood.",
        ),
        (
            {"null": null_with(log_likelihood_gap=Estimate(0, -np.inf, np.inf))},
            "Components 0 to 4 of 5 are reproducible (0.98 over 5 restarts, 0.70 by "
            "chance); too few restarts came near the best to tell what u contributes.",
        ),
        ({"active": mask()}, "All 5 components are collapsed."),
    ],
)
def test_verdict(changes, sentence):
    if len(changes.get("correlations", [1])) == 0:
        changes["reproducible"] = mask()
    assert report_with(**changes).verdict == sentence


# The command


@pytest.fixture
def table(tmp_path, segments):
    X, u = segments
    path = tmp_path / "segments.npz"
    np.savez(path, X=X, y=u)
    return path


def run(*argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, argv)))
    return code, out.getvalue(), err.getvalue()


FEW = ["--restarts", 3, "--permutations", 1]


def test_command_prints_what_the_library_finds(table, segments, tmp_path):
    X, u = segments
    settings = ["--set", "max_iter=2", "--set", "width=8"]
    output = tmp_path / "report.json"
    code, out, err = run("report", "ivae", table, *settings, *FEW, "-o", output)
    assert code == 0, err
    model = skvae.iVAE(likelihood="gaussian", max_iter=2, width=8)
    report = skvae.identifiability_report(
        model, X, u, n_restarts=3, n_permutations=1, random_state=0
    )
    assert report.verdict in out
    assert all(line in out for line in report.details())
    found = json.loads(output.read_text())
    assert found == json.loads(json.dumps(report.to_dict()))


def test_command_takes_a_saved_model(table, segments, tmp_path):
    path = tmp_path / "model.skvae"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", skvae.PosteriorCollapseWarning)
        skvae.save(skvae.VAE(1, max_iter=2, width=8).fit(segments[0]), path)
    code, out, err = run("report", path, table, *FEW)
    assert code == 0, err
    assert "Components are those of the fitted estimator." in out


def test_command_explains_mistakes(table, tmp_path):
    code, _, err = run("report", tmp_path / "none.skvae", table)
    assert code == 2
    assert "There is no model file" in err
    code, _, err = run("report", "vea", table)
    assert code == 2
    assert "Did you mean 'VAE'?" in err
    code, _, err = run("report", "VAE", table, "--restarts", 2)
    assert code == 2
    assert "n_restarts must be an integer, 3 or larger" in err
