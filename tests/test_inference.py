"""Semi-amortised and aggressive training against closed forms and by-hand loops."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch import nn

from skvae import LIDMVAE, LIDVAE, VAE, SkipVAE, inference, iVAE, load, save
from skvae._gaussian import DiagonalGaussian
from skvae._model import Terms
from skvae._optimizer import FlatAdam, GroupedAdam
from skvae._random import Seeds, streams
from skvae._training import SCHEDULES, Data, Settings, Training, bound, train
from skvae.estimators._fitting import (
    Auxiliary,
    Specifications,
    build_model,
    draw_seeds,
    prepare,
    to_data,
)
from skvae.inference import (
    Amortized,
    Lagging,
    SemiAmortized,
    ascend,
    mirrored_signs,
    mutual_information,
)
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP, Anchored, Brenier, Skip
from skvae.objectives import ELBO, IWAE
from skvae.posteriors import EncoderPosterior
from skvae.priors import StandardNormal

pytestmark = pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")

P, D, B = 5, 2, 8
SEEDS = [Seeds(1, 2, 3), Seeds(4, 5, 6), Seeds(7, 8, 9)]
FAST = {"width": 8, "max_iter": 3, "n_draws": 8, "random_state": 0, "device": "cpu"}
PROCEDURES = [SemiAmortized(3), Lagging(8, block=3, patience=2)]


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def build(n_replicas=1, **changes):
    """An untrained, smooth model in double precision."""
    parts = {
        "encoder": MLP(6, 1, "tanh"),
        "decoder": MLP(6, 1, "tanh"),
        "prior": StandardNormal(),
        "likelihood": Gaussian(),
        "posterior": EncoderPosterior(),
        "inference": Amortized(),
        "objective": ELBO(),
    }
    specifications = Specifications(**{**parts, **changes})
    model = build_model(specifications, D, P, Auxiliary(), SEEDS[:n_replicas])
    return model.double()


def begin(procedure, objective=None, n_replicas=1, dtype=torch.float64, **changes):
    """A run of the loop before its first step, and one of its batches."""
    model = build(n_replicas, **changes).to(dtype)
    x = draw(0, 32, P).abs().clamp_max(1.0).to(dtype)
    data = Data(x, None, (draw(1, 32).abs() + 0.1).to(dtype))
    settings = Settings(4, B, 0.01, SCHEDULES["constant"])
    objective = (objective or ELBO()).build(1.0, model.prior, 32)
    seeds = SEEDS[:n_replicas]
    run = Training(model, data, objective, procedure, settings, seeds, None)
    return run, run.state.random_batch([True] * n_replicas)


# ------------------------------------------------------------------------- the ascent


def quadratic(n):
    """-(lambda - m)^T H (lambda - m) / 2 with H positive definite."""
    root = draw(0, n, n)
    return root @ root.T / n + 0.2 * torch.eye(n).double(), draw(1, n)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_steps_on_a_quadratic_are_a_matrix_polynomial(momentum):
    n, sizes = 4, [0.3, 0.3, 0.2, 0.1, 0.05]
    H, m = quadratic(n)

    def end(start, middle):
        found = ascend(
            lambda k, position: [-(position[0] - middle) @ H],
            (start,),
            sizes,
            momentum,
            clip=1e9,
        )
        return found[0]

    eye, start = torch.eye(n).double(), draw(2, n)
    power = torch.eye(2 * n).double()
    for size in sizes:
        top = torch.cat([eye - size * H, size * momentum * eye], dim=1)
        power = torch.cat([top, torch.cat([-H, momentum * eye], dim=1)]) @ power
    polynomial = power[:n, :n]
    torch.testing.assert_close(end(start, m), m + polynomial @ (start - m))
    by_start, by_middle = torch.autograd.functional.jacobian(end, (start, m))
    torch.testing.assert_close(by_start, polynomial)
    torch.testing.assert_close(by_middle, eye - polynomial)


def test_clipping_leaves_directions_and_other_rows():
    long, short = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    (moved,) = ascend(
        lambda k, position: [torch.stack([long, short])],
        (torch.zeros(2, 2),),
        [1.0],
        0.5,
        clip=5.0,
    )
    torch.testing.assert_close(moved, torch.tensor([[3.0, 4.0], [0.3, 0.4]]))


def test_the_ascent_is_differentiable_where_the_gradient_is_zero():
    def end(start):
        return ascend(lambda k, position: [-position[0]], (start,), [0.1], 0.5, 1.0)[0]

    jacobian = torch.autograd.functional.jacobian(end, torch.zeros(3).double())
    torch.testing.assert_close(jacobian, 0.9 * torch.eye(3).double())


# --------------------------------------------------------------------- total derivative

NETWORKS = {
    "mlp": {},
    "skip": {"decoder": Skip(6, 2, "tanh")},
    "brenier": {"decoder": Brenier(6, 1)},
    "anchored": {"decoder": Anchored(6, 1, "tanh")},
    "bernoulli": {"likelihood": Bernoulli()},
    "full covariance": {"posterior": EncoderPosterior("full")},
    "clipped": {"likelihood": Gaussian(noise=0.05)},
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_step_differentiates_through_the_refinement(case):
    """Every parameter's part of the gradient, against central differences."""
    procedure = SemiAmortized(4, step_size=0.2)
    run, batch = begin(procedure, n_replicas=2, **NETWORKS[case])
    state, model = run.state, run.model
    state.optimizer.step = lambda rates: None
    before = [g.get_state() for g in state.draws.noise]

    def loss():
        for g, position in zip(state.draws.noise, before, strict=True):
            g.set_state(position)
        rows = procedure.step(state, batch).loss
        return inference.batch_loss(batch, rows).sum().item()

    loss()
    gradients = [slot.clone() for slot in run.optimizer.slots]
    step = 1e-5
    for number, (parameter, gradient) in enumerate(
        zip(model.parameters(), gradients, strict=True)
    ):
        direction = draw(20 + number, *parameter.shape)
        values = []
        for sign in (1.0, -1.0):
            parameter.data += sign * step * direction
            values.append(loss())
            parameter.data -= sign * step * direction
        expected = (values[0] - values[1]) / (2.0 * step)
        got = (gradient * direction).sum().item()
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_derivative_through_the_steps_matters():
    """Or the comparison above could pass with the refined q held fixed."""
    total, batch = begin(SemiAmortized(4))
    fixed, _ = begin(SemiAmortized(4, encoder_loss="bound"))
    for run in (total, fixed):
        run.state.optimizer.step = lambda rates: None
        run.inference.step(run.state, batch)
    _, generative = total.model.parameter_groups()
    n = len(generative)
    a, b = (
        torch.cat([slot.flatten() for slot in run.optimizer.slots[-n:]])
        for run in (total, fixed)
    )
    assert (a - b).norm() > 1e-2 * a.norm()


