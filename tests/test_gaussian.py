"""Gaussians against scipy.stats and closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from skvae._gaussian import CorrelatedGaussian, DiagonalGaussian, bounded_log_scale

D = 3
SHAPE = (2, 4)


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def diagonal(seed=0):
    return DiagonalGaussian(draw(seed, *SHAPE, D), 0.6 * draw(seed + 1, *SHAPE, D))


def correlated(seed=0):
    factor = torch.tril(draw(seed + 2, *SHAPE, D, D), -1)
    scale = torch.exp(0.5 * draw(seed + 3, *SHAPE, D))
    return CorrelatedGaussian(draw(seed, *SHAPE, D), factor + torch.diag_embed(scale))


FAMILIES = pytest.mark.parametrize("make", [diagonal, correlated])


def covariance(q):
    if isinstance(q, DiagonalGaussian):
        return torch.diag_embed(torch.exp(2.0 * q.log_scale))
    return torch.linalg.inv(q.factor @ q.factor.mT)


def closed_form_kl(q, other):
    """KL between full Gaussians, one by one, in numpy."""
    kl = np.empty(SHAPE)
    for index in np.ndindex(SHAPE):
        m, s = q.loc[index].numpy(), covariance(q)[index].numpy()
        n, t = np.zeros(D), np.eye(D)
        if other is not None:
            n, t = other.loc[index].numpy(), covariance(other)[index].numpy()
        inverse = np.linalg.inv(t)
        log_ratio = np.linalg.slogdet(t)[1] - np.linalg.slogdet(s)[1]
        quadratic = (n - m) @ inverse @ (n - m)
        kl[index] = 0.5 * (np.trace(inverse @ s) + quadratic - D + log_ratio)
    return kl


@FAMILIES
def test_log_prob_equals_scipy(make):
    q, z = make(), draw(9, *SHAPE, D)
    got = q.log_prob(z)
    assert got.shape == SHAPE
    for index in np.ndindex(SHAPE):
        expected = multivariate_normal(q.loc[index], covariance(q)[index]).logpdf(
            z[index]
        )
        assert got[index].item() == pytest.approx(expected, rel=1e-10)


def test_log_prob_broadcasts_a_shared_scale():
    z, log_scale = draw(9, *SHAPE, D), torch.tensor([0.3, -0.2, 0.7]).double()
    narrow = DiagonalGaussian(torch.zeros(D).double(), log_scale)
    wide = DiagonalGaussian(torch.zeros_like(z), log_scale.expand_as(z))
    torch.testing.assert_close(narrow.log_prob(z), wide.log_prob(z))


@FAMILIES
@pytest.mark.parametrize("other", [None, diagonal(20)], ids=["standard", "other"])
def test_kl_equals_closed_form(make, other):
    q = make()
    np.testing.assert_allclose(q.kl(other), closed_form_kl(q, other), rtol=1e-9)


def test_kl_of_a_gaussian_to_itself_is_zero():
    q = diagonal()
    assert q.kl(q).abs().max() < 1e-12


@pytest.mark.parametrize("other", [None, diagonal(20)], ids=["standard", "other"])
def test_marginal_kls_sum_to_less_than_the_kl(other):
    q = correlated()
    gap = q.kl(other) - q.kl_per_dimension(other).sum(-1)
    # The gap is the total correlation of q, whatever the other Gaussian.
    sigma = covariance(q)
    variances = torch.diagonal(sigma, dim1=-2, dim2=-1)
    total_correlation = 0.5 * (variances.log().sum(-1) - torch.logdet(sigma))
    torch.testing.assert_close(gap, total_correlation)
    assert (gap > 1e-3).all()


@pytest.mark.parametrize("other", [None, diagonal(20)], ids=["standard", "other"])
def test_marginal_kls_of_a_diagonal_gaussian_sum_to_the_kl(other):
    q = diagonal()
    torch.testing.assert_close(q.kl_per_dimension(other).sum(-1), q.kl(other))


@FAMILIES
def test_kl_per_dimension_is_that_of_the_marginals(make):
    q, other = make(), diagonal(20)
    marginal = DiagonalGaussian(q.loc, q.scale.log())
    for d in range(D):
        p = DiagonalGaussian(*(field[..., d : d + 1] for field in marginal))
        r = DiagonalGaussian(*(field[..., d : d + 1] for field in other))
        torch.testing.assert_close(q.kl_per_dimension(other)[..., d], p.kl(r))


@FAMILIES
def test_scale_and_log_scale_are_the_marginal_ones(make):
    q = make()
    variances = torch.diagonal(covariance(q), dim1=-2, dim2=-1)
    torch.testing.assert_close(q.scale, variances.sqrt())
    torch.testing.assert_close(q.log_scale, 0.5 * variances.log())


@FAMILIES
def test_log_volume_is_half_the_log_determinant(make):
    q = make()
    torch.testing.assert_close(q.log_volume(), 0.5 * torch.logdet(covariance(q)))


@FAMILIES
def test_product_is_the_normalised_product_of_densities(make):
    q, other = make(), diagonal(20)
    product = q.product(other)
    z = 2.0 * draw(9, 50, *SHAPE, D)
    gap = product.log_prob(z) - q.log_prob(z) - other.log_prob(z)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-9, atol=1e-9)
    assert type(product) is type(q)


def test_product_of_a_correlated_gaussian_without_correlations():
    q, other = diagonal(), diagonal(20)
    same = CorrelatedGaussian(q.loc, torch.diag_embed(torch.exp(-q.log_scale)))
    expected, got = q.product(other), same.product(other)
    torch.testing.assert_close(got.loc, expected.loc)
    torch.testing.assert_close(got.scale, expected.scale)


def test_product_that_cannot_be_factorised_is_nan_and_not_an_error():
    factor = torch.eye(D).double().expand(*SHAPE, D, D).clone()
    factor[0, 0] = torch.nan
    q = CorrelatedGaussian(torch.zeros(*SHAPE, D).double(), factor)
    product = q.product(diagonal())
    assert product.loc[0, 0].isnan().all()
    assert product.loc[1].isfinite().all()


@FAMILIES
def test_sample_has_mean_and_covariance(make):
    q, n = make(), 40_000
    z = q.sample(draw(7, n, *SHAPE, D))
    deviation = z - q.loc
    assert (deviation.mean(0).abs() < 6.0 / n**0.5 * q.scale).all()
    empirical = torch.einsum("n...i,n...j->...ij", deviation, deviation) / n
    sigma = covariance(q)
    # Standard error of a covariance is below sqrt(2 / n) times the variances.
    unit = q.scale.unsqueeze(-1) * q.scale.unsqueeze(-2)
    assert ((empirical - sigma).abs() / unit).max() < 6.0 * (2.0 / n) ** 0.5


@FAMILIES
def test_noise_alone_decides_the_density_of_a_draw(make):
    q, noise = make(), draw(7, *SHAPE, D)
    standard = DiagonalGaussian(torch.zeros_like(noise), torch.zeros_like(noise))
    expected = standard.log_prob(noise) - q.log_volume()
    torch.testing.assert_close(q.log_prob(q.sample(noise)), expected)


@FAMILIES
def test_sample_shared_equals_sample_for_each_draw(make):
    q, noise = make(), draw(7, 5, D)
    together = q.sample_shared(noise)
    assert together.shape == (SHAPE[0], 5, SHAPE[1], D)
    for s in range(5):
        alone = q.sample(noise[s].expand(*SHAPE, D))
        torch.testing.assert_close(together[:, s], alone)


@pytest.mark.parametrize("other", [None, diagonal(20)], ids=["standard", "other"])
@FAMILIES
def test_kl_equals_its_monte_carlo_estimate(make, other):
    q, n = make(), 20_000
    z = q.sample(draw(7, n, *SHAPE, D))
    standard = DiagonalGaussian(torch.zeros_like(z), torch.zeros_like(z))
    ratio = q.log_prob(z) - (other or standard).log_prob(z)
    error = ratio.std(0) / n**0.5
    assert ((ratio.mean(0) - q.kl(other)).abs() < 5.0 * error).all()


def test_bounded_log_scale_is_the_identity_near_zero_and_bounded():
    t = torch.tensor([-1e4, -100.0, -0.01, 0.0, 0.01, 100.0, 1e4]).double()
    bounded = bounded_log_scale(t)
    torch.testing.assert_close(bounded[2:5], t[2:5], rtol=1e-5, atol=0)
    assert bounded.abs().max() <= 8.0
    assert (bounded.diff() >= 0).all()


@FAMILIES
def test_gradients_are_those_of_finite_differences(make):
    q, other = make(), diagonal(20)
    noise = draw(7, *SHAPE, D)
    second = q.log_scale if make is diagonal else q.factor

    def values(loc, second):
        family = type(q)(loc, second)
        z = family.sample(noise)
        return family.kl(other), family.product(other).log_prob(z), z

    inputs = [t.detach().clone().requires_grad_() for t in (q.loc, second)]
    assert torch.autograd.gradcheck(values, inputs, fast_mode=True)
