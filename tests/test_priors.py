"""Priors against scipy.stats, closed forms and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from skvae._gaussian import CorrelatedGaussian, DiagonalGaussian
from skvae.posteriors import (
    EncoderPosterior,
    JointPosterior,
    ProductPosterior,
)
from skvae.priors import ConditionalGaussian, GaussianMixture, StandardNormal

R, B, D, C = 2, 6, 3, 5


def generators(n=R):
    return [torch.Generator().manual_seed(s) for s in range(n)]


def draw(seed, *shape):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def conditional(*, n_replicas=R, n_values=C, n_latents=D, discrete=True, **options):
    """A built prior in double precision with a mixture of unequal weights."""
    m = n_values if discrete else 2
    prior = ConditionalGaussian(**options).build(
        n_latents, m, discrete, generators(n_replicas)
    )
    prior = prior.double().requires_grad_(False)
    prior.mean.weight.mul_(5.0)
    prior.log_scale.weight.mul_(0.5 if discrete else 1.0)
    grid = torch.eye(m).double() if discrete else draw(3, n_values, m)
    log_weights = torch.log_softmax(draw(4, n_values), dim=0)
    prior.set_mixture(grid, log_weights)
    return prior


def mixture(n_replicas=R, n_mixtures=C):
    prior = GaussianMixture(n_mixtures).build(D, 0, True, generators(n_replicas))
    prior = prior.double().requires_grad_(False)
    prior.raw_log_scale.copy_(0.5 * draw(5, *prior.raw_log_scale.shape))
    prior.logits.copy_(draw(6, *prior.logits.shape))
    return prior


def parts(prior):
    """Means, scales ``(R, C, d)`` and weights ``(R, C)`` of p(z), as arrays."""
    if hasattr(prior, "grid"):
        given = prior.given(prior.grid)
        weights = prior.grid_log_weights.exp().expand(len(given.loc), -1)
    else:
        given, weights = prior.components(), prior.log_weights().exp()
    return given.loc.numpy(), given.scale.numpy(), weights.numpy()


def mixture_logpdf(prior, z, axis=None):
    """Log p(z), or of the marginal of coordinate `axis`, by scipy."""
    loc, scale, weights = parts(prior)
    terms = norm(loc[:, None], scale[:, None]).logpdf(z.numpy()[:, :, None, :])
    terms = terms.sum(-1) if axis is None else terms[..., axis]
    return logsumexp(terms + np.log(weights)[:, None], axis=-1)


MIXTURES = pytest.mark.parametrize(
    "make",
    [conditional, lambda: conditional(discrete=False), mixture],
    ids=["discrete u", "continuous u", "gaussian mixture"],
)


def posterior(seed=10, n=B):
    return DiagonalGaussian(draw(seed, R, n, D), 0.5 * draw(seed + 1, R, n, D))


def correlated(seed=10, n=B):
    factor = torch.tril(draw(seed, R, n, D, D), -1) + 1.5 * torch.eye(D).double()
    return CorrelatedGaussian(draw(seed + 1, R, n, D), factor)


POSTERIORS = pytest.mark.parametrize("make_q", [posterior, correlated])


# ------------------------------------------------------------------ densities


def test_standard_normal_equals_scipy():
    prior, z = StandardNormal().build(D, 0, True, generators()), draw(0, R, B, D)
    np.testing.assert_allclose(prior.log_prob(z), norm.logpdf(z).sum(-1))
    q = posterior()
    torch.testing.assert_close(prior.kl(q, z), prior.kl_per_dimension(q, z).sum(-1))


@MIXTURES
def test_log_prob_without_u_equals_scipy(make):
    prior, z = make(), 3.0 * draw(0, R, B, D)
    got = prior.log_prob(z)
    assert got.shape == (R, B)
    np.testing.assert_allclose(got, mixture_logpdf(prior, z), rtol=1e-10)


@pytest.mark.parametrize("discrete", [True, False])
def test_log_prob_with_u_equals_scipy(discrete):
    prior, z = conditional(discrete=discrete), draw(0, R, C, D)
    loc, scale, _ = parts(prior)
    expected = norm(loc, scale).logpdf(z).sum(-1)
    np.testing.assert_allclose(prior.log_prob(z, prior.grid), expected, rtol=1e-10)


def test_continuous_u_is_read_by_one_hidden_layer():
    prior = conditional(discrete=False, width=7)
    u = draw(2, 1, B, 2)
    hidden = torch.tanh(u @ prior.hidden.weight + prior.hidden.bias)
    given = prior.given(u)
    torch.testing.assert_close(given.loc, hidden @ prior.mean.weight + prior.mean.bias)
    raw = hidden @ prior.log_scale.weight + prior.log_scale.bias
    torch.testing.assert_close(given.log_scale, 8.0 * torch.tanh(raw / 8.0))


@pytest.mark.parametrize(
    ("options", "fixed"), [({"mean": "zero"}, "loc"), ({"variance": "unit"}, "scale")]
)
def test_what_is_not_learned_does_not_depend_on_u(options, fixed):
    given = conditional(**options).given(torch.eye(C).double().unsqueeze(0))
    expected = 0.0 if fixed == "loc" else 1.0
    assert (getattr(given, fixed) == expected).all()
    other = given.scale if fixed == "loc" else given.loc
    assert other.std(1).min() > 0.05


@pytest.mark.parametrize(
    "options", [{"mean": "free"}, {"variance": "zero"}], ids=["mean", "variance"]
)
def test_unknown_choices_are_refused(options):
    with pytest.raises(ValueError, match="parameter of ConditionalGaussian must be"):
        ConditionalGaussian(**options).build(D, C, True, generators())


# ------------------------------------------------------------------------- KL


@POSTERIORS
def test_kl_given_u_is_the_closed_form(make_q):
    prior, q = conditional(), make_q(n=C)
    z = torch.full((R, C, D), torch.nan).double()
    got = prior.kl(q, z, prior.grid)
    loc, scale, _ = parts(prior)
    expected = q.kl(DiagonalGaussian(torch.tensor(loc), torch.tensor(scale).log()))
    torch.testing.assert_close(got, expected)
    draws = q.sample(draw(8, 20_000, R, C, D))
    log_p = norm(loc, scale).logpdf(draws).sum(-1)
    ratio = q.log_prob(draws).numpy() - log_p
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert (np.abs(ratio.mean(0) - got.numpy()) < 5.0 * error).all()


@POSTERIORS
@MIXTURES
def test_kl_without_u_is_unbiased(make, make_q):
    prior, n = make(), 20_000
    q = make_q(n=1)
    wide = type(q)(
        *(
            t.expand(R, n, *t.shape[2:])
            for t in (q.loc, q.factor if make_q is correlated else q.log_scale)
        )
    )
    z = wide.sample(draw(8, R, n, D))
    estimates = prior.kl(wide, z)
    expected = wide.log_prob(z).numpy() - mixture_logpdf(prior, z)
    np.testing.assert_allclose(estimates, expected, rtol=1e-8, atol=1e-10)
    assert (estimates.mean(1) > -5.0 * estimates.std(1) / n**0.5).all()


@POSTERIORS
@MIXTURES
def test_kl_per_dimension_without_u_is_that_of_the_marginals(make, make_q):
    prior, q = make(), make_q()
    z = q.sample(draw(8, R, B, D))
    got = prior.kl_per_dimension(q, z)
    for d in range(D):
        own = norm(q.loc[..., d], q.scale[..., d]).logpdf(z[..., d])
        expected = own - mixture_logpdf(prior, z, axis=d)
        np.testing.assert_allclose(got[..., d], expected, rtol=1e-8, atol=1e-10)


def test_kl_of_one_component_to_its_mixture_is_at_most_its_rarity():
    prior = mixture()
    components = prior.components()
    z = components.sample(draw(8, R, C, D))
    assert (prior.kl(components, z) <= -prior.log_weights() + 1e-9).all()


# ------------------------------------------------------------ moments, draws


def mixture_moments(prior):
    loc, scale, weights = parts(prior)
    weights = weights[..., None]
    mean = (weights * loc).sum(1)
    second = (weights * (loc**2 + scale**2)).sum(1)
    return mean, second - mean**2


@pytest.mark.parametrize("discrete", [True, False])
def test_marginal_has_the_moments_of_the_mixture(discrete):
    prior = conditional(discrete=discrete)
    marginal = prior.marginal()
    mean, variance = mixture_moments(prior)
    np.testing.assert_allclose(marginal.loc[:, 0], mean, atol=1e-12)
    np.testing.assert_allclose(marginal.scale[:, 0] ** 2, variance, rtol=1e-10)


@pytest.mark.parametrize("discrete", [True, False, None])
def test_draws_have_the_moments_of_the_mixture(discrete):
    n = 40_000
    prior = (
        mixture(n_replicas=1)
        if discrete is None
        else conditional(n_replicas=1, discrete=discrete)
    )
    z = prior.sample(n, None, torch.Generator().manual_seed(0)).double().numpy()
    mean, variance = mixture_moments(prior)
    assert z.shape == (1, n, D)
    error = z.std(1) / n**0.5
    assert (np.abs(z.mean(1) - mean) < 5.0 * error).all()
    spread = ((z - z.mean(1, keepdims=True)) ** 2).std(1) / n**0.5
    assert (np.abs(z.var(1) - variance) < 5.0 * spread).all()


def test_draws_given_u_follow_that_u():
    prior, n = conditional(), 20_000
    u = torch.eye(C).double()[[1] * n].unsqueeze(0)
    z = prior.sample(len(u[0]), u, torch.Generator().manual_seed(0)).double().numpy()
    loc, scale, _ = parts(prior)
    error = scale[:, 1] / n**0.5
    assert (np.abs(z.mean(1) - loc[:, 1]) < 5.0 * error).all()
    np.testing.assert_allclose(z.std(1), scale[:, 1], rtol=0.04)


def test_standard_normal_draws():
    prior = StandardNormal().build(D, 0, True, generators(1))
    z = prior.sample(20_000, None, torch.Generator().manual_seed(0))
    assert z.shape == (1, 20_000, D)
    assert z.mean(1).abs().max() < 0.04
    assert (z.std(1) - 1.0).abs().max() < 0.03


# ------------------------------------------------------------------- replicas


@pytest.mark.parametrize("discrete", [True, False])
def test_replica_equals_the_prior_built_from_its_own_stream(discrete):
    u = draw(2, 1, B, 4)
    together = ConditionalGaussian().build(D, 4, discrete, generators(3)).double()
    for r in range(3):
        own = [torch.Generator().manual_seed(r)]
        alone = ConditionalGaussian().build(D, 4, discrete, own).double()
        for a, b in zip(alone.given(u), together.given(u), strict=True):
            torch.testing.assert_close(a[0], b[r])


def test_replica_equals_the_mixture_built_from_its_own_stream():
    z = draw(2, 3, B, D)
    together = GaussianMixture(4).build(D, 0, True, generators(3)).double()
    for r in range(3):
        own = [torch.Generator().manual_seed(r)]
        alone = GaussianMixture(4).build(D, 0, True, own).double()
        torch.testing.assert_close(
            alone.log_prob(z[r : r + 1])[0], together.log_prob(z)[r]
        )


# ---------------------------------------------------------------- assumptions


def verdicts(report):
    return {name: met for name, (met, _) in report["assumptions"].items()}


def spread_out(prior, seed=0):
    """Random means and log variances per category: the generic case."""
    prior.mean.weight.copy_(draw(seed, *prior.mean.weight.shape))
    prior.log_scale.weight.copy_(0.4 * draw(seed + 1, *prior.log_scale.weight.shape))
    return prior


@pytest.mark.parametrize(
    ("options", "n_values", "rank", "needed", "met"),
    [
        ({"mean": "zero"}, 40, 5, 5, True),
        ({}, 40, 10, 10, True),
        ({}, 11, 10, 10, True),
        ({}, 10, 9, 10, False),
        ({"mean": "zero"}, 6, 5, 5, True),
        ({"mean": "zero"}, 4, 3, 5, False),
        ({"variance": "unit"}, 40, 5, 5, True),
    ],
)
def test_rank_of_the_l_matrix(options, n_values, rank, needed, met):
    prior = spread_out(
        conditional(n_replicas=1, n_latents=5, n_values=n_values, **options)
    )
    report = prior.assumptions()
    assert report["l_matrix_rank"] == rank
    assert report["l_matrix_full_rank"] == needed
    assert (report["l_matrix_condition"] < 1e3) == met
    found = verdicts(report)
    assert found["L-matrix of full rank"] == met
    assert found["enough values of u"] == met
    assert found["variance depends on u"] == ("variance" not in options)


def test_condition_of_the_l_matrix_is_numpy_s():
    prior = spread_out(conditional(n_replicas=1, n_latents=2, n_values=8))
    loc, scale, _ = (a[0] for a in parts(prior))
    rows = np.hstack([loc / scale**2, -0.5 / scale**2])
    rows -= rows.mean(0)
    rows /= np.linalg.norm(rows, axis=0)
    condition = prior.assumptions()["l_matrix_condition"]
    assert condition == pytest.approx(np.linalg.cond(rows), rel=1e-6)


def test_duplicated_latent_makes_the_l_matrix_rank_deficient():
    prior = spread_out(conditional(n_replicas=1, n_values=40))
    for layer in (prior.mean, prior.log_scale):
        layer.weight[..., 1] = layer.weight[..., 0]
    report = prior.assumptions()
    assert report["l_matrix_rank"] == 4
    assert not verdicts(report)["L-matrix of full rank"]


def test_prior_that_ignores_u_identifies_nothing():
    prior = conditional(n_replicas=1, n_values=40)
    prior.mean.weight.zero_()
    prior.log_scale.weight.zero_()
    report = prior.assumptions()
    assert report["l_matrix_rank"] == 0
    assert not verdicts(report)["L-matrix of full rank"]
    nothing = conditional(n_replicas=1, mean="zero", variance="unit").assumptions()
    assert not any(verdicts(nothing).values())


@pytest.mark.parametrize(("n_mixtures", "rank"), [(1, 0), (2, 1), (3, 2), (4, 3)])
def test_rank_of_the_mixture_means(n_mixtures, rank):
    prior = mixture(n_replicas=1, n_mixtures=n_mixtures)
    prior.logits.zero_()
    report = prior.assumptions()
    assert report["n_mixtures_used"] == n_mixtures
    assert report["means_rank"] == rank
    found = verdicts(report)
    assert found["two or more mixture components"] == (n_mixtures >= 2)
    assert found["component means of full rank"] == (rank == D)


def test_components_without_weight_do_not_count():
    prior = mixture(n_replicas=1)
    prior.logits.zero_()
    prior.logits[..., 2:] = -20.0
    report = prior.assumptions()
    assert report["n_mixtures_used"] == 2
    assert report["means_rank"] == 1


def test_standard_normal_identifies_nothing():
    report = StandardNormal().build(D, 0, True, generators()).assumptions()
    assert report["theorem"] is None
    assert not any(verdicts(report).values())


# ----------------------------------------------------------------- posteriors


@pytest.mark.parametrize("family", [EncoderPosterior, ProductPosterior, JointPosterior])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_every_output_of_the_encoder_is_read(family, covariance):
    part = family(covariance).build()
    n = part.n_outputs(D)
    assert n == (2 * D if covariance == "diagonal" else D * (D + 3) // 2)
    raw = draw(0, R, B, n).requires_grad_()
    q = part.read(raw, D)
    z = draw(1, R, B, D)
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), raw)
    assert (gradient.abs() > 0).all()
    assert q.loc.shape == q.scale.shape == (R, B, D)


def test_full_covariance_without_correlations_is_the_diagonal_one():
    raw = draw(0, R, B, D * (D + 3) // 2)
    raw[..., 2 * D :] = 0.0
    full = EncoderPosterior("full").build().read(raw, D)
    diagonal = EncoderPosterior().build().read(raw[..., : 2 * D], D)
    torch.testing.assert_close(full.scale, diagonal.scale)
    torch.testing.assert_close(full.loc, diagonal.loc)


def test_unknown_covariance_is_refused():
    with pytest.raises(ValueError, match="'covariance' parameter of EncoderPosterior"):
        EncoderPosterior("banded").build()


@pytest.mark.parametrize("make_q", [posterior, correlated])
def test_product_posterior_multiplies_by_the_prior(make_q):
    prior, encoded, family = conditional(), make_q(n=C), ProductPosterior()
    z = draw(1, 30, R, C, D)
    q = family.combine(encoded, prior, prior.grid)
    gap = q.log_prob(z) - encoded.log_prob(z)
    gap = gap - torch.stack([prior.log_prob(one, prior.grid) for one in z])
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-8, atol=1e-8)
    without = family.combine(encoded, prior, None)
    gap = without.log_prob(z) - encoded.log_prob(z) - prior.marginal().log_prob(z)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-8, atol=1e-8)


def test_encoder_posterior_ignores_the_prior():
    encoded = posterior()
    assert EncoderPosterior().combine(encoded, conditional(), None) is encoded


def test_joint_posterior_reads_x_and_u():
    family, x, u = JointPosterior(), draw(0, R, B, 4), draw(1, 1, B, 2)
    joined = family.inputs(x, u)
    assert joined.shape == (R, B, family.n_inputs(4, 2))
    torch.testing.assert_close(joined[1], torch.cat([x[1], u[0]], dim=-1))
    with pytest.raises(ValueError, match="u must be passed"):
        family.inputs(x, None)