# ---------------------------------------------------------------------- the refined q


class Orthogonal:
    """x = W z + noise, W with orthogonal columns: the posterior is diagonal."""

    def __init__(self, noise):
        scales = torch.tensor([2.0, 0.7]).double()
        W = torch.linalg.qr(draw(0, P, D)).Q * scales
        likelihood = Gaussian(noise=noise)
        self.model = build(decoder=MLP(depth=0), likelihood=likelihood)
        self.model.requires_grad_(False)
        self.model.decoder.output.weight.copy_(W.T)
        self.model.decoder.output.bias.zero_()
        self.model.likelihood.constant.fill_(math.log(noise))
        z = draw(5, 300, D)
        self.x = (z @ W.T + noise * draw(6, 300, P)).unsqueeze(0)
        variance = 1.0 / (1.0 + W.square().sum(0) / noise**2)
        loc = self.x @ W * variance / noise**2
        self.exact = DiagonalGaussian(loc, 0.5 * variance.log().expand_as(loc))
        sigma = W @ W.T + noise**2 * torch.eye(P).double()
        self.evidence = multivariate_normal(np.zeros(P), sigma).logpdf(self.x[0])

    def answers(self, q):
        """Let the encoder answer q."""
        self.model.posterior = lambda x, u=None: q
        return self.model


