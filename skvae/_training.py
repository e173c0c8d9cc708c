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

from skvae._distributed import ALONE, Ranks, Share, ranks
from skvae._optimizer import FlatAdam
from skvae._random import (
    Seeds,
    Streams,
    generator,
    permutations,
    standard_normal,
    streams,
)
from skvae._replay import ReplayedStep

# Normal draws made at a time, so that memory does not grow with the data.
NOISE_BLOCK = 1 << 18
EVALUATION_ROWS = 4096
MAX_ROLLBACKS = 3
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


def picked(tensor: Tensor, rows: Tensor) -> Tensor:
    """These rows of a tensor, which may rest elsewhere, on the device of `rows`."""
    if tensor.device == rows.device:
        return tensor.index_select(0, rows)
    chosen = tensor.index_select(0, rows.to(tensor.device))
    # From pinned memory the copy runs beside the computation.
    return chosen.pin_memory().to(rows.device, non_blocking=True)


class Data(NamedTuple):
    """Rows to train on: x ``(n, p)``, u ``(n, m)`` or None, weight ``(n,)``.

    Replicas may read different rows: then the tensors are `n_blocks` data sets of n
    rows, one after the other, and `block`, ``(R,)``, is the one of each replica.
    With `rows`, ``(n,)``, the data are these rows of the tensors, which stay whole.
    Where x is too large for the device of the weights, it rests on the CPU.
    """

    x: Tensor
    u: Tensor | None
    weight: Tensor
    block: Tensor | None = None
    n_blocks: int = 1
    rows: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where training takes place."""
        return self.weight.device

    @property
    def streamed(self) -> bool:
        """Whether rows have to be moved before they are used."""
        return self.x.device != self.device

    @property
    def n_rows(self) -> int:
        """Number of rows that a replica reads."""
        if self.rows is not None:
            return len(self.rows)
        return self.x.shape[0] // self.n_blocks

    def take(self, tensor: Tensor, rows) -> Tensor:
        """A copy of these rows of one of the tensors, ``(1 or R, rows, ...)``."""
        if self.rows is not None:
            chosen = picked(tensor, self.rows[rows]).unsqueeze(0)
            return chosen.to(self.weight.dtype)
        if tensor.device != self.device and isinstance(rows, Tensor):
            rows = rows.to(tensor.device)
        blocks = tensor.view(self.n_blocks, -1, *tensor.shape[1:])[:, rows]
        if self.block is None:
            # Never a view: the tensors may be the caller's own read-only memory.
            return blocks.to(self.device, self.weight.dtype, copy=True)
        chosen = blocks[self.block.to(tensor.device)]
        return chosen.to(self.device, self.weight.dtype)

    def gathered(self) -> Data:
        """The same rows as tensors of their own."""
        if self.rows is None:
            return self
        pieces = (self.x, self.u, self.weight)
        return Data(*(None if t is None else picked(t, self.rows) for t in pieces))

    def numbers(self, rows: Tensor) -> Tensor:
        """Places in the tensors of the row numbers ``(R, B)``."""
        if self.block is not None:
            rows = rows + (self.block * self.n_rows).unsqueeze(1)
        if self.rows is not None:
            rows = self.rows.index_select(0, rows.reshape(-1)).view(rows.shape)
        return rows

    def moved(self, rows: Tensor) -> Data:
        """The row numbers ``(R, B)`` as data of their own on the device."""
        flat, n_blocks = self.numbers(rows).reshape(-1), len(rows)
        pieces = (self.x, self.u, self.weight)
        return Data(
            *(None if t is None else picked(t, flat) for t in pieces),
            torch.arange(n_blocks, device=self.device),
            n_blocks,
        )

    def total_weight(self) -> Tensor:
        """Sum of the weights, of each replica ``(R,)`` where they differ."""
        if self.rows is not None:
            return self.weight.index_select(0, self.rows).sum()
        if self.block is None:
            return self.weight.sum()
        return self.weight.view(self.n_blocks, -1).sum(1)[self.block]


class Batch(NamedTuple):
    """Rows of one step: x ``(R, B, p)``, u, weight ``(R, B)`` and noise.

    The noise has shape ``(R, B, d)``, or ``(R, B, k, d)`` for an objective of k draws.
    Where processes share the work, the rows are those of this one's `share`.
    """

    x: Tensor
    u: Tensor | None
    weight: Tensor
    noise: Tensor
    share: Share | None = None


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
        return cut(self.data, torch.stack(rows).to(device), torch.stack(noise))


def noise_shape(n_rows: int, n_latents: int, n_draws: int) -> tuple[int, ...]:
    """Shape of one replica's noise; a single draw has no axis of its own."""
    return (n_rows, n_latents) if n_draws == 1 else (n_rows, n_draws, n_latents)


def cut(data: Data, rows: Tensor, noise: Tensor, processes: Ranks = ALONE) -> Batch:
    """The batch of the row numbers ``(R, B)``, in the dtype of the weights."""
    rows = data.numbers(rows)
    share = None
    if processes.size > 1:
        weight = data.weight.index_select(0, rows.reshape(-1)).view(rows.shape)
        share = processes.share(weight)
        rows, noise = rows[:, share.rows], noise[:, share.rows]
    flat = rows.reshape(-1)

    def take(tensor):
        if tensor is None:
            return None
        chosen = tensor.index_select(0, flat).to(data.weight.dtype)
        return chosen.view(rows.shape[0], -1, *tensor.shape[1:])

    return Batch(take(data.x), take(data.u), take(data.weight), noise, share)


