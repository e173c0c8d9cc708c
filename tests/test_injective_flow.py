"""A flow as decoder and its inverse as encoder."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, StratifiedKFold

import skvae
from skvae import (
    VAE,
    IdentifiableVAE,
    MixtureVAE,
    PosteriorCollapseWarning,
    iVAE,
)
from skvae._random import generator
from skvae.datasets import make_nonlinear_ica
from skvae.likelihoods import Gaussian
from skvae.metrics import mean_correlation_score
from skvae.networks import InjectiveFlow
from skvae.networks._layers import DenseNetwork
from skvae.networks.anchored import AnchoredNetwork
from skvae.networks.injective_flow import InjectiveFlowNetwork, InverseNetwork
from skvae.posteriors import EncoderPosterior
from skvae.priors import ConditionalGaussian

FLOW = {"encoder": "inverse", "decoder": "flow", "learning_rate": 0.02, "device": "cpu"}


def draw(seed, *shape):
    return torch.randn(*shape, generator=generator(seed)).double()


def build(n_in, n_out, seeds=(0, 1), **options):
    """A decoder in double precision with weights far from where they start."""
    generators = [generator(seed) for seed in seeds]
    decoder = InjectiveFlow(**options).build(n_in, n_out, generators).double()
    decoder.requires_grad_(False)
    for number, parameter in enumerate(decoder.parameters()):
        parameter += 0.3 * draw(100 + number, *parameter.shape)
    decoder.align(draw(7, 60, n_out) @ draw(8, n_out, n_out), torch.ones(60))
    return decoder


# ------------------------------------------------------------------------ the networks


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (2, 2), (2, 5), (4, 5)])
@pytest.mark.parametrize("depth", [0, 3])
def test_the_inverse_finds_the_code_and_the_metric_is_that_of_autograd(
    n_in, n_out, depth
):
    decoder = build(n_in, n_out, depth=depth)
    z = 2.0 * draw(1, 2, 12, n_in)
    found, metric = decoder.invert(decoder(z))
    torch.testing.assert_close(found, z, rtol=1e-6, atol=1e-7)
    for r in range(2):
        for row in range(12):

            def call(code, r=r, row=row):
                codes = z.clone()
                codes[r, row] = code
                return decoder(codes)[r, row]

            jacobian = torch.autograd.functional.jacobian(call, z[r, row])
            expected = jacobian.mT @ jacobian
            torch.testing.assert_close(metric[r, row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_what_is_written_is_read(covariance):
    family = EncoderPosterior(covariance)
    root = draw(2, 3, 7, 4, 4)
    loc, precision = draw(1, 3, 7, 4), root @ root.mT + torch.eye(4)
    raw = family.write(loc, precision)
    assert raw.shape[-1] == family.n_outputs(4)
    q = family.read(raw, 4)
    torch.testing.assert_close(q.loc, loc)
    if covariance == "full":
        torch.testing.assert_close(q.factor @ q.factor.mT, precision)
    else:
        diagonal = torch.diagonal(precision, dim1=-2, dim2=-1)
        torch.testing.assert_close(q.scale**-2, diagonal)


# ---------------------------------------------------------------------- the estimators


@pytest.fixture
def data():
    return make_nonlinear_ica(
        1200,
        n_segments=6,
        n_features=3,
        centers="uniform",
        random_state=0,
        return_X_y=False,
    )


@pytest.mark.parametrize("n_components", [1, 3])
def test_the_posterior_is_exact_where_the_decoder_is_affine(n_components, data):
    """Then one draw gives the likelihood: that of a Gaussian in closed form."""
    X, u = data.data, data.u
    vae = IdentifiableVAE(
        n_components,
        **{**FLOW, "decoder": InjectiveFlow(depth=0), "learning_rate": 1e-6},
        covariance="full",
        likelihood=Gaussian(0.2),
        n_draws=1,
        max_iter=1,
        random_state=0,
    )
    vae.fit(X, u=u)
    # With a decoder that has hardly moved from a rotation, the inverse is the
    # projection; the encoder learns the noise, here it is told.
    vae.module_.decoder.flow.whitening.copy_(torch.eye(3))
    vae.module_.encoder.log_noise.fill_(np.log(0.2 / vae.module_.frame.unit.item()))
    codes = np.vstack([np.zeros(n_components), np.eye(n_components)])
    # Codes and their order are those of the estimator's surface.
    offset, *columns = vae.inverse_transform(codes)
    J = np.array(columns) - offset
    rows, laws = X[::10], []
    for segment in range(6):
        one_hot = torch.eye(6)[[segment]].unsqueeze(0)
        prior = vae.module_.prior.given(one_hot)
        loc, scale = (t[0, 0, vae._order].numpy() for t in (prior.loc, prior.scale))
        covariance = (J.T * scale**2) @ J + 0.2**2 * np.eye(3)
        law = multivariate_normal(loc @ J + offset, covariance)
        laws.append(law.logpdf(rows))
        found = vae.score_samples(rows, u=np.full(len(rows), segment))
        np.testing.assert_allclose(found, laws[-1], atol=2e-3)
    shares = np.bincount(u) / len(u)
    mixture = logsumexp(np.array(laws), b=shares[:, None], axis=0)
    np.testing.assert_allclose(vae.score_samples(rows), mixture, atol=2e-3)


AUTOMATIC = {
    "flow": (InjectiveFlowNetwork, InverseNetwork, "full", 0.02),
    "anchored": (AnchoredNetwork, DenseNetwork, "diagonal", 0.001),
}


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.parametrize(
    ("options", "n_features", "with_u", "expected"),
    [
        ({}, 3, True, "flow"),
        ({}, 3, False, "anchored"),
        ({}, 17, True, "anchored"),
        ({"likelihood": "bernoulli"}, 3, True, "anchored"),
        ({"posterior_type": "joint"}, 3, True, "anchored"),
        ({"encoder": "mlp"}, 3, True, "anchored"),
        ({"decoder": "anchored"}, 3, True, "anchored"),
        ({"encoder": "inverse"}, 3, False, "flow"),
        ({"decoder": InjectiveFlow(depth=1)}, 17, True, "flow"),
    ],
)
def test_what_auto_stands_for(options, n_features, with_u, expected):
    rng = np.random.default_rng(0)
    X, u = rng.integers(0, 2, size=(40, n_features)), np.arange(40) % 4
    options = {"width": 8, "schedule": "constant", "max_iter": 1, **options}
    vae = IdentifiableVAE(2, random_state=0, **options)
    model = vae.fit(X, u=u if with_u else None).module_
    decoder, encoder, covariance, rate = AUTOMATIC[expected]
    assert isinstance(model.decoder, decoder)
    assert isinstance(model.encoder, encoder)
    assert model.posterior_family.covariance == covariance
    assert vae.history_["learning_rate"] == [rate]


def test_small_noise_makes_the_bound_tight(data):
    """The bound of one draw is near the likelihood of many."""
    X, u = data.data, data.u
    vae = IdentifiableVAE(2, **FLOW, covariance="full", max_iter=15, random_state=0)
    vae.fit(X, u=u)
    many = vae.set_params(n_draws=200).score(X, u=u)
    assert many - 0.15 < vae.best_bound_ < many + 0.02
    assert np.sqrt(vae.noise_variance_).max() < 0.1
    Z = vae.transform(X, u=u)
    residual = np.sqrt(np.mean((vae.inverse_transform(Z) - X) ** 2))
    assert residual < 2.0 * np.sqrt(vae.noise_variance_).max()
    apart = np.linalg.norm(Z[::40, None] - Z[::40], axis=-1)
    images = vae.inverse_transform(Z[::40])
    moved = np.linalg.norm(images[:, None] - images, axis=-1)
    assert (moved >= vae.inverse_lipschitz_ * apart).all()
    assert vae.inverse_lipschitz_ > 0.0
    assert vae.identifiability_["assumptions"]["injective decoder"][0]


def test_an_encoder_of_its_own_and_other_likelihoods_go_with_the_decoder(data):
    X = (data.data > data.data.mean(0)).astype(float)
    for likelihood in ("bernoulli", "gaussian"):
        vae = VAE(2, decoder="flow", likelihood=likelihood, max_iter=2, random_state=0)
        assert np.isfinite(vae.fit(X).score(X))


def test_a_collapse_is_not_blamed_on_a_slope_that_nobody_set(data):
    vae = IdentifiableVAE(
        3,
        prior=ConditionalGaussian(mean="zero"),
        likelihood=Gaussian(0.3),
        beta=3.7,
        learning_rate=0.05,
        max_iter=20,
        random_state=0,
    )
    with pytest.warns(PosteriorCollapseWarning, match="Lower beta"):
        vae.fit(data.data, u=data.u)


def test_saving_searching_and_restarts(data, tmp_path):
    X, u = data.data, data.u
    vae = IdentifiableVAE(2, **FLOW, max_iter=2, n_init=2, random_state=0)
    vae.fit(X, u=u)
    assert vae.consistency_.shape == (2,)
    skvae.save(vae, tmp_path / "flow.skvae")
    again = skvae.load(tmp_path / "flow.skvae")
    np.testing.assert_array_equal(again.transform(X, u=u), vae.transform(X, u=u))
    assert again.score(X, u=u) == vae.score(X, u=u)
    vae.set_params(n_init=1, decoder=InjectiveFlow())
    search = GridSearchCV(vae, {"decoder__depth": [0, 1]}, cv=StratifiedKFold(2))
    assert np.isfinite(search.fit(X, u).cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (iVAE(2, encoder="inverse"), "Use decoder='flow'"),
        (iVAE(2, **FLOW, posterior_type="joint"), "from x alone"),
        (MixtureVAE(2, posterior_type="enumerated", **FLOW), "from x alone"),
        (iVAE(2, **FLOW, likelihood="bernoulli"), "likelihood='gaussian' alone"),
        (iVAE(4, **FLOW), "n_components <= n_features"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(estimator, message, data):
    X = (data.data > 0).astype(float)
    with pytest.raises(ValueError, match=message):
        estimator.fit(X, data.u)
    assert not hasattr(estimator, "module_")


def test_it_recovers_sources_that_a_linear_map_does_not():
    """Held-out rows of two sources mixed into four features."""
    data = make_nonlinear_ica(
        9000,
        n_segments=20,
        n_sources=2,
        n_features=4,
        n_layers=3,
        centers="uniform",
        random_state=3,
        return_X_y=False,
    )
    held_out = np.arange(9000) % 10 == 0
    X, u, S = data.data, data.u, data.sources[held_out]

    vae = IdentifiableVAE(
        2, **FLOW, depth=4, covariance="full", max_iter=8, n_init=2, random_state=0
    )
    vae.fit(X[~held_out], u=u[~held_out])
    linear = mean_correlation_score(S, PCA(2).fit(X).transform(X[held_out]))
    found = mean_correlation_score(S, vae.transform(X[held_out], u=u[held_out]))
    assert found > 0.96
    assert linear < 0.93