@pytest.mark.parametrize("noise", [1.0, 0.1, 0.01])
def test_refinement_approaches_the_exact_posterior(noise):
    """Whatever the noise, and so the scale of the posterior."""
    linear = Orthogonal(noise)
    start = linear.exact.moved(draw(8, 1, 300, D), 0.5 * draw(9, 1, 300, D))
    model, gaps = linear.answers(start), [start.kl(linear.exact).mean().item()]
    for n_steps in (5, 20, 80):
        q = SemiAmortized(n_steps).posterior(model, linear.x)
        gaps.append(q.kl(linear.exact).mean().item())
    assert (np.diff(gaps) < 0.0).all()
    assert gaps[2] < 0.3 * gaps[0]
    assert gaps[3] < 0.02 * gaps[0]


def test_the_exact_posterior_of_a_linear_model_stays_where_it_is():
    linear = Orthogonal(0.3)
    q = SemiAmortized(20).posterior(linear.answers(linear.exact), linear.x)
    assert q.kl(linear.exact).max().item() < 5e-3


def test_mirrored_signs_have_the_moments_of_the_normal():
    signs = mirrored_signs(draw(0, 3, 4000, D))
    assert signs.shape == (3, 8000, D)
    assert torch.equal(signs[:, 0::2], -signs[:, 1::2])
    assert torch.equal(signs.square(), torch.ones_like(signs))
    coupling = (signs[..., 0] * signs[..., 1]).mean(1)
    assert coupling.abs().max() < 0.1


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_refined_posteriors_have_the_better_bound(covariance):
    model = build(2, posterior=EncoderPosterior(covariance)).requires_grad_(False)
    data = Data(draw(0, 200, P), None, torch.ones(200).double())
    amortized = bound(model, Amortized(), data, SEEDS[:2])
    refined = bound(model, SemiAmortized(20), data, SEEDS[:2])
    assert (refined > amortized + 0.5).all()


def test_rows_are_refined_on_their_own():
    model, x = build(2), draw(0, 2, 30, P)
    procedure = SemiAmortized(10)
    q, again = procedure.posterior(model, x), procedure.posterior(model, x)
    assert torch.equal(q.loc, again.loc)
    assert torch.equal(q.log_scale, again.log_scale)
    # A companion far away changes nothing, which a clip of the batch would.
    far = x.clone()
    far[:, 5:] *= 1e3
    for part in (x[:, :5], far):
        alone = procedure.posterior(model, part)
        torch.testing.assert_close(alone.loc[:, :5], q.loc[:, :5])
        torch.testing.assert_close(alone.log_scale[:, :5], q.log_scale[:, :5])
    with torch.no_grad():
        assert torch.equal(procedure.posterior(model, x).loc, q.loc)
    assert not q.loc.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_scoring_draws_from_the_refined_posterior(small_X):
    vae = VAE(2, inference=SemiAmortized(8), **{**FAST, "n_draws": 1}).fit(small_X)
    plain = clone(vae).set_params(inference="amortized").fit(small_X)
    mean, std = vae.posterior(small_X)
    encoded = vae.module_.double().posterior(torch.tensor(small_X).unsqueeze(0))
    assert np.abs(encoded.loc[0].detach()[:, vae._order].numpy() - mean).max() > 1e-2
    # One draw and its weight: z from the refined q, log q at it.
    from skvae._random import shared_noise

    noise = shared_noise(vae._score_seed, 1, 2, torch.zeros(()).double())[0].numpy()
    z = mean + std * noise[vae._order]
    out = vae.inverse_transform(z)
    expected = (
        -0.5 * ((small_X - out) ** 2 / vae.noise_variance_).sum(1)
        - 3.0 * np.log(2.0 * np.pi * vae.noise_variance_)
        - 0.5 * (z**2).sum(1)
        + 0.5 * (noise**2).sum()
        + np.log(std).sum(1)
    )
    np.testing.assert_allclose(vae.score_samples(small_X), expected, rtol=1e-5)
    assert plain._inference.get_params() == Amortized().get_params()


def test_kl_warm_up_reaches_the_refinement():
    """Under a KL weight of zero the ascent is on the likelihood alone."""
    run, batch = begin(SemiAmortized(5), ELBO(warm_up=0.5), dtype=torch.float32)
    seen = []

    class Watched(SemiAmortized):
        def refine(self, *rest):
            seen.append(rest[5])
            return super().refine(*rest)

    for run.state.progress in (0.0, 0.25, 0.5, 1.0):
        Watched(2).step(run.state, batch)
    assert seen == [0.0, 0.5, 1.0, 1.0]


