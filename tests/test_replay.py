"""Recorded steps: to the bit what the steps do, and refused where they could not be."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skvae import (
    LIDMVAE,
    LIDVAE,
    VAE,
    IdentifiableVAE,
    MixtureVAE,
    SkipVAE,
    _replay,
    iFlow,
    iVAE,
)
from skvae._optimizer import FlatAdam
from skvae._replay import NotReplayableError, Tape, variant_with_out
from skvae._training import Training
from skvae.inference import Amortized, Lagging, SemiAmortized
from skvae.likelihoods import Bernoulli
from skvae.networks import MLP
from skvae.networks._layers import DenseNetwork
from skvae.objectives import ELBO, IWAE, TotalCorrelation

pytestmark = pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((500, 6)).astype(np.float32)
U = np.repeat(np.arange(5), 100)
COUNTS = np.abs(X).round()
SHARED = {"width": 8, "batch_size": 64, "max_iter": 15, "random_state": 0}


@pytest.fixture
def replays(monkeypatch):
    """The number of replayed steps, the comparisons included, as a list of one."""
    count = [0]
    replay = Tape.replay

    def counted(tape):
        count[0] += 1
        replay(tape)

    monkeypatch.setattr(Tape, "replay", counted)
    return count


def fitted(estimator, X, **params):
    return clone(estimator).fit(X, **params)


def same(one, other, X):
    """Whether two fits agree to the bit, histories included."""
    keys = set(one.history_) - {"seconds"}
    return all(
        np.array_equal(one.history_[key], other.history_[key], equal_nan=True)
        for key in keys
    ) and np.array_equal(one.transform(X), other.transform(X))


CASES = {
    "VAE": (VAE(3, **SHARED), X, {}),
    "weighted": (VAE(3, **SHARED), X, {"sample_weight": RNG.random(len(X)) + 0.5}),
    "restarts": (VAE(3, n_init=3, **SHARED), X, {}),
    "Bernoulli": (VAE(3, likelihood="bernoulli", **SHARED), (X > 0) * 1.0, {}),
    "drawn anew": (
        VAE(3, likelihood=Bernoulli(resample=True), **SHARED),
        X.clip(0, 1),
        {},
    ),
    "Poisson": (VAE(3, likelihood="poisson", **SHARED), COUNTS, {}),
    "overdispersed": (VAE(3, likelihood="negative_binomial", **SHARED), COUNTS, {}),
    "skips": (SkipVAE(3, **SHARED), X, {}),
    "anchored": (LIDVAE(3, **SHARED), X, {}),
    "Brenier": (LIDVAE(3, decoder="brenier", **SHARED), X, {}),
    "iVAE": (iVAE(3, **SHARED), X, {"u": U}),
    "full covariance": (iVAE(3, covariance="full", **SHARED), X, {"u": U}),
    "mixture prior": (IdentifiableVAE(3, **SHARED), X, {}),
    "MixtureVAE": (MixtureVAE(3, **SHARED), X, {}),
    "LIDMVAE": (LIDMVAE(3, **SHARED), X, {}),
    "inverse": (
        iVAE(2, encoder="inverse", decoder="flow", covariance="full", **SHARED),
        X,
        {"u": U},
    ),
    "iFlow": (iFlow(batch_size=64, max_iter=15, random_state=0), X[:, :2], {"u": U}),
    "total correlation": (VAE(3, objective=TotalCorrelation(), **SHARED), X, {}),
    "IWAE": (VAE(3, objective=IWAE(n_draws=3), **SHARED), X, {}),
    "free bits": (VAE(3, objective=ELBO(free_bits=0.1), **SHARED), X, {}),
    "falling rate": (VAE(3, schedule="cosine", **SHARED), X, {}),
    "early stopping": (VAE(3, early_stopping=True, **SHARED), X, {}),
    "semi-amortized": (VAE(3, inference=SemiAmortized(n_steps=3), **SHARED), X, {}),
    "SVI": (
        VAE(3, inference=SemiAmortized(n_steps=2, encoder_loss="bound"), **SHARED),
        X,
        {},
    ),
}


@pytest.mark.filterwarnings("ignore:max_iter=15 was reached")
@pytest.mark.parametrize("name", CASES)
def test_replayed_training_is_training(name, replays, monkeypatch):
    estimator, X, params = CASES[name]
    replayed = fitted(estimator, X, **params)
    n_replayed = replays[0]
    monkeypatch.setattr(_replay, "LEAST_STEPS", 10**9)
    plain = fitted(estimator, X, **params)
    assert replays[0] == n_replayed
    # Eight batches of two sizes an epoch; all but the first few steps of each size.
    assert n_replayed > 0.6 * 8 * len(replayed.history_["bound"])
    assert same(replayed, plain, X)


@pytest.mark.filterwarnings("ignore:max_iter=15 was reached")
@pytest.mark.parametrize("least", [0, 10**9], ids=["moved", "copied"])
@pytest.mark.parametrize("name", ["skips", "Brenier", "full covariance", "MixtureVAE"])
def test_results_without_memory_of_their_own_reach_their_readers(
    name, least, replays, monkeypatch
):
    """As if no operation could write into given memory."""
    monkeypatch.setattr(_replay, "variant_with_out", lambda function: None)
    monkeypatch.setattr(_replay, "LEAST_MOVED", least)
    estimator, X, params = CASES[name]
    replayed = fitted(estimator, X, **params)
    assert replays[0] > 0.6 * 8 * 15
    monkeypatch.setattr(_replay, "LEAST_STEPS", 10**9)
    assert same(replayed, fitted(estimator, X, **params), X)


OBJECTIVES = {
    "ELBO": ELBO(warm_up=0.5),
    "free bits": ELBO(warm_up=0.5, free_bits=0.1),
    "IWAE": IWAE(n_draws=3, warm_up=0.5),
    "total correlation": TotalCorrelation(warm_up=0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_weight_that_moves_is_read_from_memory(name, replays, monkeypatch):
    estimator = VAE(3, objective=OBJECTIVES[name], **SHARED).set_params(max_iter=20)
    replayed = fitted(estimator, X)
    assert replays[0] > 0.6 * 8 * 20
    monkeypatch.setattr(_replay, "LEAST_STEPS", 10**9)
    assert same(replayed, fitted(estimator, X), X)
    assert len(set(replayed.history_["kl_weight"])) > 8


def test_refinement_that_reads_the_weight_itself_is_not_mistaken(monkeypatch):
    options = {"inference": SemiAmortized(n_steps=3), "objective": ELBO(warm_up=0.5)}
    estimator = VAE(3, **options, **SHARED)
    replayed = fitted(estimator, X)
    monkeypatch.setattr(_replay, "LEAST_STEPS", 10**9)
    assert same(replayed, fitted(estimator, X), X)


def test_a_replica_that_fails_is_rolled_back(replays, monkeypatch):
    """Its parameters are put back and its rate is halved, between replayed steps."""
    run_epoch = Training.run_epoch

    def spoiled(run, number):
        if number == 7:
            run.optimizer.parameters[0].data[1, 0, 0] = torch.nan
        return run_epoch(run, number)

    monkeypatch.setattr(Training, "run_epoch", spoiled)
    estimator = VAE(3, n_init=2, **SHARED)
    with pytest.warns(ConvergenceWarning, match="non-finite 1 time"):
        replayed = fitted(estimator, X)
    assert replays[0] > 0
    monkeypatch.setattr(_replay, "LEAST_STEPS", 10**9)
    with pytest.warns(ConvergenceWarning, match="non-finite 1 time"):
        plain = fitted(estimator, X)
    assert same(replayed, plain, X)


def test_lagging_steps_and_short_runs_are_not_recorded(replays):
    VAE(3, inference=Lagging(max_inner_steps=2), **SHARED).fit(X)
    VAE(3, **{**SHARED, "max_iter": 3}).fit(X)
    assert replays[0] == 0


class Reading(DenseNetwork):
    """Does as its values say."""

    def forward(self, x):
        out = super().forward(x)
        return out * 2.0 if out.mean().item() > 0 else out


class Counting(DenseNetwork):
    """Does something else in every call, which no operation tells."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1.0 + 0.01 * self.calls)


