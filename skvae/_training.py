"""The only training loop: batches by index, R replicas at once.

The loop knows no method by name. Data stay in one contiguous tensor on the device
and keep their dtype (uint8 included) until a batch is cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._optimizer import FlatAdam
from skvae._random import (
    Seeds,
    Streams,
    generator,
    permutations,
    standard_normal,
    streams,
)

# Normal draws made at a time, so that memory does not grow with the data.
NOISE_BLOCK = 1 << 18
EVALUATION_ROWS = 4096
MAX_ROLLBACKS = 3


# Factor on the learning rate after a fraction of training.
SCHEDULES = {
    "constant": lambda progress: 1.0,
    # Flat for the first half, then half a cosine down to a hundredth.
    "cosine": lambda progress: (
        1.0
        if progress < 0.5
        else 0.505 + 0.495 * math.cos(2.0 * math.pi * (min(progress, 1.0) - 0.5))
    ),
}


class Data(NamedTuple):
    """Rows to train on: x ``(n, p)``, u ``(n, m)`` or None, weight ``(n,)``."""

    x: Tensor
    u: Tensor | None
    weight: Tensor


class Batch(NamedTuple):
    """Rows of one step: x ``(R, B, p)``, noise ``(R, B, d)``, weight ``(R, B)``."""

    x: Tensor
    u: Tensor | None
    weight: Tensor
    noise: Tensor


@dataclass
class Settings:
    """What the loop needs to know beyond the parts."""

    max_epochs: int
    batch_size: int
    learning_rate: float
    schedule: Callable[[float], float]
    patience: int | None = None
    tol: float = 0.0
    progress: float | None = None
    """A fixed progress for single passes; None counts through `max_epochs`."""


@dataclass
class Epoch:
    """One replica-wise row of the history, in nats per row of data."""

    loss: list[float]
    log_likelihood: list[float]
    kl: list[float]
    kl_weight: float
    gradient_norm: list[float]
    learning_rate: list[float]
    seconds: float
    validation_bound: list[float] | None = None


@dataclass
class History:
    """All epochs, when each replica rolled back, and why training ended."""

    n_replicas: int
    epochs: list[Epoch] = field(default_factory=list)
    rollbacks: list[list[int]] = field(default_factory=list)
    stopped_by_patience: bool = False
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)


class NonFiniteLossError(ValueError):
    """Training turned non-finite more often than it may be rolled back."""


class State:
    """What an inference procedure's step works on."""

    def __init__(self, model, objective, optimizer: FlatAdam, settings: Settings):
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.settings = settings
        self.base_rates = [settings.learning_rate] * model.n_replicas
        self.progress = settings.progress or 0.0

    def rates(self) -> list[float]:
        factor = self.settings.schedule(self.progress)
        return [rate * factor for rate in self.base_rates]


