"""The optimiser, the loop, the objective and the bounds against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import nn

from skvae import VAE, iVAE
from skvae._batches import Data, batches, chunks
from skvae._model import Frame
from skvae._optimizer import CLIP_RATIO, FlatAdam
from skvae._random import Seeds, streams
from skvae._training import (
    MAX_ROLLBACKS,
    SCHEDULES,
    NonFiniteLossError,
    Settings,
    bound,
    train,
)
from skvae.estimators._fitting import (
    Auxiliary,
    Specifications,
    build_model,
    prepare,
    to_data,
)
from skvae.inference import Amortized
from skvae.likelihoods import Gaussian, Poisson
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.posteriors import EncoderPosterior, ProductPosterior
from skvae.priors import ConditionalGaussian, GaussianMixture, StandardNormal

P, D = 5, 2
SEEDS = [Seeds(1, 2, 3), Seeds(4, 5, 6), Seeds(7, 8, 9)]


def draw(seed, *shape):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def build(n_replicas=1, *, n_u=0, **changes):
    parts = {
        "encoder": MLP(6, 1),
        "decoder": MLP(6, 1),
        "prior": StandardNormal(),
        "likelihood": Gaussian(),
        "posterior": EncoderPosterior(),
        "inference": Amortized(),
        "objective": ELBO(),
    }
    specifications = Specifications(**{**parts, **changes})
    return build_model(specifications, D, P, Auxiliary(n_u), SEEDS[:n_replicas])


# ------------------------------------------------------------------ optimiser


class Weights(nn.Module):
    """Two parameters per replica, each with a target; the loss is smooth."""

    def __init__(self, n_replicas):
        super().__init__()
        self.a = nn.Parameter(draw(0, n_replicas, 3, 2).float())
        self.b = nn.Parameter(draw(1, n_replicas, 1, 4).float())

    def loss(self):
        a = (self.a - 1.0).square().sum((1, 2)) + self.a.sin().sum((1, 2))
        return a + (self.b.square().sum(-1, keepdim=True) * 0.3).sum((1, 2))


def reference(rates, n_steps, scale=lambda k: 1.0):
    """Torch's Adam on each replica alone."""
    finals = []
    for r, rate in enumerate(rates):
        weights = Weights(len(rates))
        optimizer = torch.optim.Adam(weights.parameters(), lr=rate)
        for k in range(n_steps):
            optimizer.zero_grad()
            (scale(k) * weights.loss()[r]).backward()
            optimizer.step()
        finals.append([p.detach()[r] for p in weights.parameters()])
    return finals


@pytest.mark.parametrize(
    "rates", [[0.05], [0.05, 0.05], [0.05, 0.01, 0.1], [0.05, 0.01, 0.01, 0.1, 0.1]]
)
def test_steps_are_adams(rates):
    weights = Weights(len(rates))
    optimizer = FlatAdam(weights, len(rates))
    for _ in range(20):
        optimizer.differentiate(weights.loss().sum())
        optimizer.step(rates)
    for r, expected in enumerate(reference(rates, 20)):
        for got, want in zip(weights.parameters(), expected, strict=True):
            torch.testing.assert_close(got[r], want, rtol=1e-4, atol=1e-6)


def test_rates_stand_in_tensors_that_stay():
    """Else a step recorded before two replicas parted would miss where they meet."""
    optimizer = FlatAdam(Weights(3), 3)
    optimizer.use([0.1, 0.1, 0.1])
    ((rate, _),) = optimizer.groups[optimizer.runs]
    optimizer.use([0.1, 0.05, 0.05])
    assert [r.item() for r, _ in optimizer.groups[optimizer.runs]] == [0.1, 0.05]
    assert rate == 0.1
    optimizer.use([0.05, 0.05, 0.05])
    assert rate == 0.05


def test_parameters_are_views_of_one_buffer():
    weights = Weights(2)
    before = [p.detach().clone() for p in weights.parameters()]
    optimizer = FlatAdam(weights, 2)
    for p, was in zip(weights.parameters(), before, strict=True):
        assert torch.equal(p, was)
    optimizer.layout.put(optimizer.values, 1, torch.full_like(optimizer.values, 7.0))
    for p, was in zip(weights.parameters(), before, strict=True):
        assert (p[1] == 7.0).all()
        assert torch.equal(p[0], was[0])


