"""Likelihoods against scipy.stats, numerical gradients and their own samples."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone

from skvae import VAE, MixtureVAE
from skvae._batches import Batch, Data
from skvae._random import Seeds, streams
from skvae._training import SCHEDULES, Settings, State
from skvae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Gaussian,
    NegativeBinomial,
    Poisson,
)

R, B, P = 2, 5, 4


def rng():
    return np.random.default_rng(0)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def build(specification, n_replicas=R):
    """The module in double precision, its parameters moved off their start."""
    module = specification.build(P, n_replicas).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.05 * noise
    return module.requires_grad_(False)


# name: specification, x, out, and scipy's log-probability of x.
def gaussian(module, x, out):
    scale = torch.sqrt(module.noise_variance()).unsqueeze(1).numpy()
    return stats.norm(out, scale).logpdf(x)


def bernoulli(module, x, out):
    return np.where(x == 1, stats.logistic.logcdf(out), stats.logistic.logsf(out))


def poisson(module, x, out):
    return stats.poisson(np.exp(out)).logpmf(x)


def negative_binomial(module, x, out):
    a = np.exp(module.log_concentration.numpy())
    return stats.nbinom(a, a / (a + np.exp(out))).logpmf(x)


def real(shape):
    return rng().normal(size=shape)


def binary(shape):
    return rng().integers(0, 2, size=shape).astype(float)


def counts(shape):
    x = rng().poisson(6.0, size=shape).astype(float)
    x[..., 0] = 0.0
    return x


CASES = {
    "gaussian shared": (Gaussian(), real, gaussian),
    "gaussian per feature": (Gaussian(noise="per_feature"), real, gaussian),
    "gaussian fixed": (Gaussian(noise=0.3), real, gaussian),
    "bernoulli": (Bernoulli(), binary, bernoulli),
    "poisson": (Poisson(), counts, poisson),
    "negative_binomial": (NegativeBinomial(), counts, negative_binomial),
}
LAWS = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def test_every_likelihood_has_a_law():
    assert {type(case[0]) for case in CASES.values()} == set(LIKELIHOODS.values())


@LAWS
def test_log_prob_equals_scipy(case):
    specification, data, law = case
    module = build(specification)
    x, out = data((R, B, P)), rng().normal(size=(R, B, P))
    got = module.log_prob(tensor(x), tensor(out))
    assert got.shape == (R, B)
    np.testing.assert_allclose(got, law(module, x, out).sum(-1), rtol=1e-10)


@LAWS
def test_one_copy_of_x_serves_all_replicas(case):
    specification, data, law = case
    module = build(specification)
    x, out = data((1, B, P)), rng().normal(size=(R, B, P))
    got = module.log_prob(tensor(x), tensor(out))
    np.testing.assert_allclose(got, law(module, x, out).sum(-1), rtol=1e-10)


@LAWS
def test_replicas_equal_each_alone(case):
    specification, data, _ = case
    module = build(specification, 3)
    x, out = tensor(data((3, B, P))), tensor(rng().normal(size=(3, B, P)))
    together = module.log_prob(x, out)
    for r in range(3):
        alone = build(specification, 1)
        for own, shared in zip(alone.parameters(), module.parameters(), strict=True):
            own.copy_(shared[r : r + 1])
        one = slice(r, r + 1)
        torch.testing.assert_close(alone.log_prob(x[one], out[one]), together[one])


@LAWS
def test_gradients_are_those_of_finite_differences(case):
    specification, data, _ = case
    module = build(specification).requires_grad_(True)
    x = tensor(data((R, B, P)))
    out = tensor(rng().normal(size=(R, B, P))).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def log_prob(out, *parameters):
        given = (x, out)
        return torch.func.functional_call(
            _Caller(module),
            {f"module.{n}": p for n, p in zip(names, parameters, strict=True)},
            given,
        )

    start = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(log_prob, [out, *start])


class _Caller(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, out):
        return self.module.log_prob(x, out)


def test_bernoulli_gradient_is_right_at_second_order_and_for_grey_levels():
    module = build(Bernoulli())
    x = tensor(rng().uniform(size=(1, B, P)))
    out = tensor(3.0 * rng().normal(size=(R, B, P))).requires_grad_()
    assert torch.autograd.gradcheck(lambda o: module.log_prob(x, o), [out])
    assert torch.autograd.gradgradcheck(lambda o: module.log_prob(x, o), [out])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_is_exact_for_extreme_logits(dtype):
    module = Bernoulli().build(2, 1)
    out = torch.tensor([[[60.0, -60.0]]], dtype=dtype, requires_grad=True)
    right, wrong = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert module.log_prob(right.to(dtype), out).item() == pytest.approx(
        -2.0 * math.exp(-60.0), abs=1e-25
    )
    value = module.log_prob(wrong.to(dtype), out)
    assert value.item() == pytest.approx(-120.0, rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), out)
    assert gradient.flatten().tolist() == pytest.approx([-1.0, 1.0], rel=1e-6)


def test_bernoulli_of_grey_levels_is_the_cross_entropy():
    module = build(Bernoulli())
    x, out = rng().uniform(size=(R, B, P)), rng().normal(size=(R, B, P))
    p = 1.0 / (1.0 + np.exp(-out))
    expected = (x * np.log(p) + (1 - x) * np.log1p(-p)).sum(-1)
    np.testing.assert_allclose(module.log_prob(tensor(x), tensor(out)), expected)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_features_are_drawn_anew_in_every_step():
    """Fixed draws of fair coins can be learned by heart, fresh ones cannot."""
    n_rows, n_features = 8, 20
    grey = 0.49 + 0.02 * rng().uniform(size=(n_rows, n_features))
    fixed = (rng().uniform(size=grey.shape) < grey).astype(float)
    vae = VAE(2, width=32, max_iter=400, learning_rate=0.01, random_state=0)

    def last_bound(likelihood, X):
        history = clone(vae).set_params(likelihood=likelihood).fit(X).history_
        return np.mean(history["bound"][-50:])

    entropy = n_features * math.log(2.0)
    assert last_bound(Bernoulli(), fixed) > -0.7 * entropy
    fresh = last_bound(Bernoulli(resample=True), grey)
    assert fresh == pytest.approx(-entropy, rel=0.01)
    # Where x leaves no choice there is nothing to draw.
    assert last_bound(Bernoulli(resample=True), fixed) > -0.7 * entropy


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.parametrize("estimator", [VAE(2), MixtureVAE(2, n_mixtures=2)])
def test_fits_are_summarised_on_drawn_features(estimator):
    """Posteriors of grey rows are those of an average picture, not of pictures."""
    n_rows = 3000
    y = rng().integers(2, size=(n_rows, 1))
    grey = np.where(y, 0.8, 0.2) + 0.01 * rng().uniform(size=(n_rows, 12))
    estimator = clone(estimator).set_params(
        likelihood=Bernoulli(resample=True),
        max_iter=15,
        learning_rate=0.01,
        random_state=0,
    )
    estimator.fit(grey)
    kl = estimator.kl_per_component_.sum()
    if hasattr(estimator, "kl_continuous_"):
        kl = estimator.kl_continuous_ + estimator.kl_discrete_
    assert kl == pytest.approx(estimator.history_["kl"][-1], rel=0.1)
    fresh = (np.random.default_rng(1).uniform(size=grey.shape) < grey).astype(float)
    expected = estimator.best_bound_, estimator.score(fresh)
    assert expected[0] == pytest.approx(expected[1], abs=0.1)
    assert estimator.score(grey) < min(expected) - 0.1


def test_drawn_features_follow_x():
    x = torch.tensor([[0.0, 0.2, 0.7, 1.0]]).repeat(5000, 1)
    data = Data(x, None, torch.ones(len(x)))
    model = SimpleNamespace(
        likelihood=Bernoulli(resample=True).build(4, 2), n_replicas=2, n_latents=1
    )
    state = State(model, None, None, Settings(1, 5000, 0.1, SCHEDULES["constant"]))
    state.data, state.draws = data, streams([Seeds(0, 1, 2), Seeds(3, 4, 5)], "cpu")
    batch = Batch(x.repeat(2, 1, 1), None, None, None)
    first, second = (state.resampled(batch, [True, True]).x for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first.mean(1), x[:2], atol=0.03, rtol=0)
    # An idle replica's stream stands still.
    before = state.draws.noise[1].get_state()
    state.resampled(batch, [True, False])
    assert torch.equal(state.draws.noise[1].get_state(), before)


@LAWS
def test_mean_is_that_of_samples(case):
    specification, *_ = case
    module, n = build(specification, 1), 20_000
    out = tensor(rng().normal(size=(1, 1, P))).expand(1, n, P)
    draws = module.sample(out, torch.Generator().manual_seed(0))
    assert draws.shape == (1, n, P)
    assert draws.dtype == torch.float64
    error = draws.std(1) / n**0.5
    assert ((draws.mean(1) - module.mean(out)[:, 0]).abs() < 5.0 * error).all()


def variance(module, out):
    if hasattr(module, "log_concentration"):
        mean = np.exp(out)
        return mean + mean**2 / np.exp(module.log_concentration.numpy())
    if module.noise_variance() is not None:
        return module.noise_variance().unsqueeze(1).numpy() + 0.0 * out
    if isinstance(module, type(Poisson().build(P, 1))):
        return np.exp(out)
    p = 1.0 / (1.0 + np.exp(-out))
    return p * (1.0 - p)


@LAWS
def test_samples_have_the_law_s_variance(case):
    specification, *_ = case
    module, n = build(specification, 1), 40_000
    out = rng().normal(size=(1, 1, P)) * 0.5
    wide = tensor(out).expand(1, n, P)
    draws = module.sample(wide, torch.Generator().manual_seed(1)).numpy()
    centred = draws - draws.mean(1, keepdims=True)
    error = (centred**2).std(1) / n**0.5
    gap = np.abs(draws.var(1) - variance(module, out)[:, 0])
    assert (gap < 5.0 * error + 1e-12).all()


@LAWS
def test_samples_follow_the_generator(case):
    specification, *_ = case
    module = build(specification, 1)
    out = tensor(rng().normal(size=(1, B, P)))
    first, again, other = (
        module.sample(out, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@LAWS
def test_start_is_what_a_model_without_latents_learns(case):
    specification, data, _ = case
    module = build(specification, 1)
    x = data((1, 60, P)) + 0.0
    if specification.domain == "count":
        x[..., 0] = 1.0
    x = tensor(x)
    start = module.start(x[0].mean(0)).detach().requires_grad_()
    loss = -module.log_prob(x, start.expand(1, 60, P)).sum()
    (gradient,) = torch.autograd.grad(loss, start)
    # A stationary point of a loss that is convex in the output.
    np.testing.assert_allclose(gradient.numpy(), 0.0, atol=1e-8)


@LAWS
def test_information_is_the_variance_of_the_score(case):
    specification, *_ = case
    module = specification.build(P, 1).double()
    mean = tensor([0.1, 0.3, 0.5, 0.9])
    out = module.start(mean).detach().expand(1, 200_000, P).requires_grad_()
    x = module.sample(out.detach(), torch.Generator().manual_seed(0))
    (score,) = torch.autograd.grad(module.log_prob(x, out).sum(), out)
    found = score.square().mean(1)[0]
    # Up to a common factor, which is not asked for.
    shares = module.information(mean) / module.information(mean).sum()
    torch.testing.assert_close(found / found.sum(), shares, rtol=0.03, atol=0)


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"gaussian"}))
def test_start_is_finite_for_constant_columns(name):
    module = LIKELIHOODS[name]().build(2, 1)
    assert module.start(torch.tensor([0.0, 1.0])).isfinite().all()


@pytest.mark.parametrize("name", ["poisson", "negative_binomial"])
def test_counts_stay_finite_for_extreme_outputs(name):
    module = LIKELIHOODS[name]().build(2, 1)
    out = torch.tensor([[[200.0, -200.0]]], requires_grad=True)
    x = torch.tensor([[[3.0, 3.0]]])
    assert module.log_prob(x, out).isfinite().all()
    assert module.mean(out).isfinite().all()


def test_encoder_reads_counts_on_a_log_scale_and_the_rest_as_they_are():
    x = torch.tensor([[[0.0, 1.0, 9.0]]])
    for name, likelihood in LIKELIHOODS.items():
        module = likelihood().build(3, 1)
        counts = name in ("poisson", "negative_binomial")
        expected = torch.log1p(x) if counts else x
        torch.testing.assert_close(module.features(x), expected)


def test_negative_binomial_becomes_poisson():
    x, out = tensor(counts((1, B, P))), tensor(rng().normal(size=(1, B, P)))
    dispersed = NegativeBinomial().build(P, 1).double().requires_grad_(False)
    dispersed.log_concentration.fill_(10.0)
    poisson = Poisson().build(P, 1)
    gap = dispersed.log_prob(x, out) - poisson.log_prob(x, out)
    assert gap.abs().max() < 0.01
    dispersed.log_concentration.fill_(0.0)
    gap = dispersed.log_prob(x, out) - poisson.log_prob(x, out)
    assert gap.abs().max() > 0.1


@pytest.mark.parametrize(("noise", "columns"), [("shared", 1), ("per_feature", P)])
def test_gaussian_noise_is_in_units_of_the_data(noise, columns):
    module = Gaussian(noise=noise).build(P, R)
    before = module.noise_variance().detach().clone()
    assert before.shape == (R, columns)
    module.set_unit(torch.tensor(3.0))
    torch.testing.assert_close(module.noise_variance(), 9.0 * before)
    assert len(list(module.parameters())) == 1


def test_gaussian_fixed_noise_is_fixed():
    module = Gaussian(noise=0.3).build(P, R)
    module.set_unit(torch.tensor(3.0))
    assert module.noise_variance().item() == pytest.approx(0.09)
    assert not list(module.parameters())


@pytest.mark.parametrize("noise", ["unknown", 0.0, -1.0])
def test_gaussian_refuses_unknown_noise(noise):
    with pytest.raises(ValueError, match="'noise' parameter of Gaussian"):
        Gaussian(noise=noise).build(P, R)
