"""Closed forms that training, scoring and the batched engine must reach."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA, FactorAnalysis

import skvae
from skvae import (
    LIDVAE,
    VAE,
    IdentifiableVAE,
    PosteriorCollapseWarning,
    SkipVAE,
    collapse_forecast,
    iVAE,
)
from skvae.datasets import make_linear_gaussian, make_nonlinear_ica
from skvae.likelihoods import Gaussian
from skvae.metrics import mean_correlation_score
from skvae.networks import MLP
from skvae.objectives import ELBO

LINEAR = {"encoder": MLP(depth=0), "decoder": MLP(depth=0)}


@pytest.fixture(scope="module")
def linear_data():
    return make_linear_gaussian(
        2000, n_features=8, n_components=3, noise_std=0.5, random_state=0
    )[0]


def linear_vae(n_components, **options):
    defaults = {
        "max_iter": 100,
        "learning_rate": 0.02,
        "batch_size": 128,
        "n_draws": 200,
        "random_state": 0,
        **LINEAR,
    }
    return VAE(n_components, **{**defaults, **options})


def test_linear_vae_reaches_probabilistic_pca(linear_data):
    vae = linear_vae(3).fit(linear_data)
    pca = PCA(3).fit(linear_data)
    assert vae.score(linear_data) == pytest.approx(pca.score(linear_data), abs=0.02)
    assert vae.noise_variance_ == pytest.approx(pca.noise_variance_, rel=0.03)


def test_linear_vae_with_noise_per_feature_reaches_factor_analysis():
    rng = np.random.default_rng(0)
    noise = np.linspace(0.4, 1.3, 10)
    X = rng.normal(size=(2000, 2)) @ rng.normal(size=(2, 10)) * 1.5
    X += rng.normal(size=X.shape) * noise
    likelihood = Gaussian(noise="per_feature")
    # The posterior of factor analysis is correlated in the columns' own basis, but
    # its rotation to a diagonal one is in the model's reach.
    vae = linear_vae(2, likelihood=likelihood).fit(X)
    analysis = FactorAnalysis(2, tol=1e-3, max_iter=2000).fit(X)
    assert vae.score(X) == pytest.approx(analysis.score(X), abs=0.03)
    assert np.sqrt(vae.noise_variance_) == pytest.approx(
        np.sqrt(analysis.noise_variance_), rel=0.1
    )


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_collapse_law_is_met_by_trained_models(beta):
    rng = np.random.default_rng(1)
    scales = np.sqrt([6.0, 3.0, 1.5, 0.7, 0.3, 0.3, 0.3, 0.3])
    X = rng.normal(size=(3000, 8)) * scales
    forecast = collapse_forecast(X, beta=beta, noise_variance=1.0, n_components=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        vae = linear_vae(5, beta=beta, likelihood=Gaussian(noise=1.0)).fit(X)
    assert vae.active_components_.sum() == forecast.n_active
    assert vae.kl_per_component_ == pytest.approx(forecast.kl_per_component, abs=0.03)


def test_collapse_law_with_learned_noise():
    rng = np.random.default_rng(2)
    scales = np.sqrt([6.0, 3.0, 1.2, *[0.5] * 9])
    X = rng.normal(size=(3000, 12)) * scales
    forecast = collapse_forecast(X, beta=2.0, n_components=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        vae = linear_vae(4, beta=2.0).fit(X)
    assert vae.active_components_.sum() == forecast.n_active
    assert vae.noise_variance_ == pytest.approx(forecast.noise_variance, rel=0.03)


def test_injective_decoder_hides_no_latent_in_silent_features():
    # One source in 8 features; 40 more are almost always 0, where a slope of 1 in the
    # logits costs nothing.
    rng = np.random.default_rng(0)
    z, sign = rng.standard_normal((1000, 1)), rng.choice([-3.0, 3.0], (1, 8))
    loud = rng.random((1000, 8)) < 1 / (1 + np.exp(-sign * z))
    X = np.hstack([loud, rng.random((1000, 40)) < 0.003]).astype(float)
    vae = skvae.LIDVAE(
        4,
        likelihood="bernoulli",
        inverse_lipschitz=1.0,
        width=16,
        max_iter=60,
        batch_size=50,
        learning_rate=5e-3,
        device="cpu",
        random_state=0,
    ).fit(X)
    assert vae.transform(X).var(axis=0).min() > 0.05


def test_score_does_not_depend_on_beta_or_objective(linear_data):
    vae = linear_vae(2, max_iter=3).fit(linear_data)
    before = vae.score(linear_data)
    assert vae.set_params(beta=7.0).score(linear_data) == before


FAST = {"width": 16, "max_iter": 4, "batch_size": 32, "n_draws": 8, "device": "cpu"}


@pytest.mark.parametrize(
    "estimator",
    [
        VAE(2, **FAST),
        SkipVAE(2, **FAST),
        LIDVAE(2, **FAST),
        LIDVAE(2, decoder="brenier", **FAST),
        iVAE(2, **FAST),
        VAE(2, early_stopping=True, n_iter_no_change=4, **FAST),
    ],
    ids=lambda e: type(e).__name__ + str(e.decoder) + str(e.early_stopping),
)
@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_replicas_trained_together_equal_replicas_trained_alone(estimator):
    from skvae._random import streams
    from skvae._training import train
    from skvae.estimators._fitting import (
        Auxiliary,
        build_model,
        draw_seeds,
        prepare,
        split,
        to_data,
    )

    X, u = make_nonlinear_ica(160, n_segments=4, random_state=0)
    one_hot = np.eye(4, dtype=np.float32)[u]
    _, seeds = draw_seeds(np.random.RandomState(3), 3)
    parts = estimator._parts(conditional=True)
    auxiliary = Auxiliary(4, True)
    data = to_data(X, one_hot, np.ones(len(X)), "cpu")

    def run(seeds, draws=None):
        model = build_model(parts, 2, 4, auxiliary, seeds)
        prepare(model, data, auxiliary)
        training, validation = data, None
        if estimator.early_stopping:
            training, validation = split(data, 0.2, 0)
        history = train(
            model,
            training,
            objective=parts.objective.build(1.0, model.prior),
            inference=parts.inference.build(),
            settings=estimator._settings(len(training.x), 4),
            seeds=seeds,
            begin_epoch=lambda: lambda row: False,
            validation=validation,
            draws=streams(seeds, "cpu"),
        )
        return model, history

    together, history = run(seeds)
    for replica, seed in enumerate(seeds):
        alone, own = run([seed])
        shared = together.select(replica)
        for a, b in zip(shared.parameters(), alone.parameters(), strict=True):
            np.testing.assert_allclose(
                a.detach().numpy(), b.detach().numpy(), rtol=2e-3, atol=2e-5
            )
        losses = [row.loss[replica] for row in history.epochs]
        assert losses == pytest.approx([row.loss[0] for row in own.epochs], rel=1e-4)


def test_restarts_keep_the_best_and_report_consistency():
    X, _ = make_linear_gaussian(400, n_features=6, n_components=2, random_state=0)
    vae = linear_vae(2, n_init=3, batch_size=32).fit(X)
    single = linear_vae(2, batch_size=32).fit(X)
    assert vae.best_bound_ >= single.best_bound_ - 1e-3
    assert vae.consistency_.shape == (2,)
    assert vae.consistency_[0] > 0.95


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_new_fit_forgets_the_old_one(linear_data):
    first = {"early_stopping": True, "n_init": 2, "decoder": "anchored"}
    X = np.abs(linear_data) / np.abs(linear_data).max()
    vae = linear_vae(2, max_iter=2, **first).fit(linear_data)
    vae.set_params(
        early_stopping=False, n_init=1, decoder="mlp", likelihood="bernoulli"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        fresh = clone(vae).fit(X)
        assert vars(vae.fit(X)).keys() == vars(fresh).keys()


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_a_fit_without_u_forgets_the_categories():
    X, u = make_nonlinear_ica(80, n_segments=4, random_state=0)
    vae = IdentifiableVAE(2, **FAST).fit(X, u=u)
    assert hasattr(vae, "u_categories_")
    assert not hasattr(vae.fit(X), "u_categories_")


def test_warm_start_continues(linear_data):
    vae = linear_vae(2, max_iter=5, warm_start=True).fit(linear_data)
    first = vae.best_bound_
    vae.fit(linear_data)
    assert vae.best_bound_ > first
    assert len(vae.loss_curve_) == 10
    cold = clone(vae).set_params(warm_start=False).fit(linear_data)
    assert cold.best_bound_ == pytest.approx(first, abs=1e-6)


def test_partial_fit_learns_from_chunks(linear_data):
    chunks = np.array_split(linear_data, 4)
    vae = linear_vae(3, batch_size=50)
    for _ in range(40):
        for chunk in chunks:
            vae.partial_fit(chunk)
    pca = PCA(3).fit(linear_data)
    assert vae.score(linear_data) == pytest.approx(pca.score(linear_data), abs=0.1)
    assert vae.n_iter_ == 160


@pytest.mark.parametrize("name", ["VAE", "LIDVAE", "iVAE", "IdentifiableVAE"])
@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_networks_trained_on_a_device_rest_on_the_cpu(name, device):
    X, u = make_nonlinear_ica(160, n_segments=4, random_state=0)
    vae = getattr(skvae, name)(2, **{**FAST, "device": str(device), "n_init": 2})
    vae.set_params(random_state=0).fit(X, u)
    assert {p.device.type for p in vae.module_.parameters()} == {"cpu"}
    assert {b.device.type for b in vae.module_.buffers()} == {"cpu"}
    at_rest = vae.transform(X)
    on_cpu = vae.set_params(device="cpu").transform(X)
    np.testing.assert_allclose(on_cpu, at_rest, rtol=1e-5, atol=1e-6)
    assert np.isfinite(vae.score_samples(X)).all()
    assert vae.sample(3, random_state=0).shape == (3, 4)


def test_ivae_keeps_sources_of_whitened_data():
    """No direction of X stands out: all that tells of the sources is their scale."""
    data = make_nonlinear_ica(
        6000,
        n_segments=20,
        n_sources=2,
        n_features=2,
        n_layers=1,
        random_state=1,
        return_X_y=False,
    )
    X, u = PCA(whiten=True).fit_transform(data.data), data.u
    vae = iVAE(
        2, covariance="full", learning_rate=0.01, max_iter=15, random_state=0
    ).fit(X, u=u)
    found = mean_correlation_score(data.sources, vae.transform(X, u=u))
    assert found > 0.95
    # The bound without warm-up gives them up.
    with pytest.warns(PosteriorCollapseWarning):
        vae.set_params(objective=ELBO()).fit(X, u=u)
    assert mean_correlation_score(data.sources, vae.transform(X, u=u)) < 0.5
    assert not vae.active_components_.all()
