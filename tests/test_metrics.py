"""Oracles for the metrics: closed forms, scipy, and limits that must be reached."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from skvae.datasets import make_linear_gaussian
from skvae.metrics import (
    active_units,
    dci_score,
    importance_weighted_log_likelihood,
    kl_per_unit,
    linear_r2_score,
    match_components,
    mean_correlation_score,
    mutual_information,
    mutual_information_gap,
    sap_score,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def sources(rng):
    return rng.laplace(size=(600, 3))


def columns_with_variances(rng, variances, n_samples=100):
    Z = rng.standard_normal((n_samples, len(variances)))
    return (Z - Z.mean(axis=0)) / Z.std(axis=0, ddof=1) * np.sqrt(variances)


def linear_gaussian_encoder(rng, n_samples, weights, std):
    X = rng.standard_normal((n_samples, weights.shape[1]))
    return X @ weights.T, np.full((n_samples, len(weights)), std)


def exact_information(weights, std):
    covariance = np.eye(len(weights)) + weights @ weights.T / std**2
    return 0.5 * np.linalg.slogdet(covariance)[1]


class TestActiveUnits:
    @pytest.mark.parametrize(("threshold", "expected"), [(0.01, 2), (0.02, 0)])
    def test_published_thresholds(self, rng, threshold, expected):
        Z_mean = columns_with_variances(rng, [0.02, 0.011, 0.009])
        result = active_units(Z_mean, threshold=threshold)
        assert result.count == expected
        assert result.fraction == expected / 3
        assert (type(result.count), type(result.fraction)) == (int, float)
        np.testing.assert_allclose(result.variances, [0.02, 0.011, 0.009])

    def test_variance_is_unbiased_and_ignores_the_mean(self, rng):
        Z_mean = rng.standard_normal((7, 2)) + 100.0
        expected = np.var(Z_mean, axis=0, ddof=1)
        np.testing.assert_allclose(active_units(Z_mean).variances, expected)
        assert active_units(np.ones((4, 1)), threshold=0).count == 0

    @pytest.mark.parametrize("Z", [np.ones((1, 2)), np.ones(3), [[np.nan], [1.0]]])
    def test_bad_input(self, Z):
        with pytest.raises(ValueError, match=r"Z_mean|array|sample"):
            active_units(Z)
        with pytest.raises(ValueError, match="threshold"):
            active_units(np.ones((3, 1)), threshold=-1.0)


class TestKLPerUnit:
    @pytest.mark.parametrize(
        ("mean", "std", "prior_mean", "prior_std"),
        [(0.3, 0.5, 0.0, 1.0), (-1.0, 2.0, 0.5, 0.7), (0.0, 1.01, 0.0, 1.0)],
    )
    def test_equals_quadrature(self, mean, std, prior_mean, prior_std):
        posterior, prior = norm(mean, std), norm(prior_mean, prior_std)
        expected, _ = quad(
            lambda z: posterior.pdf(z) * (posterior.logpdf(z) - prior.logpdf(z)),
            mean - 12 * std,
            mean + 12 * std,
        )
        actual = kl_per_unit([[mean]], [[std]], prior_mean, prior_std)
        np.testing.assert_allclose(actual, [expected], rtol=1e-7)

    def test_mean_over_rows(self, rng):
        mean, std = rng.standard_normal((9, 4)), rng.uniform(0.1, 2.0, (9, 4))
        expected = 0.5 * (mean**2 + std**2 - np.log(std**2) - 1.0).mean(axis=0)
        np.testing.assert_allclose(kl_per_unit(mean, std), expected)

    def test_prior_may_depend_on_the_row(self, rng):
        mean, std = rng.standard_normal((9, 4)), rng.uniform(0.1, 2.0, (9, 4))
        np.testing.assert_array_equal(kl_per_unit(mean, std, mean, std), np.zeros(4))

    def test_exact_next_to_the_prior_and_far_from_it(self):
        tiny = 1e-9
        near = kl_per_unit([[0.0]], [[1.0 + tiny]])
        np.testing.assert_allclose(near, [tiny**2], rtol=1e-6)
        np.testing.assert_allclose(
            kl_per_unit([[0.0]], [[1e-300]]), [300 * np.log(10) - 0.5]
        )

    def test_linear_gaussian_truth(self):
        data = make_linear_gaussian(20_000, random_state=0, return_X_y=False)
        actual = kl_per_unit(data.posterior_mean, data.posterior_std)
        np.testing.assert_allclose(actual, data.kl_per_component, atol=0.03)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="Z_std must be positive"):
            kl_per_unit([[0.0]], [[0.0]])
        with pytest.raises(ValueError, match="prior_std must be positive"):
            kl_per_unit([[0.0]], [[1.0]], 0.0, -1.0)
        with pytest.raises(ValueError, match="same shape"):
            kl_per_unit([[0.0]], [[1.0, 1.0]])
        with pytest.raises(ValueError, match="broadcast"):
            kl_per_unit([[0.0, 1.0]], [[1.0, 1.0]], [0.0, 1.0, 2.0])


class TestMutualInformation:
    @pytest.mark.parametrize("entropy", ["paired", "analytic"])
    def test_linear_gaussian_encoder(self, rng, entropy):
        weights = np.array([[1.0, 0.3], [-0.5, 0.8]])
        mean, std = linear_gaussian_encoder(rng, 3000, weights, 0.7)
        result = mutual_information(mean, std, entropy=entropy, random_state=0)
        np.testing.assert_allclose(
            result.value, exact_information(weights, 0.7), atol=0.05
        )
        assert result.ceiling == pytest.approx(np.log(3000))

    def test_is_below_the_kl(self, rng):
        mean, std = linear_gaussian_encoder(rng, 1000, np.diag([1.0, 0.5]), 0.4)
        result = mutual_information(mean, std, n_draws=2, random_state=0)
        assert result.value < kl_per_unit(mean, std).sum()
        assert result == mutual_information(mean, std, n_draws=2, random_state=0)
        assert type(result.value) is type(result.ceiling) is float

    @pytest.mark.parametrize("batch_size", [32, 50])
    def test_minibatch_ceiling_is_reached_by_separated_posteriors(
        self, rng, batch_size
    ):
        mean = 100.0 * rng.standard_normal((10 * batch_size, 3))
        result = mutual_information(
            mean,
            np.full(mean.shape, 1e-3),
            method="minibatch",
            batch_size=batch_size,
            random_state=0,
        )
        assert result.value == pytest.approx(np.log(batch_size), abs=1e-9)
        assert result.ceiling == pytest.approx(np.log(batch_size))
        assert (result.n, result.method) == (batch_size, "minibatch")

    def test_short_last_batch(self):
        mean = 100.0 * np.arange(5.0)[:, np.newaxis]
        result = mutual_information(
            mean, np.ones((5, 1)), method="minibatch", batch_size=4, random_state=0
        )
        assert result.ceiling == pytest.approx(0.8 * np.log(4))
        assert result.value == pytest.approx(result.ceiling)

    def test_aggregate_of_ten_thousand_stays_below_its_ceiling(self, rng):
        mean = rng.standard_normal((10_000, 2))
        result = mutual_information(mean, np.full(mean.shape, 1e-8), random_state=0)
        assert result.value <= result.ceiling + 1e-9
        assert result.ceiling == pytest.approx(9.2103, abs=1e-4)

    def test_complete_collapse_is_zero(self):
        result = mutual_information(np.zeros((50, 3)), np.ones((50, 3)), random_state=0)
        assert result.value == pytest.approx(0.0, abs=1e-12)

    def test_pairing_has_less_noise_near_collapse(self, rng):
        weights = 0.05 * np.eye(5)
        values = {"paired": [], "analytic": []}
        for seed in range(20):
            mean, std = linear_gaussian_encoder(rng, 200, weights, 1.0)
            for entropy, found in values.items():
                result = mutual_information(
                    mean, std, entropy=entropy, random_state=seed
                )
                found.append(result.value)
        assert 2 * np.std(values["paired"]) < np.std(values["analytic"])

    def test_equals_the_naive_double_loop(self, rng):
        mean, std = rng.standard_normal((30, 2)), rng.uniform(0.2, 1.0, (30, 2))
        noise = np.random.RandomState(3).standard_normal((30, 2))
        draws = mean + std * noise
        log_density = norm.logpdf(draws[:, np.newaxis], mean, std).sum(axis=2)
        aggregate = np.log(np.exp(log_density).mean(axis=1))
        expected = (np.diagonal(log_density) - aggregate).mean()
        result = mutual_information(mean, std, random_state=3)
        assert result.value == pytest.approx(expected, abs=1e-12)

    def test_chunks_do_not_matter(self, rng, monkeypatch):
        mean, std = linear_gaussian_encoder(rng, 101, np.eye(2), 0.5)
        whole = mutual_information(mean, std, random_state=0).value
        monkeypatch.setattr("skvae.metrics._collapse._CHUNK_ENTRIES", 700)
        assert mutual_information(mean, std, random_state=0).value == pytest.approx(
            whole, abs=1e-12
        )

    def test_survives_offsets_and_tiny_scales(self, rng):
        mean, std = linear_gaussian_encoder(rng, 200, np.eye(2), 0.5)
        value = mutual_information(mean, std, random_state=0).value
        moved = mutual_information(1e-160 * mean + 1e-150, 1e-160 * std, random_state=0)
        assert moved.value == pytest.approx(value, abs=1e-3)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"method": "full"}, "method must be one of"),
            ({"entropy": "sampled"}, "entropy must be one of"),
            ({"batch_size": 0}, "batch_size"),
            ({"n_draws": 0}, "n_draws"),
        ],
    )
    def test_bad_options(self, options, match):
        with pytest.raises(ValueError, match=match):
            mutual_information(np.zeros((3, 1)), np.ones((3, 1)), **options)


class TestImportanceWeightedLogLikelihood:
    def test_exact_posterior_is_exact_with_one_draw(self, rng):
        data = make_linear_gaussian(50, random_state=0, return_X_y=False)
        mean, std = data.posterior_mean, data.posterior_std
        z = mean + std * rng.standard_normal(mean.shape)
        noise_std = np.sqrt(data.noise_variance)
        reconstruction = z @ data.loadings.T + data.mean
        log_weights = (
            norm.logpdf(data.data, reconstruction, noise_std).sum(axis=1)
            + norm.logpdf(z).sum(axis=1)
            - norm.logpdf(z, mean, std).sum(axis=1)
        )
        actual = importance_weighted_log_likelihood(log_weights[np.newaxis])
        np.testing.assert_allclose(actual, data.log_likelihood, rtol=1e-10)

    def test_does_not_decrease_with_draws_in_expectation(self, rng):
        log_weights = rng.standard_normal((64, 4000))
        means = [
            importance_weighted_log_likelihood(log_weights[:n]).mean()
            for n in (1, 4, 16, 64)
        ]
        assert np.all(np.diff(means) > 0)
        assert means[-1] == pytest.approx(0.5, abs=0.03)

    def test_axis_and_types(self):
        log_weights = np.log([[1.0, 2.0], [3.0, 4.0]])
        along_rows = importance_weighted_log_likelihood(log_weights, axis=1)
        np.testing.assert_allclose(np.exp(along_rows), [1.5, 3.5])
        single = importance_weighted_log_likelihood([0.0, 0.0])
        assert type(single) is float

    def test_no_overflow_and_zero_weights(self):
        log_weights = [[-np.inf, 1000.0], [-np.inf, -np.inf]]
        actual = importance_weighted_log_likelihood(log_weights)
        np.testing.assert_allclose(actual, [-np.inf, 1000.0 - np.log(2)])

    def test_bad_input(self):
        for bad in (np.nan, np.inf):
            with pytest.raises(ValueError, match="NaN or plus infinity"):
                importance_weighted_log_likelihood([[0.0, bad]])
        with pytest.raises(ValueError, match="axis 2 does not exist"):
            importance_weighted_log_likelihood([[0.0]], axis=2)


class TestMeanCorrelation:
    @pytest.mark.parametrize("method", ["pearson", "spearman"])
    def test_permutation_and_scale_score_one(self, sources, method):
        Z = sources[:, [2, 0, 1]] * [2.0, -1e-6, 1e6] + [0.0, 5.0, -7.0]
        assert mean_correlation_score(sources, Z, method=method) == pytest.approx(1.0)

    def test_linear_map_is_weakly_but_not_strongly_equivalent(self, rng, sources):
        Z = sources @ rng.standard_normal((3, 3)) + 2.0
        weak = mean_correlation_score(sources, Z, mode="weak", random_state=0)
        assert weak == pytest.approx(1.0)
        assert mean_correlation_score(sources, Z) < 0.95

    def test_spearman_ignores_monotonic_distortion(self, sources):
        Z = np.exp(sources[:, ::-1])
        spearman = mean_correlation_score(sources, Z, method="spearman")
        assert spearman == pytest.approx(1.0)
        assert mean_correlation_score(sources, Z) < 0.9

    def test_too_few_latents_divide_by_the_sources(self, sources):
        score = mean_correlation_score(sources, sources[:, :2])
        assert score == pytest.approx(2 / 3, abs=1e-9)

    def test_more_latents_than_sources(self, rng, sources):
        Z = np.hstack([rng.standard_normal((600, 2)), sources])
        assert mean_correlation_score(sources, Z) == pytest.approx(1.0)

    @pytest.mark.parametrize("method", ["pearson", "spearman"])
    @pytest.mark.parametrize("constant", [0.0, 3.3, 1e20])
    def test_constant_latent_correlates_zero(self, sources, method, constant):
        Z = sources.copy()
        Z[:, 1] = constant
        score = mean_correlation_score(sources, Z, method=method)
        assert score == pytest.approx(2 / 3, abs=1e-9)

    def test_collapsed_latents_in_weak_mode(self, sources):
        score = mean_correlation_score(
            sources, np.zeros((600, 3)), mode="weak", random_state=0
        )
        assert score == 0.0

    def test_weak_is_held_out(self, rng):
        noise, Z = rng.standard_normal((60, 2)), rng.standard_normal((60, 25))
        weak = mean_correlation_score(noise, Z, mode="weak", random_state=0)
        assert weak < 0.5

    def test_weak_needs_rows(self, rng):
        with pytest.raises(ValueError, match="at least 14 rows"):
            mean_correlation_score(
                rng.standard_normal((13, 2)), rng.standard_normal((13, 5)), mode="weak"
            )

    def test_bad_options_and_shapes(self, sources):
        with pytest.raises(ValueError, match="method must be one of"):
            mean_correlation_score(sources, sources, method="kendall")
        with pytest.raises(ValueError, match="mode must be one of"):
            mean_correlation_score(sources, sources, mode="affine")
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            mean_correlation_score(sources, sources[:-1])


class TestMatchComponents:
    def test_recovers_the_permutation(self, rng, sources):
        order = np.array([1, 2, 0])
        Z = -3.0 * sources[:, order] + 1e-3 * rng.standard_normal(sources.shape)
        indices, correlations = match_components(sources, Z)
        np.testing.assert_array_equal(order[indices], np.arange(3))
        np.testing.assert_allclose(correlations, 1.0, atol=1e-5)

    def test_agrees_with_numpy(self, rng, sources):
        Z = rng.standard_normal((600, 4)) + sources @ rng.standard_normal((3, 4))
        indices, correlations = match_components(sources, Z)
        expected = np.abs(np.corrcoef(sources.T, Z.T)[:3, 3:])
        np.testing.assert_allclose(correlations, expected[np.arange(3), indices])
        assert len(set(indices.tolist())) == 3

    def test_dead_components_take_what_is_left(self, sources):
        Z = sources.copy()
        Z[:, 0] = 0.0
        indices, correlations = match_components(Z, Z[:, ::-1])
        np.testing.assert_array_equal(indices, [2, 1, 0])
        np.testing.assert_allclose(correlations, [0.0, 1.0, 1.0])

    def test_refuses_fewer_columns(self, sources):
        with pytest.raises(ValueError, match="swap the arguments"):
            match_components(sources, sources[:, :2])


class TestLinearR2:
    def test_linear_map_scores_one(self, rng, sources):
        Z = sources @ rng.standard_normal((3, 3)) * 1e5 - 1e3
        assert linear_r2_score(sources, Z, random_state=0) == pytest.approx(1.0)

    def test_noise_and_constants_do_not_score(self, rng, sources):
        noise = rng.standard_normal(sources.shape)
        assert linear_r2_score(sources, noise, random_state=0) < 0.05
        constant = np.zeros_like(sources)
        assert abs(linear_r2_score(sources, constant, random_state=0)) < 0.05
        assert linear_r2_score(constant + 2.0, sources, random_state=0) == 0.0

    def test_known_signal_to_noise(self, rng):
        sources = rng.standard_normal((20_000, 1))
        Z = sources + 0.5 * rng.standard_normal(sources.shape)
        score = linear_r2_score(sources, Z, random_state=0)
        assert score == pytest.approx(0.8, abs=0.02)


@pytest.fixture
def grid():
    return np.tile(np.indices((3, 4)).reshape(2, -1).T, (25, 1)).astype(float)


class TestDisentanglement:
    def test_perfect_latents(self, rng, grid):
        Z = grid[:, ::-1] * [1.0, -2.0] + 1e-3 * rng.standard_normal(grid.shape)
        assert mutual_information_gap(grid, Z) == pytest.approx(1.0, abs=0.01)
        result = dci_score(grid, Z, random_state=0)
        assert min(result.disentanglement, result.completeness) > 0.99
        assert result.informativeness == 1.0
        assert sap_score(grid, Z, discrete_factors=False) > 0.99

    def test_rotated_latents(self, rng):
        factors = rng.standard_normal((600, 2))
        Z = factors @ np.array([[1.0, 1.0], [1.0, -1.0]])
        assert mutual_information_gap(factors, Z) < 0.05
        assert sap_score(factors, Z) < 0.1
        result = dci_score(factors, Z, predictor="lasso", random_state=0)
        assert max(result.disentanglement, result.completeness) < 0.1
        assert result.informativeness > 0.99

    def test_gap_of_a_copied_latent_is_zero(self, grid):
        Z = np.hstack([grid, grid])
        assert mutual_information_gap(grid, Z) == pytest.approx(0.0, abs=1e-12)
        assert sap_score(grid, Z, random_state=0) == 0.0

    def test_gap_by_hand(self):
        factor = np.repeat([[0.0], [1.0]], 8, axis=0)
        partial = np.repeat([[0.0], [0.0], [0.0], [1.0]], 4, axis=0)
        joint = np.array([[0.5, 0.0], [0.25, 0.25]])
        outer = np.outer(joint.sum(axis=1), joint.sum(axis=0))
        used = joint > 0
        known = (joint[used] * np.log(joint[used] / outer[used])).sum() / np.log(2)
        assert mutual_information_gap(factor, partial) == pytest.approx(known)
        both = np.hstack([factor, partial])
        assert mutual_information_gap(factor, both) == pytest.approx(1 - known)

    @pytest.mark.parametrize("strategy", ["uniform", "quantile"])
    def test_binning_strategies(self, rng, strategy):
        factors = rng.standard_normal((800, 2))
        score = mutual_information_gap(factors, factors**3, strategy=strategy)
        assert score > (0.9 if strategy == "quantile" else 0.1)

    def test_discrete_sap_by_chance(self, rng):
        factor = np.repeat([[0.0], [1.0]], 200, axis=0)
        Z = np.hstack([factor, rng.standard_normal((400, 1))])
        assert sap_score(factor, Z, random_state=0) == pytest.approx(0.5, abs=0.07)
        assert sap_score(factor, factor, random_state=0) == pytest.approx(0.5)

    def test_continuous_sap_is_squared_correlation(self, rng):
        factor = rng.standard_normal((100, 1))
        Z = factor + rng.standard_normal((100, 1))
        expected = np.corrcoef(factor[:, 0], Z[:, 0])[0, 1] ** 2
        assert sap_score(factor, Z) == pytest.approx(expected)

    def test_dci_importances(self, rng):
        factors = rng.uniform(size=(300, 2))
        Z = np.hstack([factors, np.zeros((300, 1))])
        result = dci_score(factors, Z, random_state=0)
        assert result.importance.shape == (3, 2)
        np.testing.assert_allclose(result.importance.sum(axis=0), 1.0)
        np.testing.assert_array_equal(result.importance[2], 0.0)

    def test_lasso_with_discrete_factors_and_one_latent(self, rng, grid):
        Z = grid[:, :1] + 0.01 * rng.standard_normal((len(grid), 1))
        result = dci_score(grid[:, :1], Z, predictor="lasso", random_state=0)
        assert result.disentanglement == result.completeness == 1.0

    def test_collapsed_latents(self, grid):
        Z = np.zeros((len(grid), 2))
        assert mutual_information_gap(grid, Z) == 0.0
        assert sap_score(grid, Z, random_state=0) == 0.0
        result = dci_score(
            grid, Z, predictor="lasso", discrete_factors=False, random_state=0
        )
        assert result.disentanglement == result.completeness == 0.0

    def test_mixed_factors(self, rng):
        factors = np.column_stack([rng.integers(0, 2, 300), rng.standard_normal(300)])
        automatic = sap_score(factors, factors, random_state=0)
        declared = sap_score(
            factors, factors, discrete_factors=[True, False], random_state=0
        )
        assert automatic == declared

    def test_seeds_reproduce(self, rng, grid):
        Z = grid + rng.standard_normal(grid.shape)
        first, second = (dci_score(grid, Z, random_state=1) for _ in range(2))
        assert first.informativeness == second.informativeness
        np.testing.assert_array_equal(first.importance, second.importance)

    @pytest.mark.parametrize("score", [mutual_information_gap, dci_score, sap_score])
    def test_constant_factor_is_named(self, grid, score):
        factors = np.hstack([grid, np.ones((len(grid), 1))])
        with pytest.raises(ValueError, match=r"constant columns \[2\]"):
            score(factors, grid)

    def test_bad_options(self, grid):
        with pytest.raises(ValueError, match="strategy must be one of"):
            mutual_information_gap(grid, grid, strategy="kmeans")
        with pytest.raises(ValueError, match="predictor must be one of"):
            dci_score(grid, grid, predictor="forest")
        for wrong in ([True, False, True], [0, 1], "all"):
            with pytest.raises(ValueError, match="discrete_factors"):
                sap_score(grid, grid, discrete_factors=wrong)


def test_global_random_state_is_untouched(rng, sources):
    before = np.random.get_state()  # noqa: NPY002
    mutual_information(sources, np.ones_like(sources), random_state=0)
    mean_correlation_score(sources, sources, mode="weak", random_state=0)
    linear_r2_score(sources, sources, random_state=0)
    sap_score(sources > 0, sources, random_state=0)
    dci_score(sources, sources, predictor="lasso", random_state=0)
    after = np.random.get_state()  # noqa: NPY002
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_metrics_and_datasets_import_without_torch():
    code = "import sys, skvae.metrics, skvae.datasets; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