def test_a_posterior_of_several_parts_is_refused(small_X):
    for name in ("semi_amortized", "lagging"):
        vae = LIDMVAE(2, posterior_type="enumerated", inference=name, max_iter=1)
        with pytest.raises(ValueError, match="single Gaussian"):
            vae.fit(small_X)


# ------------------------------------------------------------- what the encoder learns


@pytest.mark.parametrize("encoder_loss", ["bound", "divergence"])
def test_each_network_gets_its_own_gradient(encoder_loss):
    procedure = SemiAmortized(3, encoder_loss=encoder_loss)
    run, batch = begin(procedure)
    state, model = run.state, run.model
    state.optimizer.step = lambda rates: None
    before = state.draws.noise[0].get_state()
    procedure.step(state, batch)
    got = [slot.clone() for slot in run.optimizer.slots]

    state.draws.noise[0].set_state(before)
    noise = mirrored_signs(state.noise(B, 2))
    encoded = model.posterior(batch.x)
    q = procedure.refine(model, batch.x, None, encoded, noise)
    q = DiagonalGaussian(q.loc.detach(), q.log_scale.detach())
    inference_parameters, generative = model.parameter_groups()
    z = q.sample(batch.noise)
    refined = q.kl() - model.likelihood.log_prob(batch.x, model.decode(z))
    weight = batch.weight / batch.weight.sum()
    expected = torch.autograd.grad((weight * refined).sum(), generative)
    if encoder_loss == "bound":
        z = encoded.sample(batch.noise)
        own = encoded.kl() - model.likelihood.log_prob(batch.x, model.decode(z))
    else:
        z = encoded.sample(noise[:, :, 0])
        own = encoded.log_prob(z) - q.log_prob(z)
        closed = encoded.kl(q)
        assert (own - closed).mean().abs() < 3.0 * (own - closed).std()
    encoder = torch.autograd.grad((weight * own).sum(), inference_parameters)
    for a, b in zip(got, [*encoder, *expected], strict=True):
        torch.testing.assert_close(a, b)


# --------------------------------------------------------------- the grouped optimiser


class Weights(nn.Module):
    """Two groups of one parameter each."""

    def __init__(self, n_replicas):
        super().__init__()
        self.a = nn.Parameter(draw(0, n_replicas, 3, 2).float())
        self.b = nn.Parameter(draw(1, n_replicas, 1, 4).float())

    def losses(self):
        a = (self.a - 1.0).square().sum((1, 2)) + self.a.sin().sum((1, 2))
        return a + 0.3 * (self.b.square() + self.b.cos()).sum((1, 2))

    def grouped(self, n_replicas):
        return GroupedAdam(self, n_replicas, [[self.a], [self.b]])


def test_groups_step_as_optimisers_of_their_own():
    n_replicas, rates = 3, [0.05, 0.02, 0.05]
    weights, generator = Weights(n_replicas), torch.Generator().manual_seed(0)
    optimizer = weights.grouped(n_replicas)
    twins = [Weights(n_replicas) for _ in range(n_replicas)]
    adams = [
        [torch.optim.Adam([p], lr=rate) for p in (twin.a, twin.b)]
        for twin, rate in zip(twins, rates, strict=True)
    ]
    for _ in range(25):
        chosen = (torch.rand(n_replicas, 2, generator=generator) < 0.5).tolist()
        optimizer.differentiate(weights.losses().sum())
        optimizer.step(rates, chosen)
        for r, (twin, pair) in enumerate(zip(twins, adams, strict=True)):
            twin.zero_grad()
            twin.losses()[r].backward()
            for adam, steps in zip(pair, chosen[r], strict=True):
                if steps:
                    adam.step()
    for r, twin in enumerate(twins):
        for got, want in ((weights.a, twin.a), (weights.b, twin.b)):
            torch.testing.assert_close(got[r], want[r], rtol=1e-4, atol=1e-6)


