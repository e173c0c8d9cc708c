"""Data parallelism: the processes of a group do a part of each batch.

Every process holds the same rows, settings and seeds and draws the same random numbers,
so that all know every batch without a word. Each works on its own part. The gradients
of the parts, weighted by their share of the weight, add up to that of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Rows by which processes notice that they do not hold the same data.
COMPARED_ROWS = 8


class Share(NamedTuple):
    """The part of a batch of `n_rows` rows that belongs to this process.

    `rows` are its places in the batch and `fraction`, ``(R,)``, is its share of the
    weight. A process to which no row is left does the first one for nothing: then
    `counts` is False and the fraction zero.
    """

    n_rows: int
    rows: slice
    fraction: Tensor
    counts: bool

    def combine(self, gradients: Tensor, pieces: list[Tensor]) -> None:
        """Replace the gradient of the part's mean by that of the batch's.

        It is in `pieces` ``(R, n)`` of the flat buffer `gradients`.
        """
        for piece in pieces:
            piece.mul_(self.fraction.unsqueeze(1))
        torch.distributed.all_reduce(gradients)

    def of(self, sums: Tensor) -> Tensor:
        """What the part adds to sums over the rows of the batch."""
        return sums if self.counts else torch.zeros_like(sums)


class Ranks(NamedTuple):
    """The place of a process among those that train together; by default alone."""

    rank: int = 0
    size: int = 1

    def share(self, weight: Tensor) -> Share | None:
        """Its part of a batch with weights ``(R, B)``; None is all of it."""
        if self.size == 1:
            return None
        n_rows = weight.shape[1]
        start, stop = (n_rows * k // self.size for k in (self.rank, self.rank + 1))
        counts = stop > start
        rows = slice(start, stop) if counts else slice(0, 1)
        fraction = counts * weight[:, rows].sum(1) / weight.sum(1)
        return Share(n_rows, rows, fraction, counts)

    def owns(self, number: int) -> bool:
        """Whether a numbered piece of work is this process's."""
        return number % self.size == self.rank

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return bool(flag)
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def agree(self, tensor: Tensor) -> None:
        """Give every process what the first one has, in place."""
        if self.size > 1:
            torch.distributed.broadcast(tensor, 0)

    def equal(self, numbers: Tensor) -> bool:
        """Whether all processes hold the same numbers, which may be of any count."""
        if self.size == 1:
            return True
        largest = torch.distributed.ReduceOp.MAX
        count = numbers.new_tensor([len(numbers), -len(numbers)])
        torch.distributed.all_reduce(count, largest)
        if count[0] != -count[1]:
            return False
        bounds = torch.cat([numbers, -numbers])
        torch.distributed.all_reduce(bounds, largest)
        return bool((bounds[: len(numbers)] == -bounds[len(numbers) :]).all())

    def start(self, run) -> None:
        """Let a run begin alike in all; ValueError where processes cannot share it."""
        if self.size == 1:
            return
        for part in (run.objective, run.inference):
            if getattr(part, "coupling", None):
                raise ValueError(
                    f"{part.coupling}, but here {self.size} processes would share each "
                    "batch. Train such a model in one process, without a group."
                )
        data, settings = run.data, run.settings
        places = torch.linspace(0, data.n_rows - 1, COMPARED_ROWS)
        rows = data.take(data.x, places.long().to(data.device)).double().flatten()
        numbers = [data.n_rows, settings.batch_size, settings.max_epochs]
        numbers += [number for seeds in run.seeds for number in seeds]
        if not self.equal(torch.cat([rows.new_tensor(numbers), rows])):
            raise ValueError(
                "The processes of the group do not train the same model. X, the order "
                "of its rows, the parameters and random_state, an integer, must be the "
                "same in all of them."
            )
        self.agree(run.optimizer.values)


ALONE = Ranks()


def ranks() -> Ranks:
    """The process group that exists, which nobody here starts."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())