def constant_gradient(optimizer, lengths):
    """Put gradients of these lengths, all along one direction."""
    n = sum(slot[0].numel() for slot in optimizer.slots)
    for slot in optimizer.slots:
        for own, length in zip(slot, lengths, strict=True):
            own.fill_(length / math.sqrt(n))


@pytest.mark.parametrize("n_replicas", [1, 3])
def test_a_burst_is_clipped_for_its_replica_alone(n_replicas):
    burst = 1000.0
    weights, calm = Weights(n_replicas), Weights(n_replicas)
    optimizer, expected = FlatAdam(weights, n_replicas), FlatAdam(calm, n_replicas)
    for k in range(6):
        ordinary = [2.0] * n_replicas
        constant_gradient(optimizer, [burst if k == 5 else 2.0, *ordinary[1:]])
        optimizer.step([0.01] * n_replicas)
        constant_gradient(expected, ordinary)
        # The moments of a gradient cut to five times the usual length, by hand.
        if k == 5:
            for slot in expected.slots:
                slot[0] *= CLIP_RATIO
            expected.typical_norm[0] = 1e9
        expected.step([0.01] * n_replicas)
    torch.testing.assert_close(optimizer.values, expected.values)
    torch.testing.assert_close(optimizer.first, expected.first)
    torch.testing.assert_close(optimizer.second, expected.second)
    typical = 0.98 * 2.0 + 0.02 * CLIP_RATIO * 2.0
    assert optimizer.typical_norm[0].item() == pytest.approx(typical, rel=1e-5)
    assert optimizer.norm_sum[0].item() == pytest.approx(5 * 2.0 + burst, rel=1e-5)


def test_gradients_below_the_limit_are_not_clipped():
    weights, free = Weights(1), Weights(1)
    optimizer, other = FlatAdam(weights, 1), FlatAdam(free, 1)
    for length in (2.0, 9.9):
        constant_gradient(optimizer, [length])
        optimizer.step([0.01])
        constant_gradient(other, [length])
        other.typical_norm[:] = 1e9
        other.step([0.01])
    torch.testing.assert_close(optimizer.values, other.values)


def test_restore_forgets_one_replica_s_momentum():
    weights = Weights(2)
    optimizer = FlatAdam(weights, 2)
    start = optimizer.values.clone()
    optimizer.differentiate(weights.loss().sum())
    optimizer.step([0.1, 0.1])
    moved = optimizer.values.clone()
    optimizer.restore(1, start)
    for value, began, went in zip(
        *map(optimizer.layout.views, (optimizer.values, start, moved)), strict=True
    ):
        assert torch.equal(value[1], began[1])
        assert torch.equal(value[0], went[0])
    for moment in (optimizer.first, optimizer.second):
        for view in optimizer.layout.views(moment):
            assert view[0].any()
            assert not view[1].any()


def test_resume_goes_on_as_if_never_stopped():
    weights, resumed = Weights(2), Weights(2)
    optimizer = FlatAdam(weights, 2)
    for k in range(8):
        if k == 4:
            resumed.load_state_dict(weights.state_dict())
            other = FlatAdam(resumed, 2)
            other.resume(optimizer.state())
        optimizer.differentiate(weights.loss().sum())
        optimizer.step([0.05, 0.05])
        if k >= 4:
            other.differentiate(resumed.loss().sum())
            other.step([0.05, 0.05])
    assert torch.equal(optimizer.values, other.values)


def test_parameters_without_gradient_stay():
    class Unused(Weights):
        def loss(self):
            return self.a.square().sum((1, 2))

    weights = Unused(2)
    before = weights.b.detach().clone()
    optimizer = FlatAdam(weights, 2)
    optimizer.differentiate(weights.loss().sum())
    optimizer.step([0.1, 0.1])
    assert torch.equal(weights.b, before)


# -------------------------------------------------------------- data, batches


@pytest.mark.parametrize("n_rows", [50, 64])
def test_an_epoch_gives_every_row_once_to_every_replica(n_rows):
    x = torch.arange(n_rows).float().unsqueeze(1)
    data = Data(x, 2.0 * x, x.squeeze(1) + 1.0)
    draws = streams(SEEDS, "cpu")
    first, second = (list(batches(data, draws, 16, D)) for _ in range(2))
    assert [b.x.shape[1] for b in first] == [16, 16, 16, n_rows - 48]
    for epoch in (first, second):
        seen = torch.cat([b.x for b in epoch], dim=1).squeeze(-1)
        assert torch.equal(seen.sort(dim=1).values, x.squeeze(1).expand(3, -1))
        assert not torch.equal(seen[0], seen[1])
        for b in epoch:
            assert torch.equal(b.u, 2.0 * b.x)
            assert torch.equal(b.weight, b.x.squeeze(-1) + 1.0)
            assert b.noise.shape == (3, b.x.shape[1], D)
    noise = torch.cat([b.noise for b in first], dim=1)
    again = torch.cat([b.noise for b in second], dim=1)
    assert noise.flatten().unique().numel() == noise.numel()
    assert not torch.equal(noise, again)
    assert not torch.equal(first[0].x, second[0].x)