def test_what_does_not_step_stays_as_it_is():
    weights = Weights(2)
    optimizer = weights.grouped(2)
    optimizer.differentiate(weights.losses().sum())
    optimizer.step([0.1, 0.1])
    before = {name: value.clone() for name, value in optimizer.state().items()}
    values, norms = optimizer.values.clone(), optimizer.norm_sum.clone()
    optimizer.differentiate(weights.losses().sum(), [weights.a])
    optimizer.step([0.1, 0.1], [[True, False], [False, False]], record=False)
    after = optimizer.state()
    pairs = [(optimizer.values, values)]
    pairs += [(after[name], before[name]) for name in ("first", "second")]
    for pair in pairs:
        (a, b), (a_before, b_before) = map(optimizer.layout.views, pair)
        assert not torch.equal(a[0], a_before[0])
        assert torch.equal(a[1], a_before[1])
        assert torch.equal(b, b_before)
    assert after["count"].tolist() == [[2.0, 1.0], [1.0, 1.0]]
    assert torch.equal(optimizer.norm_sum, norms)


def test_all_groups_together_are_plain_adam():
    weights, plain = Weights(1), Weights(1)
    optimizer, other = weights.grouped(1), FlatAdam(plain, 1)
    for _ in range(10):
        for one, model in ((optimizer, weights), (other, plain)):
            one.differentiate(model.losses().sum())
            one.step([0.05])
    torch.testing.assert_close(optimizer.values, other.values)
    torch.testing.assert_close(optimizer.norm_sum, other.norm_sum)


def test_state_passes_between_optimisers_of_other_groups():
    weights = Weights(1)
    grouped, plain = weights.grouped(1), FlatAdam(Weights(1), 1)
    for _ in range(4):
        grouped.differentiate(weights.losses().sum())
        grouped.step([0.05])
    plain.resume(grouped.state())
    assert plain.count.item() == 4.0
    assert torch.equal(plain.first, grouped.first)
    again = Weights(1).grouped(1)
    again.resume(plain.state())
    assert again.count.tolist() == [[4.0, 4.0]]


def test_groups_must_be_all_parameters():
    weights = Weights(1)
    with pytest.raises(ValueError, match="all parameters, in their order"):
        GroupedAdam(weights, 1, [[weights.b], [weights.a]])


# ------------------------------------------------------------------ aggressive training


class Told(Lagging):
    """Its losses are read from a table, one column per replica."""

    def __init__(self, table, **options):
        super().__init__(**options)
        self.table, self.asked = torch.tensor(table, dtype=torch.float64), 0

    def terms(self, state, batch, q):
        row = self.table[self.asked]
        self.asked += 1
        return Terms(*[row.unsqueeze(1).expand(-1, 4)] * 3)


def catch_up(procedure, n_replicas):
    """Run the inner loop on made-up losses; who stepped each time."""
    steps = []
    batch = SimpleNamespace(
        x=None, u=None, weight=torch.ones(n_replicas, 4).double(), noise=None
    )
    drawn = []

    def random_batch(active):
        drawn.append(active)
        return batch

    state = SimpleNamespace(
        model=SimpleNamespace(
            posterior=lambda x, u: None, parameter_groups=lambda: ([], [])
        ),
        optimizer=SimpleNamespace(
            differentiate=lambda loss, parameters: None,
            step=lambda rates, chosen, record: steps.append(chosen),
        ),
        rates=lambda: [0.1] * n_replicas,
        random_batch=random_batch,
    )
    procedure.catch_up(state, batch, [True] * n_replicas)
    assert drawn == [[runs for runs, _ in chosen] for chosen in steps[1:]]
    assert not any(theta for chosen in steps for _, theta in chosen)
    return np.array([[runs for runs, _ in chosen] for chosen in steps]).sum(0).tolist()


@pytest.mark.parametrize(
    ("means", "n_blocks"),
    [
        ([5.0, 4.0, 3.0, 3.5, 0.0], 4),
        ([5.0, 6.0, 0.0], 2),
        ([5.0, 5.0, 5.0, 6.0, 0.0], 4),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0], 6),
    ],
)
def test_the_encoder_stops_at_the_first_block_that_is_worse(means, n_blocks):
    noise = np.tile([0.3, -0.1, -0.2], len(means))
    table = (np.repeat(means, 3) + noise)[:, None]
    assert catch_up(Told(table, max_inner_steps=18, block=3), 1) == [3 * n_blocks]