class Unknown(nn.Module):
    """Says nothing about its operations."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


class Odd(MLP):
    """An MLP of one of these kinds."""

    kind = None

    def build(self, n_in, n_out, generators):
        return self.kind(n_in, n_out, generators, self.width, self.depth, "relu")


@pytest.mark.parametrize(("kind", "most"), [(Reading, 0), (Counting, 2)])
def test_steps_that_operations_do_not_tell(kind, most, replays, monkeypatch):
    """They are refused when recorded, or at the first comparison of either size."""
    decoder = type("Odd", (Odd,), {"kind": kind})(width=8, depth=1)
    replayed = VAE(3, decoder=decoder, **SHARED).fit(X)
    assert replays[0] <= most
    monkeypatch.setattr(_replay, "LEAST_STEPS", 10**9)
    assert same(replayed, VAE(3, decoder=decoder, **SHARED).fit(X), X)


def test_a_network_that_promises_nothing_is_not_recorded(replays):
    class Plain(MLP):
        def build(self, *args):
            return Unknown(super().build(*args))

    VAE(3, decoder=Plain(width=8, depth=1), **SHARED).fit(X)
    assert replays[0] == 0


def test_large_steps_are_not_recorded(replays, monkeypatch):
    monkeypatch.setattr(_replay, "LARGEST", 1000)
    VAE(3, **SHARED).fit(X)
    assert replays[0] == 0


def test_a_tape_computes_with_what_its_inputs_hold():
    x, w = torch.randn(4, 3), torch.randn(3, 2, requires_grad=True)
    found = torch.zeros(3, 2)

    def step():
        loss = (x @ w).tanh().square().sum()
        found.copy_(torch.autograd.grad(loss, w)[0])
        return (loss.detach(),)

    tape = Tape(step)
    with torch.no_grad():
        x.copy_(torch.randn(4, 3))
        w.copy_(torch.randn(3, 2))
    tape.replay()
    hidden = (x @ w).detach().tanh()
    expected = x.T @ (2.0 * hidden * (1.0 - hidden.square()))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(tape.terms[0], hidden.square().sum())


def test_results_are_computed_where_they_are_only_copied_to():
    """Two go; what is written over, read later, or comes too early stays."""
    x = torch.randn(4, 3)
    there = [torch.zeros(1, 3, 3), torch.zeros(1, 1, 3), *torch.zeros(4, 3)]

    def step():
        product, total = x.T @ x, x.sum(0)
        changed, early, term, read = x.mean(0), x.amax(0), x.amin(0), x.prod(0)
        changed.mul_(2.0)
        there[3].add_(1.0)
        here = [product.unsqueeze(0), total.view(1, 1, 3), changed, early, term, read]
        torch._foreach_copy_(there, here)
        there[5].mul_(3.0)
        return (term, read + 1.0)

    tape = Tape(step)
    (copied,) = [args[0] for _, args, _ in tape.calls if isinstance(args[0], list)]
    assert len(copied) == 4
    for _ in range(2):
        x.copy_(torch.randn(4, 3))
        tape.replay()
        expected = x.T @ x, x.sum(0), 2.0 * x.mean(0), x.amax(0), x.amin(0)
        for found, value in zip(there, (*expected, 3.0 * x.prod(0)), strict=True):
            torch.testing.assert_close(found.view(value.shape), value)
        torch.testing.assert_close(tape.terms[0], x.amin(0))
        torch.testing.assert_close(tape.terms[1], x.prod(0) + 1.0)


def test_results_take_the_memory_of_those_that_nobody_reads_any_more():
    """But not of what is read in another order, in other places or later."""
    x, there = torch.randn(4, 4), torch.zeros(4, 4)

    def compute():
        term = x.sin()
        chain = (x + 1.0).exp().cos().mul(2.0)
        turned = chain + chain.mT
        product = turned @ turned
        kept = product.sqrt().nan_to_num()
        shifted = kept[:2] + kept[2:]
        return term, shifted, kept.tanh() + turned

    def step():
        term, shifted, last = compute()
        there.copy_(last)
        return term, shifted

    tape = Tape(step)
    for found, value in zip((*tape.terms, there), compute(), strict=True):
        assert torch.equal(found, value)
    for _ in range(2):
        x.copy_(torch.randn(4, 4))
        tape.replay()
        for found, value in zip((*tape.terms, there), compute(), strict=True):
            assert torch.equal(found, value)
    results = [kwargs["out"] for _, _, kwargs in tape.calls if "out" in kwargs]
    # The two terms, and two in place of ten.
    assert len(results) == 12
    assert len({t.untyped_storage().data_ptr() for t in results}) == 4


def test_what_never_changes_is_not_computed_again():
    x, written = torch.randn(4), torch.zeros(4)

    def step():
        ones = torch.ones_like(x)
        # Constant as well, but for what is then done to it.
        changed = torch.zeros_like(x)
        changed.add_(x)
        drawn = torch.rand_like(x)
        written.copy_(x * (2.0 * ones) + changed + 0.0 * drawn)
        return (written,)

    tape = Tape(step)
    # All but the ones and their double.
    assert len(tape.calls) == 8
    x.copy_(torch.randn(4))
    tape.replay()
    torch.testing.assert_close(written, 3.0 * x)


def test_parameters_begin_with_a_cache_line():
    """Products written elsewhere differ in the last bit, and no step is replayed."""
    network = DenseNetwork(3, 5, [torch.Generator().manual_seed(0)] * 2, 7, 2, "relu")
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = FlatAdam(network, 2)
    for p, slot, old in zip(network.parameters(), optimizer.slots, before, strict=True):
        assert torch.equal(p, old)
        assert p.storage_offset() % 16 == slot.storage_offset() % 16 == 0


def test_a_tape_draws_anew():
    generator, drawn = torch.Generator().manual_seed(0), torch.zeros(5)
    reference = torch.Generator().manual_seed(0)
    tape = Tape(lambda: drawn.copy_(torch.randn(5, generator=generator)))
    for _ in range(3):
        assert torch.equal(drawn, torch.randn(5, generator=reference))
        tape.replay()


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool(torch.equal(x, x)),
    ],
)
def test_values_that_decide_are_refused(step):
    with pytest.raises(NotReplayableError):
        Tape(lambda: step(torch.randn(5)))


def test_variants_compute_the_same():
    a, b = torch.randn(3, 3), torch.randn(3, 3)
    for function in (torch.ops.aten.mm.default, torch.ops.aten.mul.Tensor):
        call, name = variant_with_out(function)
        out = torch.empty(3, 3)
        call(a, b, **{name: out})
        assert torch.equal(out, function(a, b))
    assert variant_with_out(torch.ops.aten.max.dim) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("inference", [Amortized(), SemiAmortized(n_steps=2)])
def test_graphs_on_cuda_do_what_the_steps_do(inference, monkeypatch):
    estimator = VAE(3, device="cuda", inference=inference, **SHARED)
    replayed = fitted(estimator, X)
    monkeypatch.setattr(_replay, "LEAST_STEPS", 10**9)
    plain = fitted(estimator, X)
    np.testing.assert_allclose(
        replayed.history_["bound"], plain.history_["bound"], rtol=1e-3
    )
