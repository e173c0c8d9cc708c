"""Probes are ordinary pipelines that read what they are said to read."""

import numpy as np
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import NotFittedError, check_is_fitted

from skvae.probes import linear_probe, mlp_probe, neighbour_probe

KINDS = [linear_probe, neighbour_probe, lambda **kw: mlp_probe((64, 64), **kw)]
IDS = ["linear", "neighbour", "mlp"]


def rings(n=400, seed=0):
    """Two rings, one in the other, beside a coordinate that tells nothing."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = 1.0 + 2.0 * y + 0.1 * rng.standard_normal(n)
    noise = 0.1 * rng.standard_normal(n)
    return np.c_[radius * np.cos(angle), radius * np.sin(angle), noise], y


def test_each_reads_what_it_can():
    """Rings are told apart by their radius, of which no plane knows."""
    X, y = rings()
    X_test, y_test = rings(seed=1)
    scores = {
        name: probe.set_params(**params).fit(X, y).score(X_test, y_test)
        for name, probe, params in [
            ("linear", linear_probe(), {}),
            ("neighbour", neighbour_probe(), {}),
            ("mlp", mlp_probe((64, 64)), {"mlpclassifier__random_state": 0}),
        ]
    }
    assert scores["linear"] < 0.6
    assert scores["neighbour"] > 0.95
    assert scores["mlp"] > 0.95
    # A radius as a latent is plain to all.
    radius, radius_test = (
        np.linalg.norm(Z[:, :2], axis=1)[:, None] for Z in (X, X_test)
    )
    assert linear_probe().fit(radius, y).score(radius_test, y_test) == 1.0


@pytest.mark.parametrize("make", KINDS, ids=IDS)
def test_units_of_the_latents_do_not_matter(make):
    X, y = rings(120)
    X_test, _ = rings(120, seed=1)
    options = {"random_state": 0} if make is KINDS[-1] else {}
    plain, scaled = (
        make(**options).fit(X, y),
        make(**options).fit(X * [1, 1e3, 1e-3], y),
    )
    np.testing.assert_array_equal(
        plain.predict(X_test), scaled.predict(X_test * [1, 1e3, 1e-3])
    )


@pytest.mark.parametrize("make", KINDS, ids=IDS)
def test_quantities_are_read_by_regression(make):
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((300, 2))
    # Far from zero and large: a network sees the labels standardised.
    y = 5000.0 + 800.0 * Z[:, 0] + rng.standard_normal(300)
    options = {"random_state": 0} if make is KINDS[-1] else {}
    probe = make(regression=True, **options)
    assert is_regressor(probe)
    assert not is_classifier(probe)
    assert probe.fit(Z[:200], y[:200]).score(Z[200:], y[200:]) > 0.9


def test_the_network_is_the_published_one_and_its_seed_decides():
    X, y = rings(100)
    network = mlp_probe()[-1]
    assert network.hidden_layer_sizes == (1024, 1024)
    first, again, other = (
        mlp_probe((32, 32), random_state=seed, max_iter=200).fit(X, y).predict_proba(X)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    # One row cannot be in both parts, but is learned from where none is held out.
    y = np.arange(100) == 7
    X[7] = 9.0
    with pytest.raises(ValueError, match="least populated class"):
        mlp_probe((8,), random_state=0).fit(X, y)
    probe = mlp_probe((64, 64), early_stopping=False, max_iter=500, random_state=0)
    assert probe.fit(X, y).predict(X)[7]


def test_probes_are_unfitted_pipelines_to_search_and_clone():
    X, y = rings(100)
    probe = linear_probe()
    with pytest.raises(NotFittedError):
        check_is_fitted(probe)
    assert repr(clone(probe)) == repr(probe)
    # With all the rows of a fold voting, nearness counts nothing.
    grid = {"kneighborsclassifier__n_neighbors": [1, 49]}
    search = GridSearchCV(neighbour_probe(), grid, cv=2).fit(X, y)
    assert search.best_params_ == {"kneighborsclassifier__n_neighbors": 1}


def test_a_frozen_estimator_is_probed_without_refitting():
    X, y = rings(100)
    pca = PCA(2).fit(X)
    pipeline = make_pipeline(FrozenEstimator(pca), linear_probe())
    scores = cross_val_score(pipeline, X, y)
    expected = cross_val_score(linear_probe(), pca.transform(X), y)
    np.testing.assert_allclose(scores, expected)


def test_the_linear_probe_is_logistic_regression_on_standardised_latents():
    X, y = rings(100)
    expected = LogisticRegression(max_iter=1000).fit((X - X.mean(0)) / X.std(0), y)
    np.testing.assert_allclose(linear_probe().fit(X, y)[-1].coef_, expected.coef_)