def batches(data: Data, draws: Streams, batch_size: int, n_latents: int):
    """Shuffled batches of one epoch; each replica in its own order."""
    n = data.x.shape[0]
    n_replicas = len(draws.shuffle)
    device, dtype = data.x.device, data.weight.dtype
    order = permutations(draws.shuffle, n).to(device)
    block = max(1, NOISE_BLOCK // (batch_size * n_latents)) * batch_size
    for start in range(0, n, block):
        size = min(block, n - start)
        noise = standard_normal(draws.noise, size, n_latents, dtype=dtype)
        for offset in range(0, size, batch_size):
            rows = order[:, start + offset : min(start + offset + batch_size, n)]
            flat = rows.reshape(-1)

            def cut(tensor, flat=flat):
                if tensor is None:
                    return None
                chosen = tensor.index_select(0, flat).to(dtype)
                return chosen.view(n_replicas, -1, *tensor.shape[1:])

            yield Batch(
                cut(data.x),
                cut(data.u),
                cut(data.weight),
                noise[:, offset : offset + batch_size],
            )


def chunks(data: Data, rows: int = EVALUATION_ROWS):
    """Consecutive rows with a leading axis of one: ``(x, u, weight)``."""
    dtype = data.weight.dtype
    for start in range(0, data.x.shape[0], rows):
        part = slice(start, start + rows)
        u = None if data.u is None else data.u[part].to(dtype).unsqueeze(0)
        yield data.x[part].to(dtype).unsqueeze(0), u, data.weight[part]


@torch.no_grad()
def bound(model, inference, data: Data, seeds: list[Seeds]) -> Tensor:
    """Weighted mean ELBO at beta 1 in nats per row, ``(R,)``, with fixed noise."""
    device, dtype = data.x.device, data.weight.dtype
    noise_streams = [generator(seed.noise, device) for seed in seeds]
    total = torch.zeros(model.n_replicas, dtype=dtype, device=device)
    for x, u, weight in chunks(data):
        q = inference.posterior(model, x, u)
        noise = standard_normal(noise_streams, x.shape[1], model.n_latents, dtype=dtype)
        z = q.sample(noise)
        log_likelihood = model.likelihood.log_prob(x, model.decode(z))
        rows = log_likelihood - model.prior.kl(q, z, u)
        total += (rows * weight).sum(-1)
    return total / data.weight.sum()


class Training:
    """One run of the loop; see :func:`train`."""

    def __init__(self, model, data, objective, inference, settings, seeds, draws):
        self.model, self.data, self.seeds = model, data, seeds
        self.objective, self.inference = objective, inference
        self.settings = settings
        device = data.x.device
        self.draws = draws if draws is not None else streams(seeds, device)
        self.optimizer = FlatAdam(model, model.n_replicas)
        self.state = State(model, objective, self.optimizer, settings)
        self.history = History(model.n_replicas)
        n_replicas = model.n_replicas
        self.history.rollbacks = [[] for _ in range(n_replicas)]
        self.good = self.optimizer.values.clone()
        self.best = self.good
        self.best_bound = [-math.inf] * n_replicas
        self.waited = [0] * n_replicas

    def run_epoch(self, number: int) -> tuple[Epoch, list[bool]]:
        """One pass over the data; also tells which replicas stayed finite."""
        started = time.perf_counter()
        settings, state = self.settings, self.state
        n_batches = math.ceil(self.data.x.shape[0] / settings.batch_size)
        sums = []
        self.optimizer.norm_sum.zero_()
        for k, batch in enumerate(
            batches(self.data, self.draws, settings.batch_size, self.model.n_latents)
        ):
            if settings.progress is None:
                state.progress = (number + k / n_batches) / settings.max_epochs
            terms = self.inference.step(state, batch)
            with torch.no_grad():
                sums.append((torch.stack(terms) * batch.weight).sum(-1))
        totals = torch.stack(sums)
        means = (totals.sum(0) / self.data.weight.sum()).tolist()
        finite = (
            torch.isfinite(totals).all(0).all(0)
            & torch.isfinite(self.optimizer.values).all(1)
        ).tolist()
        if not all(finite):
            self.roll_back(number, finite, totals)
        norms = (self.optimizer.norm_sum / n_batches).tolist()
        weight = self.objective.weight(state.progress)
        seconds = time.perf_counter() - started
        return Epoch(*means, weight, norms, state.rates(), seconds), finite

    def roll_back(self, number: int, finite: list[bool], totals: Tensor) -> None:
        """Return failed replicas to the last good weights at half the rate."""
        for replica, fine in enumerate(finite):
            if fine:
                continue
            failures = self.history.rollbacks[replica]
            failures.append(number)
            if len(failures) > MAX_ROLLBACKS:
                raise NonFiniteLossError(
                    f"The {self.failed_term(totals[..., replica])} became non-finite "
                    f"in epoch {number + 1}, after {MAX_ROLLBACKS} returns to the "
                    "last good weights with half the learning rate each. Scale X "
                    "(StandardScaler), lower learning_rate, or look for extreme rows."
                )
            self.optimizer.restore(replica, self.good)
            self.state.base_rates[replica] *= 0.5

    @staticmethod
    def failed_term(totals: Tensor) -> str:
        """Name of the term, of shape ``(batches, 3)``, that failed first."""
        for row in torch.isfinite(totals).tolist():
            for name, fine in zip(("log-likelihood", "KL"), row[1:], strict=True):
                if not fine:
                    return name + " term"
        return "gradient"

    def watch(self, number: int, validation: Data) -> list[float]:
        """Record the held-out bound, keep the best weights, count the waiting."""
        values = bound(self.model, self.inference, validation, self.seeds).tolist()
        if not self.objective.is_final(self.state.progress):
            return values
        patience = self.settings.patience
        for replica, value in enumerate(values):
            if self.waited[replica] >= patience:
                continue
            better = value > self.best_bound[replica] + self.settings.tol
            self.waited[replica] = 0 if better else self.waited[replica] + 1
            if value > self.best_bound[replica]:
                if self.best is self.good:
                    self.best = self.good.clone()
                self.best_bound[replica] = value
                self.best[replica] = self.optimizer.values[replica]
        return values


def train(
    model,
    data: Data,
    *,
    objective,
    inference,
    settings: Settings,
    seeds: list[Seeds],
    begin_epoch: Callable,
    validation: Data | None = None,
    draws: Streams | None = None,
    optimizer_state: dict[str, Tensor] | None = None,
) -> History:
    """Train all replicas of `model` in place.

    `begin_epoch()` is called before each epoch and returns a function that takes the
    epoch's row and answers whether to stop. Raises NonFiniteLossError when a replica
    fails more than three times.
    """
    run = Training(model, data, objective, inference, settings, seeds, draws)
    if optimizer_state:
        run.optimizer.resume(optimizer_state)
    for number in range(settings.max_epochs):
        end_epoch = begin_epoch()
        row, finite = run.run_epoch(number)
        if all(finite):
            run.good.copy_(run.optimizer.values)
        else:
            for replica, fine in enumerate(finite):
                if fine:
                    run.good[replica] = run.optimizer.values[replica]
        if validation is not None:
            row.validation_bound = run.watch(number, validation)
            run.history.stopped_by_patience = all(
                waited >= settings.patience for waited in run.waited
            )
        run.history.epochs.append(row)
        if end_epoch(row) or run.history.stopped_by_patience:
            break
    if max(run.best_bound) > -math.inf:
        run.optimizer.values.copy_(run.best)
    run.history.optimizer_state = run.optimizer.state()
    return run.history
