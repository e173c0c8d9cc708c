"""The exact demonstrations of collapse: closed forms and laws as oracles."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

PATH = Path(__file__).parents[1] / "docs" / "examples" / "exact_collapse.py"
spec = importlib.util.spec_from_file_location("exact_collapse", PATH)
exact = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exact)


def test_likelihood_of_equal_components_is_flat_in_the_weight():
    x = exact.draw_mixture("one cluster")
    values = exact.mean_log_likelihood(x, np.linspace(0, 1, 11), (-0.5, -0.5), 1.0)
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    assert values[0] == pytest.approx(norm(-0.5, 1).logpdf(x).mean())
    # The published draw has -1.5426; the expectation is -log(2 pi)/2 - (1 + 1/4)/2.
    assert values[0] == pytest.approx(-0.5 * np.log(2 * np.pi) - 0.625, abs=0.02)


def test_ends_of_the_likelihood_are_the_published_ones():
    weights = np.linspace(0, 1, 201)
    for name, least, largest, tolerance in (
        ("overlapping", -2.09, -1.498, 0.02),
        ("separate", -172.0, -1.841, 1.5),
    ):
        x, shown = exact.draw_mixture(name), exact.MIXTURES[name][1]
        values = exact.mean_log_likelihood(x, weights, shown[::-1], 1.0)
        assert values.min() == pytest.approx(least, abs=tolerance)
        assert values.max() == pytest.approx(largest, abs=0.03)


def test_binning_keeps_the_posterior():
    x = exact.draw_mixture("overlapping", n=2000)
    rng = np.random.default_rng(0)
    rows = np.column_stack(
        [
            rng.beta(5, 5, 20),
            rng.normal(-0.3, 0.2, (20, 2)),
            np.log(rng.uniform(0.8, 1.2, (20, 2))),
        ]
    )
    full = exact.log_posterior(rows, x, np.ones(len(x)))
    short = exact.log_posterior(rows, *exact.binned(x))
    # A constant offset is free.
    np.testing.assert_allclose(full - full[0], short - short[0], atol=0.03)


def test_quadrature_agrees_with_sampling_from_the_prior():
    # Few points, so that draws from the prior reach where the posterior is.
    x = exact.draw_mixture("overlapping", n=100)
    rng = np.random.default_rng(0)
    n = 300_000
    theta = rng.beta(5, 5, n)
    log_stds = np.log(np.abs(rng.normal(0, 2, (n, 2))))
    rows = np.column_stack([theta, rng.normal(0, 2, (n, 2)), log_stds])
    prior = 4 * np.log(theta * (1 - theta)) - (rows[:, 1:3] ** 2).sum(axis=1) / 8
    prior += (log_stds - np.exp(2 * log_stds) / 8).sum(axis=1)
    near = (np.abs(rows[:, 1:3] - x.mean()) < 3).all(axis=1) & (prior > -np.inf)
    points, counts = exact.binned(x, 0.05)
    log_weights = exact.log_posterior(rows[near], points, counts) - prior[near]
    weights = np.exp(log_weights - logsumexp(log_weights))
    assert 1 / (weights**2).sum() > 150
    mean = weights @ theta[near]
    sd = np.sqrt(weights @ (theta[near] - mean) ** 2)
    grid = np.linspace(0.02, 0.98, 17)
    expected = exact.moments(grid, exact.weight_posterior(x, grid, n_steps=33))
    assert (mean, sd) == pytest.approx(expected, abs=0.025)


def test_weight_of_clusters_that_overlap_keeps_its_prior():
    x, grid = exact.draw_mixture("overlapping"), np.linspace(0.02, 0.98, 13)
    density = exact.weight_posterior(x, grid, n_steps=33)
    mean, sd = exact.moments(grid, density)
    assert mean == pytest.approx(0.5)
    # Published: 0.155 in one chain, 0.16 in all; the prior has 0.151.
    assert sd == pytest.approx(0.16, abs=0.01)


def test_weight_of_separate_clusters_is_known():
    law = exact.separate_posterior(exact.draw_mixture("separate"))
    # Published: 0.0035 on a draw with a weight of 0.146.
    assert law.std() == pytest.approx(0.0035, abs=2e-4)
    assert law.mean() == pytest.approx(0.15, abs=0.01)
    assert exact.PRIOR.std() == pytest.approx(0.1508, abs=1e-4)


def test_spread_of_the_likelihood_falls_with_the_noise_variance():
    loadings, _ = exact.draw_ppca(2)
    spread = [
        exact.log_likelihood_surface(loadings, s)[1].std() for s in exact.NOISE_LEVELS
    ]
    products = np.array(spread) * np.square(exact.NOISE_LEVELS)
    np.testing.assert_allclose(products, products[0], rtol=1e-9)
    published = np.array(exact.PUBLISHED_SPREAD)
    np.testing.assert_allclose(spread / spread[3], published / published[3], rtol=1e-3)


def test_superfluous_column_leaves_its_latent_alone():
    loadings, _ = exact.draw_ppca(1)
    _, surface = exact.log_likelihood_surface(loadings, 0.1)
    np.testing.assert_allclose(surface, np.tile(surface[:, :1], (1, 50)), rtol=1e-12)
    assert exact.posterior_variances(loadings, 0.1)[1] == 1.0


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_posterior_variance_is_that_of_the_full_covariance(noise):
    loadings, _ = exact.draw_ppca(2)
    covariance = np.linalg.inv(np.eye(2) + loadings.T @ loadings / noise**2)
    np.testing.assert_allclose(
        exact.posterior_variances(loadings, noise), np.linalg.eigvalsh(covariance)
    )


def test_linear_vae_reaches_the_exact_variances():
    X = exact.draw_ppca(2)[1]
    expected = exact.fitted_variances(X, 2.0)
    # The second component's eigenvalue is below this noise: it collapses exactly.
    assert expected[0] < 0.5
    assert expected[1] == 1.0
    found = exact.vae_variances(X, 2.0, max_iter=80)
    np.testing.assert_allclose(found, expected, rtol=0.03)
