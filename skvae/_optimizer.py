"""Adam on one flat buffer: a single fused call updates R models.

Building a ``torch.optim`` optimiser imports the compiler stack, seconds in every
worker process; the fused kernel itself needs none of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

OPTIONS = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": False,
    "maximize": False,
}

# A gradient longer than this many times the recent average is shortened to it.
CLIP_RATIO = 5.0
CLIP_MEMORY = 0.98
TINY = 1e-30

# Numbers of a cache line: every parameter begins with one, because the products that
# are written there are not to the bit the same elsewhere.
ALIGNED = 16

# What a later `resume` needs.
STATE = ("first", "second", "count", "typical_norm")


def _clipping(norms: Tensor, typical: Tensor) -> tuple[Tensor, Tensor]:
    """Divisors that clip gradients of these norms, and the new typical norms.

    A norm that is not finite counts as zero: nothing helps such a step.
    """
    norms = norms.nan_to_num(0.0, 0.0, 0.0)
    known = torch.where(typical > 0, typical, norms)
    bound = (CLIP_RATIO * known).clamp_min(TINY)
    divisor = (norms / bound).clamp_min(1.0)
    return divisor, torch.lerp(known, norms / divisor, 1.0 - CLIP_MEMORY)


def _shorten(gradients: Tensor, divisor: Tensor) -> None:
    """Divide each replica's gradient, in most steps none."""
    if divisor.max() > 1.0:
        gradients.div_(divisor.unsqueeze(1))


# An operation of torch's, so that recorded steps decide anew each time.
_LIBRARY = torch.library.Library("skvae", "FRAGMENT")
_LIBRARY.define("shorten_(Tensor(a!) gradients, Tensor divisor) -> ()")
_LIBRARY.impl("shorten_", _shorten, "CPU")


def laid_out(parameters: Sequence[Tensor], n_replicas: int) -> tuple[list[slice], int]:
    """Columns of each parameter in a buffer ``(R, P)`` of all of them, and P."""
    columns, start = [], 0
    for p in parameters:
        size = p.numel() // n_replicas
        columns.append(slice(start, start + size))
        start += -(-size // ALIGNED) * ALIGNED
    return columns, start


class FlatAdam:
    """Adam over all parameters of a model with R replicas.

    The parameters become views of `values` ``(R, P)``, and their gradients are copied
    side by side into `gradients`, so that per-replica norms and the update are single
    operations.
    """

    def __init__(self, model: nn.Module, n_replicas: int):
        self.parameters = parameters = list(model.parameters())
        columns, size = laid_out(parameters, n_replicas)
        like = parameters[0]
        self.values = like.new_zeros(n_replicas, size)
        self.gradients = torch.zeros_like(self.values)
        self.slots = []
        for p, own in zip(parameters, columns, strict=True):
            view = self.values[:, own].view(p.shape)
            view.copy_(p.detach())
            p.data = view
            self.slots.append(self.gradients[:, own].view(p.shape))
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)
        self.count = torch.zeros((), device=like.device)
        self.typical_norm = like.new_zeros(n_replicas)
        self.norm_sum = like.new_zeros(n_replicas)
        self.rates: list[float] = []
        self.groups: list[tuple[slice, Tensor]] = []
        self.share = None

    def combine(self) -> None:
        """Add up the gradients of the processes that share a batch."""
        if self.share is not None:
            self.share.combine(self.gradients)

    def use(self, rates: Sequence[float]) -> None:
        """Set the learning rates, one per replica.

        They stand in tensors that stay, one for each group of replicas that steps at
        once, so that a recorded step finds them.
        """
        if self.rates == list(rates):
            return
        distinct = [rates[0]] if len(set(rates)) == 1 else rates
        if len(distinct) != len(self.groups):
            size = len(rates) // len(distinct)
            # The kernel for the CPU computes with doubles, that for CUDA with floats.
            on_cpu = self.values.device.type == "cpu"
            dtype = torch.float64 if on_cpu else torch.float32
            self.groups = [
                (slice(start, start + size), self.values.new_empty((), dtype=dtype))
                for start in range(0, len(rates), size)
            ]
        for (_, rate), value in zip(self.groups, distinct, strict=True):
            rate.fill_(value)
        self.rates = list(rates)

    def differentiate(self, loss: Tensor, parameters=None) -> None:
        """Put the gradient of a scalar into `gradients`.

        With `parameters`, some of the model's, only theirs is found and written.
        """
        slots = self.slots
        if parameters is None:
            parameters = self.parameters
        else:
            slot_of = dict(zip(map(id, self.parameters), self.slots, strict=True))
            slots = [slot_of[id(p)] for p in parameters]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = [(s, g) for s, g in zip(slots, found, strict=True) if g is not None]
        torch._foreach_copy_([s for s, _ in pairs], [g for _, g in pairs])

    def step(self, rates: Sequence[float]) -> None:
        """One update with one learning rate per replica."""
        self.combine()
        self.use(rates)
        norms = torch.linalg.vector_norm(self.gradients, dim=1)
        self.norm_sum += norms
        divisor, typical = _clipping(norms, self.typical_norm)
        self.typical_norm.copy_(typical)
        scale = None
        if len(rates) == 1:
            scale = divisor.squeeze(0)
        elif self.gradients.device.type == "cpu":
            torch.ops.skvae.shorten_(self.gradients, divisor)
        else:
            self.gradients.div_(divisor.unsqueeze(1))
        self.count += 1
        for rows, rate in self.groups:
            torch._fused_adam_(
                [self.values[rows]],
                [self.gradients[rows]],
                [self.first[rows]],
                [self.second[rows]],
                [],
                [self.count],
                lr=rate,
                grad_scale=scale,
                **OPTIONS,
            )

    def tensors(self) -> list[Tensor]:
        """What a step changes."""
        names = "values", "gradients", "norm_sum", *STATE
        return [getattr(self, name) for name in names]

    def restore(self, replica: int, values: Tensor) -> None:
        """Put back one replica's parameters and forget its momentum."""
        self.values[replica] = values[replica]
        self.first[replica] = 0.0
        self.second[replica] = 0.0
        self.typical_norm[replica] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What a later :meth:`resume` needs, on the CPU."""
        return {name: getattr(self, name).detach().cpu().clone() for name in STATE}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Continue from an earlier :meth:`state`, be it of other groups."""
        for name in STATE:
            own, value = getattr(self, name), state[name].to(self.values.device)
            if value.shape != own.shape:
                value = value.mean().expand_as(own)
            setattr(self, name, value.clone())


