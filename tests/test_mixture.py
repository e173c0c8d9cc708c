"""Mixture VAEs: exact sums over components against closed forms, and what they find."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn import mixture
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from torch import distributions

from skvae import LIDMVAE, MixtureVAE, PosteriorCollapseWarning, load, save
from skvae._batches import Data
from skvae._gaussian import DiagonalGaussian
from skvae._model import Frame, LatentVariableModel, Parts
from skvae._random import Seeds
from skvae.datasets import make_pinwheel
from skvae.estimators._fitting import Auxiliary, build_model, prepare
from skvae.likelihoods import Gaussian
from skvae.objectives import ELBO, IWAE
from skvae.posteriors import CategoricalGaussian, EncoderPosterior, EnumeratedPosterior
from skvae.priors import GaussianMixture, _cluster_centres

R, B, C, D = 2, 6, 4, 3

pytestmark = pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")

CLASSES = pytest.mark.parametrize("cls", [MixtureVAE, LIDMVAE])
TYPES = pytest.mark.parametrize("posterior_type", ["marginal", "enumerated"])


def draw(seed, *shape):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def generators(n=R):
    return [torch.Generator().manual_seed(s) for s in range(n)]


def prior(weights="learned", n_replicas=R, n_latents=D, n_mixtures=C):
    built = GaussianMixture(n_mixtures, weights).build(
        n_latents, 0, True, generators(n_replicas)
    )
    built = built.double().requires_grad_(False)
    built.raw_log_scale.copy_(0.5 * draw(5, *built.raw_log_scale.shape))
    if weights == "learned":
        built.logits.copy_(draw(6, *built.logits.shape))
    return built


def categorical(seed=0):
    log_weights = torch.log_softmax(draw(seed, R, B, C), dim=-1)
    parts = DiagonalGaussian(draw(seed + 1, R, B, C, D), 0.4 * draw(2, R, B, C, D))
    return CategoricalGaussian(log_weights, parts)


def as_torch(q):
    return distributions.MixtureSameFamily(
        distributions.Categorical(logits=q.log_weights),
        distributions.Independent(
            distributions.Normal(q.parts.loc, q.parts.scale),
            reinterpreted_batch_ndims=1,
        ),
    )


# ------------------------------------------------------------- the enumerated posterior


def test_moments_and_density_of_the_enumerated_posterior():
    q = categorical()
    expected = as_torch(q)
    torch.testing.assert_close(q.loc, expected.mean)
    torch.testing.assert_close(q.scale, expected.stddev)
    z = draw(9, R, 5, B, D)
    log_prob = torch.stack([expected.log_prob(one) for one in z.unbind(1)], dim=1)
    torch.testing.assert_close(q.log_prob(z), log_prob)


def test_draws_hold_one_code_per_component():
    q, noise = categorical(), draw(7, R, B, D)
    z = q.sample(noise)
    assert z.shape == (R, B * C, D)
    by_component = z.view(R, B, C, D)
    standardised = (by_component - q.parts.loc) / q.parts.scale
    torch.testing.assert_close(standardised, noise.unsqueeze(2).expand_as(standardised))
    values = by_component.sum(-1)
    torch.testing.assert_close(
        q.expectation(values.flatten(1)), (q.weights * values).sum(-1)
    )


@pytest.mark.parametrize("weights", ["learned", "uniform"])
def test_kl_to_a_mixture_prior_equals_that_of_the_joint_laws(weights):
    q, p = categorical(), prior(weights)
    components, log_weights = p.components(), p.log_weights().expand(R, C)
    given = distributions.Normal(
        components.loc.unsqueeze(1), components.scale.unsqueeze(1)
    )
    own = distributions.Normal(q.parts.loc, q.parts.scale)
    within = distributions.kl_divergence(own, given)
    discrete = distributions.kl_divergence(
        distributions.Categorical(logits=q.log_weights),
        distributions.Categorical(logits=log_weights.unsqueeze(1).expand(R, B, C)),
    )
    continuous = (q.weights.unsqueeze(-1) * within).sum(2)
    z = q.sample(draw(8, R, B, D))
    torch.testing.assert_close(p.kl(q, z), continuous.sum(-1) + discrete)
    torch.testing.assert_close(p.kl_per_dimension(q, z), continuous)


def test_uniform_weights_are_not_parameters():
    fixed, learned = prior("uniform"), prior("learned")
    torch.testing.assert_close(
        fixed.log_weights().exp().sum(), torch.tensor(1.0).double()
    )
    assert "logits" not in dict(fixed.named_parameters())
    assert "logits" in dict(learned.named_parameters())
    assert fixed.log_weights().std() == 0


# ---------------------------------------- a linear mixture, where log p(x) is known


class Affine(torch.nn.Module):
    """The decoder W z + b."""

    def __init__(self, W, b):
        super().__init__()
        self.W, self.b = W, b

    def forward(self, z):
        return z @ self.W.T + self.b


class Answer(torch.nn.Module):
    """An encoder that gives back what it was told to."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x):
        return self.raw