def test_noise_made_in_blocks_follows_the_rows(monkeypatch):
    monkeypatch.setattr("skvae._batches.NOISE_BLOCK", 2 * 16 * D)
    x = torch.arange(90).float().unsqueeze(1)
    data = Data(x, None, torch.ones(90))
    epoch = list(batches(data, streams(SEEDS[:1], "cpu"), 16, D))
    assert [b.x.shape[1] for b in epoch] == [16, 16, 16, 16, 16, 10]
    seen = torch.cat([b.x for b in epoch], dim=1).flatten()
    assert torch.equal(seen.sort().values, x.flatten())
    noise = torch.cat([b.noise for b in epoch], dim=1)
    assert noise.shape == (1, 90, D)
    assert noise.flatten().unique().numel() == noise.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("conditional", [False, True])
def test_batches_written_over_earlier_ones_are_the_same(dtype, conditional):
    x = torch.arange(50 * 2).view(50, 2).to(dtype)
    u = torch.arange(50).float().unsqueeze(1) if conditional else None
    data = Data(x, u, torch.arange(50) + 1.0)
    plain = list(batches(data, streams(SEEDS, "cpu"), 16, D))
    kept = {}
    written = batches(data, streams(SEEDS, "cpu"), 16, D, memory=kept.get)
    for batch, expected in zip(written, plain, strict=True):
        n_rows = expected.x.shape[1]
        earlier = kept.setdefault(
            n_rows, batch._replace(noise=batch.noise.contiguous())
        )
        assert all(
            one is None or one.data_ptr() == other.data_ptr()
            for one, other in zip(batch[:3], earlier[:3], strict=True)
        )
        for one, other in zip(batch[:4], expected[:4], strict=True):
            assert one is other is None or torch.equal(one, other)
            assert one is None or one.dtype == torch.float32


def test_chunks_are_consecutive_rows():
    x = torch.arange(10, dtype=torch.uint8).unsqueeze(1)
    data = Data(x, x, torch.ones(10))
    parts = list(chunks(data, 4))
    assert [part[0].shape for part in parts] == [(1, 4, 1), (1, 4, 1), (1, 2, 1)]
    assert torch.equal(torch.cat([part[0][0] for part in parts]), x.float())
    assert parts[0][1].dtype == torch.float32


@pytest.mark.parametrize("likelihood", [Gaussian(), Poisson()])
def test_frame_measures_weighted_moments(likelihood):
    rng = np.random.default_rng(0)
    x = rng.poisson([1.0, 5.0, 20.0, 3.0, 0.5], size=(53, P)).astype(float)
    w = rng.uniform(size=53)
    module, frame = likelihood.build(P, 1), Frame(P, P).double()
    frame.set_from(module, torch.tensor(x), torch.tensor(w), rows=7)
    seen = np.log1p(x) if isinstance(likelihood, Poisson) else x
    centre = np.average(seen, axis=0, weights=w)
    variance = np.average((seen - centre) ** 2, axis=0, weights=w).mean()
    mean = np.average(x, axis=0, weights=w)
    np.testing.assert_allclose(frame.centre, centre)
    assert frame.scale.item() == pytest.approx(math.sqrt(variance))
    if isinstance(likelihood, Poisson):
        np.testing.assert_allclose(frame.offset, np.log(mean))
        assert frame.unit.item() == 1.0
    else:
        np.testing.assert_allclose(frame.offset, mean)
        assert frame.unit.item() == pytest.approx(math.sqrt(variance))
        unscaled = likelihood.build(P, 1).noise_variance()[0].item()
        got = module.noise_variance()[0].item()
        assert got == pytest.approx(unscaled * variance, rel=1e-5)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_uint8_data_train_like_floats():
    X = np.random.default_rng(0).integers(0, 256, size=(60, P), dtype=np.uint8)
    assert to_data(X, None, np.ones(60), "cpu").x.dtype == torch.uint8
    options = {"width": 6, "max_iter": 3, "random_state": 0, "device": "cpu"}
    small, wide = (
        VAE(2, **options).fit(X.astype(dtype)) for dtype in (np.uint8, np.float32)
    )
    assert small.loss_curve_ == wide.loss_curve_
    np.testing.assert_array_equal(
        small.transform(X), wide.transform(X.astype(np.float32))
    )