def test_it_never_takes_more_than_the_steps_allowed():
    falling = -np.arange(200.0)[:, None]
    assert catch_up(Told(falling), 1) == [99]
    assert catch_up(Told(falling, max_inner_steps=7), 1) == [7]


def test_each_replica_stops_for_itself():
    means = np.array([[5.0, 5.0], [6.0, 4.0], [0.0, 3.0], [0.0, 8.0], [0.0, 0.0]])
    assert catch_up(Told(np.repeat(means, 2, axis=0), block=2), 2) == [4, 8]


def test_the_decoder_takes_one_step_per_batch_and_no_other():
    procedure = Lagging(6, block=2)
    run, batch = begin(procedure, n_replicas=2, dtype=torch.float32)
    values = run.optimizer.values.clone()
    procedure.step(run.state, batch)
    assert run.optimizer.count[:, 1].tolist() == [1.0, 1.0]
    assert (run.optimizer.count[:, 0] >= 4).all()
    assert (run.optimizer.count[:, 0] <= 6).all()
    for now, then in zip(
        *map(run.optimizer.layout.views, (run.optimizer.values, values)), strict=True
    ):
        assert (now != then).flatten(1).any(1).all()
    # Replica 0 has left the aggressive phase.
    run.state.memory["failures"][0] = procedure.patience
    counts = run.optimizer.count.clone()
    procedure.step(run.state, batch)
    assert (run.optimizer.count - counts)[0].tolist() == [1.0, 1.0]
    assert (run.optimizer.count - counts)[1, 1] == 1.0
    assert (run.optimizer.count - counts)[1, 0] >= 4.0


def test_after_the_aggressive_phase_it_is_ordinary_training():
    table = []
    for procedure in (Amortized(), Lagging()):
        run, batch = begin(procedure, dtype=torch.float32)
        if isinstance(procedure, Lagging):
            procedure.aggressive(run.state)
            run.state.memory["failures"] += procedure.patience
        for _ in range(5):
            procedure.step(run.state, batch)
        table.append(run.optimizer.values)
    torch.testing.assert_close(*table)


def test_the_phase_ends_after_failures_in_a_row_or_not(monkeypatch):
    sequence = iter([[1.0, 1.0], [2.0, 0.9], [1.5, 0.8], [3.0, 2.0], [2.0, 2.5]])
    monkeypatch.setattr(
        inference, "mutual_information", lambda state: torch.tensor(next(sequence))
    )
    procedure = Lagging(patience=2)
    run, _ = begin(procedure, n_replicas=2)
    seen = []
    for _ in range(5):
        procedure.end_epoch(run.state)
        seen.append(procedure.aggressive(run.state))
    # 1.5 and 2.0 stay below the best before them, 2 and 3; so do 0.9 and 0.8.
    both, first, neither = [True, True], [True, False], [False, False]
    assert seen == [both, both, first, first, neither]
    procedure.end_epoch(run.state)  # does not ask any more


# ------------------------------------------------------------------ mutual information


def information(q, n):
    """The estimate for an encoder that answers q for rows 0, 1, ..."""
    posterior = lambda x, u: type(q)(*(part[:, x[0, :, 0].long()] for part in q))
    data = Data(torch.arange(n).double().unsqueeze(1), None, torch.ones(n).double())
    model = SimpleNamespace(posterior=posterior, n_latents=q.loc.shape[-1])
    state = SimpleNamespace(evaluation=data, model=model, seeds=SEEDS[:1])
    return mutual_information(state).item()


def test_information_of_a_linear_gaussian_encoder():
    """Mean W x, x standard normal, variance s^2: log det(I + W W^T / s^2) / 2."""
    W, s = 0.5 * draw(0, 3, 3), 0.5
    loc = (draw(1, 1000, 3) @ W.T).unsqueeze(0)
    q = DiagonalGaussian(loc, torch.full_like(loc, math.log(s)))
    exact = 0.5 * torch.logdet(torch.eye(3).double() + W @ W.T / s**2).item()
    assert exact > 0.5
    assert information(q, 1000) == pytest.approx(exact, abs=0.12)