class GroupedAdam(FlatAdam):
    """Adam whose groups of parameters, and whose replicas, may step apart.

    Each group of each replica counts its own steps and clips its own gradient; one
    that does not step keeps its momentum as it is. `groups` are lists of parameters
    that make up all of the model's, in the model's order.
    """

    def __init__(self, model: nn.Module, n_replicas: int, groups):
        super().__init__(model, n_replicas)
        self.parts = [list(group) for group in groups]
        listed = [id(p) for group in self.parts for p in group]
        if listed != [id(p) for p in self.parameters]:
            raise ValueError("The groups must be all parameters, in their order.")
        sizes = [laid_out(group, n_replicas)[1] for group in self.parts]
        self.columns = [
            slice(end - size, end)
            for size, end in zip(sizes, accumulate(sizes), strict=True)
        ]
        shape = n_replicas, len(self.parts)
        self.count = torch.zeros(shape, device=self.values.device)
        self.typical_norm = self.values.new_zeros(shape)

    def step(self, rates: Sequence[float], chosen=None, record: bool = True) -> None:
        """Update the groups that `chosen`, ``(R, G)`` booleans, names; None is all.

        The norms of what is updated are added to `norm_sum` if `record`.
        """
        if chosen is None:
            chosen = [[True] * len(self.parts)] * len(rates)
        self.combine()
        pieces = [self.gradients[:, columns] for columns in self.columns]
        norms = torch.stack(
            [torch.linalg.vector_norm(piece, dim=1) for piece in pieces], dim=1
        )
        mask = torch.tensor(chosen, device=norms.device)
        divisor, typical = _clipping(norms, self.typical_norm)
        self.typical_norm = torch.where(mask, typical, self.typical_norm)
        if record:
            self.norm_sum += torch.where(mask, norms.square(), 0.0).sum(1).sqrt()
        self.count += mask
        cells = defaultdict(list)
        for r, row in enumerate(chosen):
            for g, steps in enumerate(row):
                if steps:
                    pieces[g][r].div_(divisor[r, g])
                    cells[rates[r]].append((r, g))
        for rate, together in cells.items():
            buffers = self.values, self.gradients, self.first, self.second
            lists = [[b[r, self.columns[g]] for r, g in together] for b in buffers]
            counts = [self.count[cell].clone() for cell in together]
            torch._fused_adam_(*lists, [], counts, lr=rate, **OPTIONS)