# -------------------------------------------------- linear Gaussian closed forms

NOISE = 0.7


class Linear:
    """x = W z + mu + noise with its exact posterior, all in double precision."""

    def __init__(self, *, exact, orthogonal=False, n_u=0):
        self.W, self.mu = draw(0, P, D), 3.0 * draw(1, P)
        if orthogonal:
            scale = torch.tensor([2.0, 0.5]).double()
            self.W = torch.linalg.qr(self.W).Q * scale
        changes = {"encoder": MLP(depth=0), "decoder": MLP(depth=0)}
        family = "diagonal" if orthogonal else "full"
        posterior = EncoderPosterior(family)
        if n_u:
            changes["prior"] = ConditionalGaussian()
            posterior = ProductPosterior(family)
        self.model = build(
            n_u=n_u, likelihood=Gaussian(noise=NOISE), posterior=posterior, **changes
        )
        self.model = self.model.double().requires_grad_(False)
        self.precision = self.W.T @ self.W / NOISE**2
        if not n_u:
            self.precision = self.precision + torch.eye(D).double()
        # x -> mean of z, and the Cholesky factor of its precision.
        self.gain = torch.linalg.solve(self.precision, self.W.T) / NOISE**2
        self.factor = torch.linalg.cholesky(self.precision)
        if not exact:
            self.gain = 0.7 * self.gain + 0.05
            self.factor = 1.4 * self.factor
            if not orthogonal:
                self.factor[1, 0] += 0.3
        self.set_weights()

    def set_weights(self):
        frame = self.model.frame
        self.model.likelihood.constant.fill_(math.log(NOISE))
        # A frame that is not the identity: its affine maps must cancel.
        frame.centre.copy_(self.mu + 1.0)
        frame.scale.fill_(2.5)
        frame.offset.copy_(self.mu)
        frame.unit.fill_(1.7)
        decoder, encoder = self.model.decoder.output, self.model.encoder.output
        decoder.weight.copy_(self.W.T / 1.7)
        decoder.bias.zero_()
        encoder.weight.zero_()
        encoder.weight[0, :, :D] = 2.5 * self.gain.T
        diagonal = self.factor.diagonal()
        below = (self.factor / diagonal[:, None])[1:, :1].flatten()
        # The inverse of the smooth bound on log standard deviations.
        raw = 8.0 * torch.atanh(-torch.log(diagonal) / 8.0)
        n_below = encoder.bias.shape[-1] - 2 * D
        head = self.gain @ torch.ones(P).double()
        encoder.bias.copy_(torch.cat([head, raw, below[:n_below]]))

    def q(self, x):
        """Means ``(n, d)`` and covariance of the encoder's answer."""
        sigma = torch.linalg.inv(self.factor @ self.factor.T)
        return (x - self.mu) @ self.gain.T, sigma

    def evidence(self, x):
        sigma = self.W @ self.W.T + NOISE**2 * torch.eye(P).double()
        return multivariate_normal(self.mu, sigma).logpdf(x)

    def elbo(self, x):
        """E_q log p(x|z) - KL, row by row, from the textbook formulas."""
        m, s = self.q(x)
        residual = (x - self.mu - m @ self.W.T).square().sum(-1)
        spread = torch.trace(self.W.T @ self.W @ s)
        likelihood = -0.5 * (residual + spread) / NOISE**2
        likelihood = likelihood - 0.5 * P * math.log(2.0 * math.pi * NOISE**2)
        kl = torch.trace(s) + m.square().sum(-1) - D - torch.logdet(s)
        return likelihood - 0.5 * kl

    def rows(self, n, seed=5):
        z, noise = draw(seed, n, D), draw(seed + 1, n, P)
        return z @ self.W.T + self.mu + NOISE * noise


ORTHOGONAL = pytest.mark.parametrize("orthogonal", [True, False])