NOISE = 0.7


def raw_scale(scale):
    """What an encoder says for a standard deviation, before it is bounded."""
    return 8.0 * torch.atanh(torch.log(scale) / 8.0)


def linear_mixture(posterior_type, error=0.0):
    """A model with orthogonal W, its rows and log p(x) of each.

    The encoder gives the exact posterior, which is diagonal given y, with its means
    wrong by `error` posterior standard deviations; or, for the marginal type, the
    Gaussian with the exact posterior's moments.
    """
    p = prior("learned", n_replicas=1, n_latents=2, n_mixtures=3)
    W = torch.linalg.qr(draw(1, 4, 2)).Q * torch.tensor([1.5, 0.6]).double()
    b = draw(2, 4)
    x = 2.0 * draw(3, 1, B, 4)
    m, s2 = p.components().loc[0], p.components().scale[0].square()
    log_pi = p.log_weights()[0]
    log_joint = torch.stack(
        [
            log_pi[y]
            + torch.from_numpy(
                multivariate_normal(
                    W @ m[y] + b,
                    W @ torch.diag(s2[y]) @ W.T + NOISE**2 * torch.eye(4),
                ).logpdf(x[0])
            )
            for y in range(3)
        ],
        dim=-1,
    )
    precision = 1.0 / s2 + (W.square().sum(0) / NOISE**2)
    scale = precision.rsqrt().expand(1, B, 3, 2)
    pull = ((x - b) @ W / NOISE**2).unsqueeze(2)
    loc = (m / s2 + pull) / precision + error * scale
    log_p = torch.logsumexp(log_joint, dim=-1)
    exact = CategoricalGaussian(
        (log_joint - log_p.unsqueeze(-1)).unsqueeze(0),
        DiagonalGaussian(loc, torch.log(scale)),
    )
    if posterior_type == "enumerated":
        family = EnumeratedPosterior(3)
        parts = [exact.log_weights, loc.flatten(2), raw_scale(scale).flatten(2)]
    else:
        family = EncoderPosterior()
        parts = [exact.loc, raw_scale(exact.scale)]
    modules = Parts(
        encoder=Answer(torch.cat(parts, dim=-1)),
        decoder=Affine(W, b),
        prior=p,
        likelihood=Gaussian(noise=NOISE).build(4, 1).double(),
        posterior=family,
    )
    return LatentVariableModel(modules, Frame(4, 4).double(), 2, 1), x, log_p


def test_one_draw_is_exact_where_the_posterior_is():
    model, x, log_p = linear_mixture("enumerated")
    log_weights = model.importance_log_weights(x, None, draw(4, 7, 2))
    assert log_weights.shape == (1, 7, B)
    torch.testing.assert_close(log_weights, log_p.expand(1, 7, B))