def by_length(order: Tensor, lengths: Tensor, batch_size: int, shuffle) -> Tensor:
    """Put rows ``(R, n)`` of like length into one batch, the batches in random order.

    The last batch, where it is smaller than the others, has rows of any length.
    """
    n_batches = order.shape[1] // batch_size
    together = []
    for rows, stream in zip(order, shuffle, strict=True):
        full, rest = rows.split([n_batches * batch_size, len(rows) % batch_size])
        ranked = full[torch.argsort(lengths.index_select(0, full), stable=True)]
        mixed = torch.randperm(n_batches, generator=stream)
        together.append(torch.cat([ranked.view(-1, batch_size)[mixed].flatten(), rest]))
    return torch.stack(together)


def batches(
    data: Data,
    draws: Streams,
    batch_size: int,
    n_latents: int,
    n_draws: int = 1,
    lengths: Tensor | None = None,
    processes: Ranks = ALONE,
):
    """Shuffled batches of one epoch; each replica in its own order."""
    n = data.n_rows
    dtype = data.weight.dtype
    order = permutations(draws.shuffle, n)
    if lengths is not None:
        order = by_length(order, lengths, batch_size, draws.shuffle)
    order = order.to(data.device)
    block = max(1, NOISE_BLOCK // (batch_size * n_latents * n_draws)) * batch_size
    for start in range(0, n, block):
        size = min(block, n - start)
        shape = noise_shape(size, n_latents, n_draws)
        noise = standard_normal(draws.noise, *shape, dtype=dtype)
        source, rows = data, order[:, start : start + size]
        if data.streamed:
            source = data.moved(rows)
            rows = torch.arange(size, device=data.device).expand(len(rows), size)
        for offset in range(0, size, batch_size):
            part = slice(offset, min(offset + batch_size, size))
            yield cut(source, rows[:, part], noise[:, part], processes)


def chunks(data: Data, rows: int = EVALUATION_ROWS):
    """Consecutive rows with a leading axis of one, or R: ``(x, u, weight)``."""
    for start in range(0, data.n_rows, rows):
        part = slice(start, start + rows)
        u = None if data.u is None else data.take(data.u, part)
        weight = data.take(data.weight, part)
        yield data.take(data.x, part), u, weight[0] if data.block is None else weight


def row_lengths(model, data: Data) -> Tensor | None:
    """Lengths of the rows where the model knows any, ``(n,)`` on the CPU."""
    if not hasattr(model, "lengths"):
        return None
    found = []
    for x, _, _ in chunks(data):
        found.append(model.lengths(x[0]))
        if found[0] is None:
            return None
    return torch.cat(found).cpu()


@torch.no_grad()
def bound(
    model, inference, data: Data, seeds: list[Seeds], processes: Ranks = ALONE
) -> Tensor:
    """Weighted mean ELBO at beta 1 in nats per row, ``(R,)``, with fixed noise."""
    device, dtype = data.device, data.weight.dtype
    noise_streams = [generator(seed.noise, device) for seed in seeds]
    total = torch.zeros(model.n_replicas, dtype=dtype, device=device)
    pieces = chunks(data, model.rows_at_once(EVALUATION_ROWS))
    for number, (x, u, weight) in enumerate(pieces):
        noise = standard_normal(noise_streams, x.shape[1], model.n_latents, dtype=dtype)
        if not processes.owns(number):
            continue
        q = inference.posterior(model, x, u)
        z = q.sample(noise)
        log_likelihood = model.expected_log_likelihood(x, q, z)
        rows = log_likelihood - model.prior.kl(q, z, u)
        total += (rows * weight).sum(-1)
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
        if all(finite):
            self.good.copy_(self.optimizer.values)
        else:
            for replica, fine in enumerate(finite):
                if fine:
                    self.good[replica] = self.optimizer.values[replica]
        if validation is not None:
            row.validation_bound = self.watch(number, validation)
        return row

    def out_of_patience(self, replicas: slice = slice(None)) -> bool:
        """Whether the held-out bound of these replicas has stood still for long."""
        patience = self.settings.patience
        return patience is not None and all(
            waited >= patience for waited in self.waited[replicas]
        )

    def final_values(self, replicas: slice = slice(None)) -> Tensor:
        """The best parameters by the held-out bound, or else the last, ``(r, P)``."""
        watched = max(self.best_bound[replicas]) > -math.inf
        return (self.best if watched else self.optimizer.values)[replicas]

    def run_epoch(self, number: int) -> tuple[Epoch, list[bool]]:
        """One pass over the data; also tells which replicas stayed finite."""
        started = time.perf_counter()
        settings, state = self.settings, self.state
        n_batches = math.ceil(self.data.n_rows / settings.batch_size)
        # One tensor from the start: small ones kept from step to step would lie
        # scattered between the batches and let memory grow with the data.
        totals = self.data.weight.new_empty(n_batches, 3, self.model.n_replicas)
        self.optimizer.norm_sum.zero_()
        sizes = settings.batch_size, self.model.n_latents, self.objective.n_draws
        parts = batches(self.data, self.draws, *sizes, self.lengths, self.ranks)
        for k, batch in enumerate(parts):
            if settings.progress is None:
                state.progress = (number + k / n_batches) / settings.max_epochs
            share = state.share = self.optimizer.share = batch.share
            terms = self.step(batch)
            with torch.no_grad():
                total = (torch.stack(terms) * batch.weight).sum(-1)
                totals[k] = total if share is None else share.of(total)
        self.ranks.sum(totals)
        means = (totals.sum(0) / self.data.total_weight()).tolist()
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
    run.optimizer.values.copy_(run.final_values())
    run.history.optimizer_state = {**run.optimizer.state(), **run.memory()}
    return run.history