@ORTHOGONAL
@pytest.mark.parametrize("exact", [True, False])
def test_encoder_is_the_gaussian_set_by_hand(orthogonal, exact):
    linear = Linear(exact=exact, orthogonal=orthogonal)
    x = linear.rows(6)
    q = linear.model.posterior(x.unsqueeze(0))
    mean, sigma = linear.q(x)
    torch.testing.assert_close(q.loc[0], mean)
    expected = sigma.diagonal().sqrt().expand(6, -1)
    torch.testing.assert_close(q.scale[0], expected)


@ORTHOGONAL
@pytest.mark.parametrize("exact", [True, False])
def test_bound_is_the_closed_form_elbo(orthogonal, exact):
    linear = Linear(exact=exact, orthogonal=orthogonal)
    n = 10_000
    x, weight = linear.rows(n), draw(9, n).abs() + 0.1
    got = bound(linear.model, Amortized(), Data(x, None, weight), SEEDS[:1])
    rows = linear.elbo(x)
    expected = (weight * rows).sum() / weight.sum()
    # One draw per row: its spread is below that of the evidence.
    error = float(rows.std()) / math.sqrt(n)
    assert got.shape == (1,)
    assert got.item() == pytest.approx(expected.item(), abs=5.0 * error)
    gap = linear.evidence(x) - rows.numpy()
    assert (np.abs(gap).max() < 1e-9) == exact
    assert gap.min() > -1e-9


@ORTHOGONAL
def test_bound_is_repeatable_and_reads_the_seeds(orthogonal):
    linear = Linear(exact=False, orthogonal=orthogonal)
    data = Data(linear.rows(50), None, torch.ones(50).double())
    first, again, other = (
        bound(linear.model, Amortized(), data, [seed]).item()
        for seed in (SEEDS[0], SEEDS[0], SEEDS[1])
    )
    assert first == again != other


@ORTHOGONAL
@pytest.mark.parametrize("n_draws", [1, 7])
def test_exact_posterior_gives_constant_importance_weights(orthogonal, n_draws):
    linear = Linear(exact=True, orthogonal=orthogonal)
    x = linear.rows(20)
    log_weights = linear.model.importance_log_weights(
        x.unsqueeze(0), None, draw(7, n_draws, D)
    )
    assert log_weights.shape == (1, n_draws, 20)
    expected = np.tile(linear.evidence(x), (n_draws, 1))
    np.testing.assert_allclose(log_weights[0], expected, rtol=1e-10)


def test_exact_conditional_posterior_gives_constant_importance_weights():
    linear = Linear(exact=True, n_u=3)
    prior = linear.model.prior
    prior.mean.weight.copy_(draw(2, 1, 3, D))
    prior.log_scale.weight.copy_(0.5 * draw(3, 1, 3, D))
    x, u = linear.rows(12), torch.eye(3).double()[torch.arange(12) % 3]
    log_weights = linear.model.importance_log_weights(
        x.unsqueeze(0), u.unsqueeze(0), draw(7, 4, D)
    )
    given = prior.given(u.unsqueeze(0))
    expected = [
        multivariate_normal(
            linear.mu + linear.W @ given.loc[0, i],
            linear.W @ torch.diag(given.scale[0, i] ** 2) @ linear.W.T
            + NOISE**2 * torch.eye(P).double(),
        ).logpdf(x[i])
        for i in range(12)
    ]
    np.testing.assert_allclose(log_weights[0], np.tile(expected, (4, 1)), rtol=1e-9)


@ORTHOGONAL
def test_importance_weights_average_to_the_evidence(orthogonal):
    linear = Linear(exact=True, orthogonal=orthogonal)
    # Wider than the posterior, so that the weights are bounded.
    linear.gain, linear.factor = 0.9 * linear.gain, 0.7 * linear.factor
    linear.set_weights()
    x, n = linear.rows(5), 40_000
    log_weights = linear.model.importance_log_weights(
        x.unsqueeze(0), None, draw(7, n, D)
    )
    ratio = np.exp(log_weights[0].numpy() - linear.evidence(x))
    error = ratio.std(0) / math.sqrt(n)
    assert (ratio.std(0) > 0.05).all()
    assert (np.abs(ratio.mean(0) - 1.0) < 5.0 * error).all()


def test_importance_weighted_estimate_grows_with_the_draws():
    linear = Linear(exact=False)
    x = linear.rows(400)
    estimates = []
    for seed, n_draws in enumerate((1, 4, 16, 128)):
        repeats = [
            logsumexp(
                linear.model.importance_log_weights(
                    x.unsqueeze(0), None, draw(50 + 10 * seed + k, n_draws, D)
                )[0],
                axis=0,
            )
            - math.log(n_draws)
            for k in range(20)
        ]
        estimates.append(np.mean(repeats))
    assert (np.diff(estimates) > 0).all()
    evidence = linear.evidence(x).mean()
    assert estimates[-1] < evidence
    assert evidence - estimates[-1] < 0.5 * (evidence - estimates[0])


