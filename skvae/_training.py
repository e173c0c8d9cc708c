"""The only training loop: batches by index, R replicas at once.

The loop knows no method by name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skvae._batches import (
    EVALUATION_ROWS,
    Batch,
    Data,
    batches,
    chunks,
    cut,
    noise_shape,
    row_lengths,
)
from skvae._distributed import ALONE, Ranks, ranks
from skvae._optimizer import FlatAdam
from skvae._random import (
    Seeds,
    Streams,
    generator,
    standard_normal,
    streams,
)
from skvae._replay import ReplayedStep

MAX_ROLLBACKS = 3
# Numbers in the covariances of a chunk of rows.
COVARIANCES = 1 << 22
# Prefix of the inference procedure's tensors among the optimiser's.
MEMORY = "inference."


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
    """What an inference procedure's step works on.

    `memory` holds the procedure's own tensors: they go into the history and come
    back when a later call of :func:`train` continues this one. `evaluation` are the
    rows on which it may judge the model, held out where there are such.
    """

    def __init__(self, model, objective, optimizer: FlatAdam, settings: Settings):
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.settings = settings
        self.base_rates = [settings.learning_rate] * model.n_replicas
        self.progress = settings.progress or 0.0
        self.memory: dict[str, Tensor] = {}
        self.data = self.evaluation = self.draws = self.seeds = self.share = None

    def rates(self) -> list[float]:
        factor = self.settings.schedule(self.progress)
        return [rate * factor for rate in self.base_rates]

    def noise(self, n_rows: int, n_draws: int) -> Tensor:
        """Fresh standard normal draws for a batch, shape ``(R, B, n_draws, d)``."""
        if self.share is not None:
            n_rows = self.share.n_rows
        shape = n_rows, n_draws, self.model.n_latents
        noise = standard_normal(self.draws.noise, *shape, dtype=self.data.weight.dtype)
        return noise if self.share is None else noise[:, self.share.rows]

    def resampled(self, batch: Batch, active: Sequence[bool]) -> Batch:
        """The batch, with binary features drawn anew where the likelihood asks."""
        likelihood = getattr(self.model, "likelihood", None)
        if not getattr(likelihood, "resample", False):
            return batch
        share, x = batch.share, batch.x
        n_rows = x.shape[1] if share is None else share.n_rows
        uniform = x.new_zeros(len(x), n_rows, *x.shape[2:])
        for own, source, runs in zip(uniform, self.draws.noise, active, strict=True):
            if runs:
                own.uniform_(generator=source)
        if share is not None:
            uniform = uniform[:, share.rows]
        return batch._replace(x=(uniform < x).to(x.dtype))

    def passed(self, marks: tuple[float, ...]) -> bool:
        """Whether training went past one of these fractions in the last epoch."""
        if self.settings.progress is not None:
            return False
        n_epochs = self.settings.max_epochs
        # Up to a rounding: the progress is that at the start of the last batch.
        number = math.floor(self.progress * n_epochs + 1e-9)
        return any(number < mark * n_epochs - 1e-9 <= number + 1 for mark in marks)

    def chunks(self, limit: int) -> list[tuple]:
        """Evenly spaced rows, at most `limit`: x, u, weight and noise, in chunks.

        Small enough for a covariance of the latents per row.
        """
        data, d = self.data, self.model.n_latents
        n = min(data.n_rows, limit)
        rows = torch.arange(n) * data.n_rows // n
        size = max(1, COVARIANCES // (self.model.n_replicas * d**2))
        size = min(size, self.model.rows_at_once(EVALUATION_ROWS))
        sources = [generator(seed.noise, data.device) for seed in self.seeds]
        pieces = []
        for part in rows.to(data.device).split(size):
            x, u, weight = (data.take(tensor, part) for tensor in data[:3])
            noise = standard_normal(sources, len(part), d, dtype=weight.dtype)
            pieces.append((x, u, weight, noise))
        return pieces

    def random_batch(self, active: list[bool]) -> Batch:
        """Random rows, each at most once; the streams of idle replicas stand still."""
        n = self.data.n_rows
        size = min(self.settings.batch_size, n)
        shape = noise_shape(size, self.model.n_latents, self.objective.n_draws)
        dtype, device = self.data.weight.dtype, self.data.device
        rows, noise = [], []
        for shuffle, draws, runs in zip(*self.draws, active, strict=True):
            if runs:
                rows.append(torch.randperm(n, generator=shuffle)[:size])
                noise.append(standard_normal([draws], *shape, dtype=dtype)[0])
            else:
                rows.append(torch.arange(size))
                noise.append(torch.zeros(shape, dtype=dtype, device=device))
        numbers = self.data.numbers(torch.stack(rows).to(device))
        batch = cut(self.data, numbers, torch.stack(noise))
        return self.resampled(batch, active)


def evaluated(model, data: Data, seeds: list[Seeds]):
    """All rows with noise that only the seeds decide: x, u, weight and noise, in parts.

    The noise of many rows is drawn at once, whatever the number of replicas: a
    generator's numbers depend on how many it is asked for.
    """
    streams_of_noise = [generator(seed.noise, data.device) for seed in seeds]
    dtype = data.weight.dtype
    for x, u, weight in chunks(data, model.rows_at_once(EVALUATION_ROWS)):
        n = x.shape[1]
        noise = standard_normal(streams_of_noise, n, model.n_latents, dtype=dtype)
        size = model.rows_in_cache(n)
        for start in range(0, n, size):
            part = slice(start, start + size)
            u_part = None if u is None else u[:, part]
            yield x[:, part], u_part, weight[..., part], noise[:, part]


@torch.no_grad()
def bound(
    model, inference, data: Data, seeds: list[Seeds], processes: Ranks = ALONE
) -> Tensor:
    """Weighted mean ELBO at beta 1 in nats per row, ``(R,)``, with fixed noise."""
    total = data.weight.new_zeros(model.n_replicas)
    for number, part in enumerate(evaluated(model, data, seeds)):
        if not processes.owns(number):
            continue
        x, u, weight, noise = part
        q = inference.posterior(model, x, u)
        total += (model.bound(x, q, q.sample(noise), u) * weight).sum(-1)
    return processes.sum(total) / data.total_weight()


class Training:
    """One run of the loop; see :func:`train`."""

    def __init__(self, model, data, objective, inference, settings, seeds, draws):
        self.model, self.data, self.seeds = model, data, seeds
        self.objective, self.inference = objective, inference
        self.settings = settings
        device = data.device
        self.draws = draws if draws is not None else streams(seeds, device)
        self.optimizer = inference.optimizer(model)
        self.ranks = ranks()
        self.ranks.start(self)
        self.lengths = row_lengths(model, data)
        self.state = state = State(model, objective, self.optimizer, settings)
        state.data = state.evaluation = data
        state.draws, state.seeds = self.draws, seeds
        n_batches = math.ceil(data.n_rows / settings.batch_size)
        self.step = ReplayedStep(inference, state, n_batches * settings.max_epochs)
        self.history = History(model.n_replicas)
        n_replicas = model.n_replicas
        self.history.rollbacks = [[] for _ in range(n_replicas)]
        self.good = self.optimizer.values.clone()
        self.best = self.good
        self.best_bound = [-math.inf] * n_replicas
        self.waited = [0] * n_replicas
        self.failed: dict[int, NonFiniteLossError] = {}

    def advance(self, number: int, validation: Data | None) -> Epoch:
        """One epoch and what follows it; failed replicas are in `failed`."""
        row, finite = self.run_epoch(number)
        self.inference.end_epoch(self.state)
        # What each process decides by itself may differ by a rounding.
        self.ranks.agree(self.optimizer.values)
        if all(finite):
            self.good.copy_(self.optimizer.values)
        else:
            for replica, fine in enumerate(finite):
                if fine:
                    self.keep(self.good, replica)
        if validation is not None:
            row.validation_bound = self.watch(number, validation)
        return row

    def keep(self, buffer: Tensor, replica: int) -> None:
        """Take down the parameters of one replica."""
        self.optimizer.layout.put(buffer, replica, self.optimizer.values)

    def out_of_patience(self, replicas: slice = slice(None)) -> bool:
        """Whether the held-out bound of these replicas has stood still for long."""
        patience = self.settings.patience
        return patience is not None and all(
            waited >= patience for waited in self.waited[replicas]
        )

    def final_values(self, replicas: slice = slice(None)) -> list[Tensor]:
        """The best parameters by the held-out bound, or else the last."""
        watched = max(self.best_bound[replicas]) > -math.inf
        values = self.best if watched else self.optimizer.values
        return self.optimizer.layout.views(values, replicas)

    def run_epoch(self, number: int) -> tuple[Epoch, list[bool]]:
        """One pass over the data; also tells which replicas stayed finite."""
        started = time.perf_counter()
        settings, state, optimizer = self.settings, self.state, self.optimizer
        n_batches = math.ceil(self.data.n_rows / settings.batch_size)
        # One tensor from the start: small ones kept from step to step would lie
        # scattered between the batches and let memory grow with the data.
        totals = self.data.weight.new_empty(n_batches, 3, self.model.n_replicas)
        self.optimizer.norm_sum.zero_()
        sizes = settings.batch_size, self.model.n_latents, self.objective.n_draws
        options = self.lengths, self.ranks, self.step.memory
        parts = batches(self.data, self.draws, *sizes, *options)
        everyone = [True] * self.model.n_replicas
        for k, batch in enumerate(parts):
            if settings.progress is None:
                state.progress = (number + k / n_batches) / settings.max_epochs
            share = state.share = self.optimizer.share = batch.share
            batch = state.resampled(batch, everyone)
            terms = self.step.take(batch)
            with torch.no_grad():
                total = (torch.stack(terms) * batch.weight).sum(-1)
                totals[k] = total if share is None else share.of(total)
        self.ranks.sum(totals)
        means = (totals.sum(0) / self.data.total_weight()).tolist()
        # A number that is not finite stays so in a sum.
        sums = [rows.sum(1) for rows in optimizer.layout.rows(optimizer.values)]
        finite = torch.isfinite(totals).all(0).all(0) & torch.isfinite(sum(sums))
        finite = finite.tolist()
        if not all(finite):
            self.roll_back(number, finite, totals)
        norms = (self.optimizer.norm_sum / n_batches).tolist()
        weight = self.objective.weight(state.progress)
        seconds = time.perf_counter() - started
        return Epoch(*means, weight, norms, state.rates(), seconds), finite

    def memory(self) -> dict[str, Tensor]:
        """What the inference procedure remembers, on the CPU."""
        memory = self.state.memory
        return {MEMORY + name: value.cpu().clone() for name, value in memory.items()}

    def remember(self, state: dict[str, Tensor]) -> None:
        """Give the inference procedure back its :meth:`memory`."""
        for name, value in state.items():
            if name.startswith(MEMORY):
                self.state.memory[name.removeprefix(MEMORY)] = value.clone()

    def roll_back(self, number: int, finite: list[bool], totals: Tensor) -> None:
        """Return failed replicas to the last good weights at half the rate."""
        for replica, fine in enumerate(finite):
            if fine:
                continue
            failures = self.history.rollbacks[replica]
            failures.append(number)
            if len(failures) > MAX_ROLLBACKS and replica not in self.failed:
                self.failed[replica] = NonFiniteLossError(
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
        values = bound(
            self.model, self.inference, validation, self.seeds, self.ranks
        ).tolist()
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
                self.keep(self.best, replica)
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
    if validation is not None:
        run.state.evaluation = validation
    if optimizer_state:
        run.optimizer.resume(optimizer_state)
        run.remember(optimizer_state)
    for number in range(settings.max_epochs):
        end_epoch = begin_epoch()
        row = run.advance(number, validation)
        for error in run.failed.values():
            raise error
        run.history.stopped_by_patience = run.out_of_patience()
        run.history.epochs.append(row)
        stop = run.ranks.any(end_epoch(row), data.device)
        if stop or run.history.stopped_by_patience:
            break
    if run.best is not run.good:
        run.optimizer.values.copy_(run.best)
    run.history.optimizer_state = {**run.optimizer.state(), **run.memory()}
    return run.history