def test_enumerated_bound_is_tight_where_the_posterior_is_exact():
    model, x, log_p = linear_mixture("enumerated")
    n = 4000
    # Antithetic pairs: the bound is quadratic in the noise, so odd terms cancel.
    half = draw(5, 1, n // 2, 2)
    total = torch.zeros(B, dtype=torch.float64)
    for row in range(B):
        model.encoder.raw, kept = model.encoder.raw[:, row : row + 1], model.encoder.raw
        model.encoder.raw = model.encoder.raw.expand(1, n, -1)
        one = x[:, row : row + 1].expand(1, n, -1)
        q = model.posterior(one)
        noise = torch.cat([half, -half], dim=1)
        terms = ELBO().build(1.0, model.prior).terms(model, one, None, q, noise, 1.0)
        total[row] = (terms.log_likelihood - terms.kl).mean()
        model.encoder.raw = kept
    np.testing.assert_allclose(total, log_p, atol=0.05)


@TYPES
def test_importance_estimate_reaches_the_marginal_likelihood(posterior_type):
    model, x, log_p = linear_mixture(posterior_type, error=0.6)
    n = 40_000
    log_weights = model.importance_log_weights(x, None, draw(6, n, 2))
    estimate = torch.logsumexp(log_weights, dim=1) - math.log(n)
    np.testing.assert_allclose(estimate[0], log_p, atol=0.03)
    # A single draw is far off, or the agreement above says little.
    assert log_weights.std(1).max() > 0.1


@TYPES
def test_objective_bounds_the_marginal_likelihood(posterior_type):
    model, x, log_p = linear_mixture(posterior_type, error=0.6)
    q = model.posterior(x)
    values = []
    for seed in range(400):
        terms = (
            ELBO()
            .build(1.0, model.prior)
            .terms(model, x, None, q, draw(100 + seed, 1, B, 2), 1.0)
        )
        torch.testing.assert_close(terms.loss, terms.kl - terms.log_likelihood)
        values.append(-terms.loss[0])
    mean = torch.stack(values).mean(0)
    assert (mean < log_p - 0.05).all()
    assert (mean > log_p - 5.0).all()


def test_responsibilities_equal_those_of_scikit_learn():
    p = prior("learned", n_replicas=1)
    reference = mixture.GaussianMixture(C, covariance_type="diag")
    reference.weights_ = p.log_weights()[0].exp().numpy()
    reference.means_ = p.components().loc[0].numpy()
    reference.covariances_ = p.components().scale[0].square().numpy()
    reference.precisions_cholesky_ = 1.0 / p.components().scale[0].numpy()
    reference.n_features_in_ = D
    z = 2.0 * draw(3, 1, 50, D)
    np.testing.assert_allclose(
        p.responsibilities(z)[0], reference.predict_proba(z[0].numpy()), atol=1e-12
    )
    np.testing.assert_allclose(p.log_prob(z)[0], reference.score_samples(z[0].numpy()))


def test_marginal_memberships_are_the_mean_of_bayes_rule():
    p = prior("learned", n_replicas=1)
    q = DiagonalGaussian(draw(1, 1, B, D), 0.3 * draw(2, 1, B, D))
    noise = draw(3, 9, D)
    found = EncoderPosterior().memberships(p, q, noise)
    expected = torch.stack([p.responsibilities(q.sample(e)) for e in noise]).mean(0)
    torch.testing.assert_close(found, expected)


# --------------------------------------------------------------------------- the start


def test_cluster_centres_find_separated_clusters():
    X, _, centres = make_blobs(
        400, centers=4, cluster_std=0.3, random_state=3, return_centers=True
    )
    found = _cluster_centres(torch.tensor(X), torch.ones(400).double(), 4)
    order = np.argsort(centres[:, 0])
    ours = found[found[:, 0].argsort()]
    np.testing.assert_allclose(ours, centres[order], atol=0.15)


def test_a_row_of_weight_two_counts_as_two_rows():
    codes, weight = draw(0, 60, 2), torch.arange(60).double() % 3 + 1.0
    repeated = codes.repeat_interleave(weight.long(), dim=0)
    weighted = _cluster_centres(codes, weight, 5)
    ones = torch.ones(len(repeated)).double()
    torch.testing.assert_close(weighted, _cluster_centres(repeated, ones, 5))
    plain = _cluster_centres(codes, torch.ones(60).double(), 5)
    assert (plain - weighted).abs().max() > 1e-3


def test_equal_codes_give_equal_centres():
    found = _cluster_centres(torch.ones(9, 2).double(), torch.ones(9).double(), 3)
    assert (found == 1.0).all()


@TYPES
def test_replicas_start_and_bound_as_they_do_alone(posterior_type):
    parts = MixtureVAE(2, n_mixtures=3, posterior_type=posterior_type, width=8)._parts(
        conditional=False
    )
    data = Data(draw(0, 40, 4).float(), None, torch.ones(40))
    seeds = [Seeds(1, 2, 3), Seeds(4, 5, 6)]

    def bound_of(seeds):
        model = build_model(parts, 2, 4, Auxiliary(), seeds)
        prepare(model, data, Auxiliary())
        x = data.x.unsqueeze(0)
        q = model.posterior(x)
        noise = draw(1, 1, 40, 2).float().expand(len(seeds), -1, -1)
        objective = ELBO().build(1.0, model.prior)
        return objective.terms(model, x, None, q, noise, 1.0), model.prior.loc

    together, placed = bound_of(seeds)
    assert (placed[0] - placed[1]).abs().max() > 0.01
    for replica, seed in enumerate(seeds):
        alone, own = bound_of([seed])
        torch.testing.assert_close(placed[replica], own[0])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[replica], b[0], rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------- estimators


def three_blobs(n=300):
    X, y = make_blobs(
        n, n_features=4, centers=3, cluster_std=0.6, random_state=5, shuffle=True
    )
    return X, y


SMALL = {
    "n_components": 2,
    "n_mixtures": 3,
    "width": 16,
    "max_iter": 40,
    "learning_rate": 5e-3,
    "n_init": 2,
    "random_state": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def fits():
    X, y = three_blobs()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        for cls in (MixtureVAE, LIDMVAE):
            for kind in ("marginal", "enumerated"):
                found[cls, kind] = cls(posterior_type=kind, **SMALL).fit(X)
    return found, X, y


@CLASSES
@TYPES
def test_answers_are_consistent(cls, posterior_type, fits):
    found, X, _ = fits
    vae = found[cls, posterior_type]
    P = vae.predict_proba(X)
    assert P.shape == (300, 3)
    np.testing.assert_allclose(P.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(vae.predict(X), P.argmax(axis=1))
    np.testing.assert_array_equal(vae.labels_, vae.predict(X))
    counts = np.bincount(vae.labels_, minlength=3)
    assert (np.diff(counts) <= 0).all()
    assert vae.weights_ == pytest.approx([1 / 3] * 3)
    assert vae.means_.shape == vae.covariances_.shape == (3, 2)
    assert vae.predict_proba(X.astype(np.float32)).dtype == np.float32
    # A row's answer does not depend on the rows beside it.
    np.testing.assert_allclose(vae.predict_proba(X[7:8]), P[7:8], rtol=1e-9)


@CLASSES
@TYPES
def test_the_parts_of_the_kl_sum_to_it(cls, posterior_type, fits):
    found, X, _ = fits
    vae = found[cls, posterior_type]
    P = np.clip(vae.predict_proba(X), 1e-300, None)
    discrete = (P * np.log(3 * P)).sum(axis=1).mean()
    assert vae.kl_discrete_ == pytest.approx(discrete, rel=1e-3)
    # The whole KL from draws of its own.
    module, x = vae.module_, torch.tensor(X, dtype=torch.float32).unsqueeze(0)
    q = module.posterior(x)
    draws = [q.sample(draw(seed, 1, 300, 2).float()) for seed in range(200)]
    total = np.mean([float(module.prior.kl(q, z).mean()) for z in draws])
    assert vae.kl_discrete_ + vae.kl_continuous_ == pytest.approx(total, rel=0.05)
    assert vae.kl_continuous_ > 0.0


def test_enumerated_components_sum_to_the_continuous_part(fits):
    found, *_ = fits
    vae = found[MixtureVAE, "enumerated"]
    assert vae.kl_per_component_.sum() == pytest.approx(vae.kl_continuous_, rel=1e-4)


def test_one_component_has_no_discrete_part():
    X, _ = three_blobs(60)
    vae = MixtureVAE(2, n_mixtures=1, width=8, max_iter=2, random_state=0).fit(X)
    assert vae.kl_discrete_ == pytest.approx(0.0, abs=1e-6)
    assert (vae.labels_ == 0).all()


@TYPES
def test_injective_decoder_finds_the_clusters(posterior_type, fits):
    found, _, y = fits
    vae = found[LIDMVAE, posterior_type]
    assert vae.inverse_lipschitz_ > 0
    assert adjusted_rand_score(y, vae.labels_) > 0.9


@pytest.mark.parametrize("decoder", ["anchored", "brenier"])
def test_certificate_holds(decoder):
    X, _ = three_blobs(80)
    vae = LIDMVAE(
        2, n_mixtures=3, decoder=decoder, width=8, max_iter=3, random_state=0
    ).fit(X)
    rng = np.random.default_rng(0)
    a, b = 3.0 * rng.standard_normal((2, 200, 2))
    apart = np.linalg.norm(vae.inverse_transform(a) - vae.inverse_transform(b), axis=1)
    slope = apart / np.linalg.norm(a - b, axis=1)
    assert slope.min() >= vae.inverse_lipschitz_ * (1 - 1e-6)


def test_draws_of_one_component_belong_to_it(fits):
    found, X, _ = fits
    vae = found[LIDMVAE, "marginal"]
    for component in range(3):
        rows = vae.sample(200, component=component, random_state=0)
        assert (vae.predict(rows) == component).mean() > 0.9
    everything = vae.sample(600, random_state=1)
    shares = np.bincount(vae.predict(everything), minlength=3) / 600
    assert shares == pytest.approx([1 / 3] * 3, abs=0.08)
    np.testing.assert_allclose(everything.mean(axis=0), X.mean(axis=0), atol=1.0)


@pytest.mark.parametrize("component", [3, -1, 0.5, "0"])
def test_unknown_components_are_refused(component, fits):
    found, *_ = fits
    with pytest.raises(ValueError, match="component must be an integer from 0 to 2"):
        found[MixtureVAE, "marginal"].sample(2, component=component)


@TYPES
def test_means_are_ordered_as_codes_and_labels(posterior_type, fits):
    found, X, _ = fits
    vae = found[LIDMVAE, posterior_type]
    Z = vae.transform(X)
    for component in range(3):
        centre = Z[vae.labels_ == component].mean(axis=0)
        distances = np.linalg.norm(vae.means_ - centre, axis=1)
        assert distances.argmin() == component


def test_learned_weights_follow_the_shares():
    X, _ = make_blobs(
        [240, 60], n_features=4, centers=None, cluster_std=0.5, random_state=2
    )
    vae = LIDMVAE(**{**SMALL, "n_mixtures": 2, "n_init": 1, "weights": "learned"}).fit(
        X
    )
    assert vae.weights_ == pytest.approx([0.8, 0.2], abs=0.05)


@TYPES
def test_estimator_can_be_saved_pickled_and_continued(posterior_type, tmp_path):
    X, _ = three_blobs(60)
    vae = LIDMVAE(
        2, n_mixtures=3, posterior_type=posterior_type, width=8, max_iter=2, n_draws=5
    )
    vae.set_params(random_state=0).fit(X)
    save(vae, tmp_path / "mixture.skvae")
    for again in (load(tmp_path / "mixture.skvae"), pickle.loads(pickle.dumps(vae))):
        np.testing.assert_array_equal(again.predict_proba(X), vae.predict_proba(X))
        np.testing.assert_array_equal(again.score_samples(X), vae.score_samples(X))
        np.testing.assert_array_equal(
            again.sample(3, component=1, random_state=0),
            vae.sample(3, component=1, random_state=0),
        )
    before = vae.score(X)
    vae.partial_fit(X[:20])
    assert vae.labels_.shape == (20,)
    vae.set_params(warm_start=True, max_iter=30, learning_rate=5e-3).fit(X)
    assert vae.labels_.shape == (60,)
    assert vae.score(X) > before


def test_number_of_components_can_be_searched():
    X, _ = three_blobs(90)
    vae = MixtureVAE(2, width=8, max_iter=2, n_draws=5, random_state=0)
    grid = {"n_mixtures": [1, 3], "posterior_type": ["marginal", "enumerated"]}
    search = GridSearchCV(vae, grid, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_params_["n_mixtures"]
    assert search.best_estimator_.predict_proba(X).shape[1] == best


def test_objectives_that_need_one_gaussian_refuse_the_enumerated_posterior():
    X, _ = three_blobs(40)
    vae = MixtureVAE(2, n_mixtures=3, width=8, max_iter=1, objective=IWAE(2))
    assert np.isfinite(vae.fit(X).score(X))
    with pytest.raises(ValueError, match="posterior_type='marginal'"):
        clone(vae).set_params(posterior_type="enumerated").fit(X)


@pytest.mark.parametrize(
    "params", [{"n_mixtures": 0}, {"posterior_type": "exact"}, {"weights": "equal"}]
)
@CLASSES
def test_bad_parameters_are_refused(cls, params):
    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter of"):
        cls(**params).fit(three_blobs(20)[0])


def test_injective_decoder_separates_arms_of_a_pinwheel():
    X, arms = make_pinwheel(1200, random_state=0)
    vae = LIDMVAE(
        **{**SMALL, "n_mixtures": 5, "width": 32, "n_init": 1},
        likelihood=Gaussian(noise=1.0),
    ).fit(X)
    start = clone(vae).set_params(max_iter=1).fit(X)
    found = adjusted_rand_score(arms, vae.labels_)
    assert found > 0.6
    assert found > adjusted_rand_score(arms, start.labels_) + 0.1
    assert vae.kl_discrete_ > 1.0