def test_a_selected_replica_answers_as_before():
    model = build(3)
    x = draw(0, 30, P).float()
    prepare(model, Data(x, None, torch.ones(30)), Auxiliary())
    q, noise = model.posterior(x.unsqueeze(0)), draw(1, 4, D).float()
    weights = model.importance_log_weights(x.unsqueeze(0), None, noise)
    for r in range(3):
        alone = model.select(r)
        torch.testing.assert_close(alone.posterior(x.unsqueeze(0)).loc[0], q.loc[r])
        own = alone.importance_log_weights(x.unsqueeze(0), None, noise)
        torch.testing.assert_close(own[0], weights[r])
    with torch.no_grad():
        for parameter in model.select(0).parameters():
            parameter.zero_()
    assert torch.equal(model.posterior(x.unsqueeze(0)).loc, q.loc)


# ------------------------------------------------------------------ objective


def test_warm_up_rises_linearly_to_beta():
    elbo = ELBO(warm_up=0.4).build(2.0, StandardNormal().build(D, 0, True, []))
    progress = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
    weights = [elbo.weight(p) for p in progress]
    assert weights == pytest.approx([0.0, 0.5, 1.0, 2.0, 2.0, 2.0])
    assert [elbo.is_final(p) for p in progress] == [False] * 3 + [True] * 3
    constant = ELBO().build(2.0, StandardNormal().build(D, 0, True, []))
    assert constant.weight(0.0) == 2.0
    assert constant.is_final(0.0)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_history_shows_the_warm_up_and_the_schedule():
    X = np.random.default_rng(0).normal(size=(64, P))
    objective = ELBO(warm_up=0.5)
    vae = VAE(2, objective=objective, width=4, max_iter=8, batch_size=8, beta=3.0)
    vae.set_params(random_state=0, device="cpu").fit(X)
    # Eight steps an epoch; the history holds the last step of each.
    last = (np.arange(8) + 7 / 8) / 8
    expected = 3.0 * np.minimum(last / 0.5, 1.0)
    assert vae.history_["kl_weight"] == pytest.approx(expected)
    rates = [1e-3 * SCHEDULES["cosine"](p) for p in last]
    assert vae.history_["learning_rate"] == pytest.approx(rates)
    assert rates[-1] < 0.03 * rates[0]
    vae.set_params(schedule="constant").fit(X)
    assert vae.history_["learning_rate"] == [1e-3] * 8


def elbo_terms(objective, progress=1.0, beta=2.0, **changes):
    model = build(2, **changes)
    x = draw(0, 2, 30, P).float()
    # Spread the latents' KL, so that free bits reach some of them alone.
    with torch.no_grad():
        model.encoder.output.weight[..., 0] *= 6.0
        model.encoder.output.weight[..., 1:] *= 0.1
    q, noise = model.posterior(x), draw(1, 2, 30, D).float()
    built = objective.build(beta, model.prior)
    terms = built.terms(model, x, None, q, noise, progress)
    return model, x, q, noise, terms


@pytest.mark.parametrize(("progress", "weight"), [(0.25, 1.0), (1.0, 2.0)])
def test_loss_is_the_weighted_bound(progress, weight):
    model, x, q, noise, terms = elbo_terms(ELBO(warm_up=0.5), progress)
    z = q.sample(noise)
    log_likelihood = model.likelihood.log_prob(x, model.decode(z))
    torch.testing.assert_close(terms.log_likelihood, log_likelihood)
    torch.testing.assert_close(terms.kl, q.kl())
    torch.testing.assert_close(terms.loss, weight * q.kl() - log_likelihood)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_free_bits_charge_no_less_than_their_floor(covariance):
    plain = elbo_terms(ELBO(), posterior=EncoderPosterior(covariance))
    q = plain[2]
    means = q.kl_per_dimension().mean(1).detach()
    floor = float((means.min(1).values.max() * means.max(1).values.min()).sqrt())
    assert (means.min(1).values < floor).all()
    assert (means.max(1).values > floor).all()
    *_, terms = elbo_terms(
        ELBO(free_bits=floor), posterior=EncoderPosterior(covariance)
    )
    torch.testing.assert_close(terms.kl, plain[-1].kl)
    charged = (terms.loss + terms.log_likelihood).mean(1) / 2.0
    beyond = (q.kl() - q.kl_per_dimension().sum(-1)).mean(1)
    expected = means.clamp_min(floor).sum(-1) + beyond
    torch.testing.assert_close(charged, expected, rtol=1e-4, atol=1e-5)


