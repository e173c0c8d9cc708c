"""Rows to train on, and the batches and chunks they are cut into.

Data stay in contiguous tensors and keep their dtype (uint8 included) until a batch is
cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._distributed import ALONE, Ranks, Share
from skvae._random import Streams, permutations, standard_normal

# Normal draws made at a time, so that memory does not grow with the data.
NOISE_BLOCK = 1 << 18
EVALUATION_ROWS = 4096


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
    rows, one after the other, and `block`, ``(R,)``, is the one of each replica; of
    their rows the first `counts` are data and the others have no weight.
    With `rows`, ``(n,)``, the data are these rows of the tensors, which stay whole.
    Where x is too large for the device of the weights, it rests on the CPU.
    """

    x: Tensor
    u: Tensor | None
    weight: Tensor
    block: Tensor | None = None
    n_blocks: int = 1
    rows: Tensor | None = None
    counts: tuple[int, ...] | None = None

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

    def own_rows(self, n_replicas: int) -> list[int]:
        """Numbers of the rows of each replica that are data."""
        if self.counts is None:
            return [self.n_rows] * n_replicas
        return [self.counts[block] for block in self.block]

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
            parts = self.rows.split(EVALUATION_ROWS)
            return sum(self.weight.index_select(0, part).sum() for part in parts)
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


def noise_shape(n_rows: int, n_latents: int, n_draws: int) -> tuple[int, ...]:
    """Shape of one replica's noise; a single draw has no axis of its own."""
    return (n_rows, n_latents) if n_draws == 1 else (n_rows, n_draws, n_latents)


def cut(
    data: Data,
    rows: Tensor,
    noise: Tensor,
    processes: Ranks = ALONE,
    memory: Batch | None = None,
) -> Batch:
    """The batch of rows at these :meth:`Data.numbers`, in the dtype of the weights.

    In `memory`, an earlier batch of as many rows that nobody reads any more, if given.
    """
    share = None
    if processes.size > 1:
        weight = data.weight.index_select(0, rows.reshape(-1)).view(rows.shape)
        share = processes.share(weight)
        rows, noise = rows[:, share.rows], noise[:, share.rows]
    flat = rows.reshape(-1)
    if memory is not None:
        for tensor, place in zip(data[:3], memory[:3], strict=True):
            if tensor is None:
                continue
            if tensor.dtype == place.dtype:
                place = place.view(-1, *tensor.shape[1:])
                torch.index_select(tensor, 0, flat, out=place)
            else:
                place.copy_(tensor.index_select(0, flat).view(place.shape))
        memory.noise.copy_(noise)
        return memory

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
    memory: Callable[[int], Batch | None] = lambda n_rows: None,
):
    """Shuffled batches of one epoch; each replica in its own order.

    `memory` answers where a batch of so many rows may be written, if anywhere.
    """
    n = data.n_rows
    dtype = data.weight.dtype
    counts = data.own_rows(len(draws.shuffle))
    order = permutations(draws.shuffle, counts)
    if lengths is not None:
        order = by_length(order, lengths, batch_size, draws.shuffle)
    order = order.to(data.device)
    block = max(1, NOISE_BLOCK // (batch_size * n_latents * n_draws)) * batch_size
    for start in range(0, n, block):
        size = min(block, n - start)
        shape = noise_shape(size, n_latents, n_draws)
        own = [min(max(count - start, 0), size) for count in counts]
        noise = standard_normal(draws.noise, *shape, dtype=dtype, counts=own)
        source, rows = data, order[:, start : start + size]
        if data.streamed:
            source = data.moved(rows)
            rows = torch.arange(size, device=data.device).expand(len(rows), size)
        rows = source.numbers(rows)
        for offset in range(0, size, batch_size):
            part = slice(offset, min(offset + batch_size, size))
            place = memory(part.stop - part.start)
            yield cut(source, rows[:, part], noise[:, part], processes, place)


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