@pytest.mark.parametrize("n", [32, 256])
def test_separated_posteriors_reach_the_ceiling(n):
    loc = 1e3 * torch.arange(n).double().reshape(1, n, 1).expand(-1, -1, 2)
    q = DiagonalGaussian(loc, torch.zeros_like(loc))
    # The closed-form entropy meets one draw's.
    assert information(q, n) == pytest.approx(math.log(n), abs=0.4)


def test_a_collapsed_encoder_says_nothing():
    q = DiagonalGaussian(
        torch.zeros(1, 500, 2).double(), torch.zeros(1, 500, 2).double()
    )
    assert information(q, 500) == pytest.approx(0.0, abs=0.15)


# ----------------------------------------------------------------------- in the engine


@pytest.mark.parametrize("procedure", PROCEDURES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "options",
    [
        {"objective": ELBO(warm_up=0.3)},
        {"objective": IWAE(2)},
        {"likelihood": Bernoulli(resample=True)},
    ],
    ids=lambda options: repr([*options.values()]),
)
def test_replicas_together_equal_replicas_alone(procedure, options, small_X):
    vae = VAE(2, inference=procedure, **options, **FAST)
    parts, (_, seeds) = vae._parts(False), draw_seeds(np.random.RandomState(3), 3)
    X = small_X.clip(0, 1) if "likelihood" in options else small_X
    data = to_data(X, None, np.ones(60), "cpu")

    def run(seeds):
        model = build_model(parts, 2, 6, Auxiliary(), seeds)
        prepare(model, data, Auxiliary())
        history = train(
            model,
            data,
            objective=parts.objective.build(1.0, model.prior, 60),
            inference=parts.inference.build(),
            settings=vae._settings(60, 4),
            seeds=seeds,
            begin_epoch=lambda: lambda row: False,
            draws=streams(seeds, "cpu"),
        )
        return model, history

    together, history = run(seeds)
    for replica, seed in enumerate(seeds):
        alone, own = run([seed])
        pairs = zip(
            together.select(replica).parameters(), alone.parameters(), strict=True
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=2e-3, atol=5e-5)
        losses = [row.loss[replica] for row in history.epochs]
        assert losses == pytest.approx([row.loss[0] for row in own.epochs], rel=1e-4)
        memory = history.optimizer_state.get("inference.failures")
        if memory is not None:
            assert memory[replica] == own.optimizer_state["inference.failures"][0]


@pytest.mark.parametrize("name", ["semi_amortized", "lagging"])
@pytest.mark.parametrize(
    "estimator",
    [
        VAE(2, likelihood="bernoulli"),
        SkipVAE(2),
        LIDVAE(2),
        LIDVAE(2, decoder="brenier"),
        iVAE(2),
        iVAE(2, covariance="full"),
        iVAE(2, posterior_type="joint"),
        LIDMVAE(2, posterior_type="marginal"),
    ],
    ids=str,
)
def test_every_estimator_trains_by_it(name, estimator, segments):
    X, u = segments
    X = np.abs(X) / np.abs(X).max()
    chosen = {"semi_amortized": SemiAmortized(2), "lagging": Lagging(4, block=2)}
    vae = clone(estimator).set_params(inference=chosen[name], **FAST)
    given = {"u": u} if "u" in vae._get_metadata_request().fit.requests else {}
    vae.fit(X, **given)
    asked = given if vae.get_params().get("posterior_type") == "joint" else {}
    Z = vae.transform(X, **asked)
    assert np.isfinite(Z).all()
    np.testing.assert_array_equal(Z, vae.transform(X, **asked))
    np.testing.assert_allclose(
        vae.transform(X[:7], **{k: v[:7] for k, v in asked.items()}),
        Z[:7],
        rtol=1e-6,
        atol=1e-8,
    )
    assert np.isfinite(vae.score_samples(X, **asked)).all()
    assert vae.history_["bound"][-1] > vae.history_["bound"][0]