def test_free_bits_stop_the_gradient_of_the_kl_below_the_floor():
    model, _, q, _, terms = elbo_terms(ELBO(free_bits=1e3))
    charged = (terms.loss + terms.log_likelihood).sum()
    parameters = list(model.encoder.parameters())
    for gradient in torch.autograd.grad(charged, parameters, retain_graph=True):
        assert gradient.abs().max() < 1e-3
    for gradient in torch.autograd.grad(q.kl().sum(), parameters):
        assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("options", [{"warm_up": 1.0}, {"free_bits": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"'{next(iter(options))}' parameter of ELBO"):
        ELBO(**options).build(1.0, StandardNormal().build(D, 0, True, []))


def test_free_bits_need_a_factorial_prior():
    prior = GaussianMixture().build(D, 0, True, [torch.Generator()])
    with pytest.raises(ValueError, match="free_bits needs a prior"):
        ELBO(free_bits=0.1).build(1.0, prior)


# ------------------------------------------------------------- schedule, loop


def test_cosine_is_flat_then_falls_to_a_hundredth():
    cosine = SCHEDULES["cosine"]
    assert [cosine(p) for p in (0.0, 0.25, 0.499)] == [1.0] * 3
    assert cosine(0.5) == pytest.approx(1.0)
    assert cosine(0.75) == pytest.approx(0.505)
    assert cosine(1.0) == pytest.approx(0.01)
    assert cosine(1.5) == pytest.approx(0.01)
    values = [cosine(p) for p in np.linspace(0.0, 1.0, 101)]
    assert (np.diff(values) <= 1e-12).all()


class Faulty(Amortized):
    """Feeds NaN to one replica in some epochs."""

    def __init__(self, epochs, max_epochs, replica=1):
        self.epochs, self.max_epochs, self.replica = epochs, max_epochs, replica

    def step(self, state, batch):
        if int(state.progress * self.max_epochs + 1e-9) in self.epochs:
            x = batch.x.clone()
            x[self.replica] = torch.nan
            batch = batch._replace(x=x)
        return super().step(state, batch)


def run(inference=None, n_replicas=2, max_epochs=6, **options):
    """Train small models; also gives the weights after every epoch."""
    model = build(n_replicas)
    x = draw(0, 64, P).float() @ draw(1, P, P).float()
    data = Data(x, None, torch.ones(64))
    prepare(model, data, Auxiliary())
    trace = []

    def begin_epoch():
        def end_epoch(row):
            trace.append([p.detach().clone() for p in model.parameters()])
            return False

        return end_epoch

    settings = {"batch_size": 16, "learning_rate": 0.01, **options.pop("settings", {})}
    history = train(
        model,
        data,
        objective=ELBO().build(1.0, model.prior),
        inference=inference or Amortized(),
        settings=Settings(
            max_epochs=max_epochs,
            **{"schedule": SCHEDULES["constant"], **settings},
        ),
        seeds=SEEDS[:n_replicas],
        begin_epoch=begin_epoch,
        **options,
    )
    return model, history, trace


def same(a, b, replica, **tolerance):
    """Whether one replica has equal weights, by default bit for bit."""
    if tolerance:
        return all(
            torch.allclose(p[replica], q[replica], **tolerance)
            for p, q in zip(a, b, strict=True)
        )
    return all(torch.equal(p[replica], q[replica]) for p, q in zip(a, b, strict=True))


def test_training_lowers_the_loss_and_repeats_itself():
    _, history, trace = run(max_epochs=20)
    losses = [row.loss[0] for row in history.epochs]
    assert losses[-1] < losses[0] - 0.5
    *_, again = run(max_epochs=20)
    assert same(trace[-1], again[-1], 0)
    assert history.rollbacks == [[], []]


def test_a_failed_replica_returns_to_its_last_good_weights():
    *_, expected = run()
    _, history, trace = run(Faulty({2}, 6))
    assert history.rollbacks == [[], [2]]
    # The other replica does not notice.
    for one, other in zip(trace, expected, strict=True):
        assert same(one, other, 0, rtol=1e-4, atol=1e-6)
    for number in (0, 1):
        assert same(trace[number], expected[number], 1)
    assert same(trace[2], trace[1], 1)
    assert not same(trace[3], trace[2], 1)
    assert all(p.isfinite().all() for p in trace[-1])
    rates = [row.learning_rate for row in history.epochs]
    assert rates[:2] == [[0.01, 0.01]] * 2
    assert rates[3:] == [[0.01, 0.005]] * 3
    assert all(math.isfinite(row.loss[1]) for row in history.epochs[3:])


def test_failures_in_the_first_epoch_return_to_the_start():
    _, history, trace = run(Faulty({0, 1}, 6))
    start = [p.detach() for p in build(2).parameters()]
    assert history.rollbacks == [[], [0, 1]]
    assert same(trace[0], start, 1)
    assert same(trace[1], start, 1)
    assert history.epochs[-1].learning_rate == [0.01, 0.0025]


def best_before_patience_ran_out(values, patience):
    """Position of the best value seen before `patience` values were no better."""
    best = waited = 0
    for position, value in enumerate(values[1:], start=1):
        best, waited = (position, 0) if value > values[best] else (best, waited + 1)
        if waited == patience:
            break
    return best


def test_too_many_failures_are_told_with_term_and_epoch():
    failing = set(range(1, 2 + MAX_ROLLBACKS))
    match = r"log-likelihood term became non-finite in epoch 5, after 3 returns"
    with pytest.raises(NonFiniteLossError, match=match):
        run(Faulty(failing, 6))
    assert run(Faulty(failing - {1}, 6))[1].rollbacks[1] == [2, 3, 4]


def test_early_stopping_keeps_the_best_weights():
    x = draw(0, 64, P).float() @ draw(1, P, P).float()
    validation = Data(x[:20] + 0.5, None, torch.ones(20))
    model, history, trace = run(
        validation=validation,
        max_epochs=60,
        settings={"patience": 3, "learning_rate": 0.1},
    )
    table = np.array([row.validation_bound for row in history.epochs])
    assert history.stopped_by_patience
    assert len(table) < 60
    final = bound(model, Amortized(), validation, SEEDS[:2]).tolist()
    weights = list(model.parameters())
    for r in range(2):
        best = best_before_patience_ran_out(table[:, r], patience=3)
        assert best < len(table) - 1
        assert final[r] == pytest.approx(table[best, r], abs=1e-4)
        assert same(weights, trace[best], r)


def test_a_callback_may_stop_training():
    model = build(1)
    data = Data(draw(0, 40, P).float(), None, torch.ones(40))
    prepare(model, data, Auxiliary())
    rows = []

    def end_epoch(row):
        rows.append(row)
        return len(rows) == 3

    history = train(
        model,
        data,
        objective=ELBO().build(1.0, model.prior),
        inference=Amortized(),
        settings=Settings(10, 16, 0.01, SCHEDULES["constant"]),
        seeds=SEEDS[:1],
        begin_epoch=lambda: end_epoch,
    )
    assert len(history.epochs) == len(rows) == 3


def test_rows_of_the_history_are_weighted_means():
    # A learning rate of next to nothing: the model of the first step is the last.
    model = build(1)
    weight = torch.linspace(0.1, 2.0, 40)
    data = Data(draw(0, 40, P).float(), None, weight)
    prepare(model, data, Auxiliary())
    history = train(
        model,
        data,
        objective=ELBO().build(3.0, model.prior),
        inference=Amortized(),
        settings=Settings(1, 16, 1e-30, SCHEDULES["constant"]),
        seeds=SEEDS[:1],
        begin_epoch=lambda: lambda row: False,
    )
    row = history.epochs[0]
    kl = model.posterior(data.x.unsqueeze(0)).kl()[0]
    assert row.kl[0] == pytest.approx(((weight * kl).sum() / weight.sum()).item())
    assert row.loss[0] == pytest.approx(3.0 * row.kl[0] - row.log_likelihood[0])


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_u_reaches_the_step():
    rng = np.random.default_rng(0)
    u = np.arange(80) % 4
    X = rng.normal(size=(80, P)) * (1.0 + u[:, None])
    options = {"width": 6, "max_iter": 2, "random_state": 0, "device": "cpu"}
    right = iVAE(2, **options).fit(X, u=u)
    wrong = iVAE(2, **options).fit(X, u=rng.permutation(u))
    assert right.loss_curve_ != wrong.loss_curve_