@pytest.mark.parametrize("procedure", PROCEDURES, ids=lambda p: type(p).__name__)
def test_fitted_estimators_are_saved_with_it(procedure, small_X, tmp_path):
    vae = VAE(2, inference=procedure, **FAST).fit(small_X)
    save(vae, tmp_path / "vae")
    for other in (load(tmp_path / "vae"), pickle.loads(pickle.dumps(vae))):
        np.testing.assert_array_equal(other.transform(small_X), vae.transform(small_X))
        np.testing.assert_array_equal(
            other.score_samples(small_X), vae.score_samples(small_X)
        )
    again = clone(vae).fit(small_X)
    assert again.loss_curve_ == vae.loss_curve_


def test_a_search_reaches_its_options(small_X):
    search = GridSearchCV(
        VAE(2, inference=SemiAmortized(), **FAST), {"inference__n_steps": [1, 4]}, cv=2
    )
    search.fit(small_X)
    assert (
        search.best_estimator_._inference.n_steps
        == search.best_params_["inference__n_steps"]
    )
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]


@pytest.mark.parametrize("procedure", PROCEDURES, ids=lambda p: type(p).__name__)
def test_partial_fit_goes_on_where_it_stopped(procedure, small_X, tmp_path):
    vae = VAE(2, inference=procedure, **FAST)
    for _ in range(3):
        vae.partial_fit(small_X)
    save(vae, tmp_path / "vae")
    other = load(tmp_path / "vae")
    for estimator in (vae, other):
        estimator.partial_fit(small_X)
    np.testing.assert_array_equal(vae.transform(small_X), other.transform(small_X))


def test_partial_fit_keeps_the_phase(small_X, monkeypatch):
    sequence = iter([1.0, 2.0, 1.5])
    monkeypatch.setattr(
        inference, "mutual_information", lambda state: torch.tensor([next(sequence)])
    )
    vae = VAE(2, inference=Lagging(4, block=2, patience=1), **FAST)
    failures = []
    for _ in range(4):
        vae.partial_fit(small_X)
        failures.append(vae._optimizer_state["inference.failures"].item())
    # The fourth call does not ask for the information: the phase is over.
    assert failures == [0.0, 0.0, 1.0, 1.0]
    assert vae._optimizer_state["inference.best_information"].item() == 2.0


def test_changing_the_procedure_between_partial_fits_is_possible(small_X):
    vae = VAE(2, **FAST).partial_fit(small_X)
    for chosen in ("lagging", "semi_amortized", "amortized"):
        vae.set_params(inference=chosen).partial_fit(small_X)
    assert np.isfinite(vae.loss_curve_).all()


@pytest.mark.filterwarnings("ignore:max_iter=3 was reached")
@pytest.mark.parametrize("procedure", PROCEDURES, ids=lambda p: type(p).__name__)
def test_restarts_and_early_stopping_work_with_it(procedure, small_X):
    vae = VAE(2, inference=procedure, n_init=2, early_stopping=True, **FAST)
    vae.fit(small_X)
    assert len(vae.validation_scores_) == vae.n_iter_
    assert vae.best_bound_ == pytest.approx(max(vae.validation_scores_), rel=1e-4)
    assert vae.consistency_.shape == (2,)


@pytest.mark.parametrize(
    "procedure",
    [
        SemiAmortized(n_steps=0),
        SemiAmortized(momentum=1.0),
        SemiAmortized(encoder_loss="none"),
        Lagging(block=0),
        Lagging(patience=0),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(procedure, small_X):
    with pytest.raises(ValueError, match=f"parameter of {type(procedure).__name__}"):
        VAE(2, inference=procedure).fit(small_X)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_short_products_cost_little(likelihood):
    """The bound moves, in the last digits; parameters and answers stay single."""
    X = load_digits().data[:600] / 16.0
    X = X[:, X.std(0) > 0]
    scores = []
    for precision in ("float32", "bfloat16"):
        vae = VAE(
            4,
            width=32,
            max_iter=15,
            likelihood=likelihood,
            inference=Amortized(precision=precision),
            random_state=0,
        ).fit(X.astype(np.float32))
        assert vae.transform(X.astype(np.float32)).dtype == np.float32
        assert all(p.dtype == torch.float32 for p in vae.module_.parameters())
        scores.append(vae.score(X))
    assert scores[0] != scores[1]
    assert scores[1] == pytest.approx(scores[0], abs=0.3)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'precision' parameter of Amortized"):
        VAE(inference=Amortized(precision="float8")).fit(np.eye(8))
