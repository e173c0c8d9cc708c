"""Adam on one flat buffer: a single fused call updates R models.

Building a ``torch.optim`` optimiser imports the compiler stack, seconds in every
worker process; the fused kernel itself needs none of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise

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


def _shorten(gradients: list[Tensor], divisor: Tensor) -> None:
    """Divide each replica's gradient, in most steps none; a GPU is not asked."""
    if not divisor.is_cpu or divisor.max() > 1.0:
        for piece in gradients:
            piece.div_(divisor.unsqueeze(1))


# An operation of torch's, so that recorded steps decide anew each time.
_LIBRARY = torch.library.Library("skvae", "FRAGMENT")
_LIBRARY.define("shorten_(Tensor(a!)[] gradients, Tensor divisor) -> ()")
_LIBRARY.impl("shorten_", _shorten, "CompositeExplicitAutograd")
# What recorded steps call, past torch's search for it.
DIRECT = {torch.ops.skvae.shorten_.default: _shorten}


class Layout:
    """Where the parameters of R models are in one flat buffer.

    Those of all replicas lie side by side, parameter after parameter: batches of
    matrices without gaps are multiplied as they are, and others copied first.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self.shapes = [p.shape for p in parameters]
        self.places, start = [], 0
        for p in parameters:
            self.places.append(slice(start, start + p.numel()))
            start += -(-p.numel() // ALIGNED) * ALIGNED
        self.size = start

    def views(self, buffer: Tensor, replicas: slice = slice(None)) -> list[Tensor]:
        """The parameters of some replicas in a buffer, ``(r, ...)`` each."""
        pairs = zip(self.places, self.shapes, strict=True)
        return [buffer[place].view(shape)[replicas] for place, shape in pairs]

    def rows(self, buffer: Tensor) -> list[Tensor]:
        """The numbers of each replica in few pieces, ``(R, n)`` each."""
        if self.shapes[0][0] == 1:
            return [buffer.view(1, -1)]
        return [view.flatten(1) for view in self.views(buffer)]

    def put(self, buffer: Tensor, replica: int, values: Tensor) -> None:
        """Give one replica in a buffer what it has in another."""
        own = slice(replica, replica + 1)
        torch._foreach_copy_(self.views(buffer, own), self.views(values, own))


def norms_of(pieces: list[Tensor]) -> Tensor:
    """Length of each replica's row in pieces ``(R, n)``, shape ``(R,)``."""
    norms = [torch.linalg.vector_norm(piece, dim=1) for piece in pieces]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def runs(rates: Sequence[float]) -> tuple[int, ...]:
    """Where neighbours stop having the same rate, and the number of them all."""
    ends = [k for k in range(1, len(rates)) if rates[k] != rates[k - 1]]
    return (*ends, len(rates))


class FlatAdam:
    """Adam over all parameters of a model with R replicas.

    The parameters become views of the flat buffer `values`, laid out as `layout` says,
    and their gradients are copied side by side into `gradients`, so that the update is
    a single operation.
    """

    def __init__(self, model: nn.Module, n_replicas: int):
        self.parameters = parameters = list(model.parameters())
        self.layout = Layout(parameters)
        like = parameters[0]
        self.values = like.new_zeros(self.layout.size)
        for p, view in zip(parameters, self.layout.views(self.values), strict=True):
            view.copy_(p.detach())
            p.data = view
        self.gradients = torch.zeros_like(self.values)
        self.slots = self.layout.views(self.gradients)
        self.pieces = self.layout.rows(self.gradients)
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)
        self.buffers = self.values, self.gradients, self.first, self.second
        self.count = torch.zeros((), device=like.device)
        self.typical_norm = like.new_zeros(n_replicas)
        self.norm_sum = like.new_zeros(n_replicas)
        self.rates: list[float] = []
        self.runs: tuple[int, ...] = ()
        self.groups: dict[tuple, list] = {}
        self.share = None

    def combine(self) -> None:
        """Add up the gradients of the processes that share a batch."""
        if self.share is not None:
            self.share.combine(self.gradients, self.pieces)

    def use(self, rates: Sequence[float]) -> None:
        """Set the learning rates, one per replica.

        They stand in tensors that stay, one for each run of replicas that step at
        once, so that a recorded step finds them.
        """
        if self.rates == list(rates):
            return
        self.rates, self.runs = list(rates), runs(rates)
        if self.runs not in self.groups:
            self.groups[self.runs] = list(self.grouped())
        for end, (rate, _) in zip(self.runs, self.groups[self.runs], strict=True):
            rate.fill_(rates[end - 1])

    def grouped(self):
        """For each run of replicas, a tensor for their rate and what Adam works on."""
        # The kernel for the CPU computes with doubles, that for CUDA with floats.
        on_cpu = self.values.device.type == "cpu"
        dtype = torch.float64 if on_cpu else torch.float32
        for start, end in pairwise((0, *self.runs)):
            own = [[buffer] for buffer in self.buffers]
            if len(self.runs) > 1:
                own = [self.layout.views(b, slice(start, end)) for b in self.buffers]
            yield self.values.new_empty((), dtype=dtype), own

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
        norms = norms_of(self.pieces)
        self.norm_sum += norms
        divisor, typical = _clipping(norms, self.typical_norm)
        self.typical_norm.copy_(typical)
        scale = None
        if len(rates) == 1:
            scale = divisor.squeeze(0)
        else:
            torch.ops.skvae.shorten_(self.pieces, divisor)
        self.count += 1
        for rate, tensors in self.groups[self.runs]:
            counts = [self.count] * len(tensors[0])
            torch._fused_adam_(
                *tensors, [], counts, lr=rate, grad_scale=scale, **OPTIONS
            )

    def tensors(self) -> list[Tensor]:
        """What a step changes."""
        names = "values", "gradients", "norm_sum", *STATE
        return [getattr(self, name) for name in names]

    def restore(self, replica: int, values: Tensor) -> None:
        """Put back one replica's parameters and forget its momentum."""
        self.layout.put(self.values, replica, values)
        nothing = torch.zeros_like(self.values)
        self.layout.put(self.first, replica, nothing)
        self.layout.put(self.second, replica, nothing)
        self.typical_norm[replica] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What a later :meth:`resume` needs, on the CPU."""
        return {name: getattr(self, name).detach().cpu().clone() for name in STATE}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Continue from an earlier :meth:`state`, be it of other groups."""
        for name in STATE:
            own, value = getattr(self, name), state[name].to(self.values.device)
            # Groups count their steps, and the lengths of gradients, apart.
            same = value.shape == own.shape or name in ("first", "second")
            own.copy_(value if same else value.mean())


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
        sizes = [len(group) for group in self.parts]
        self.members = [
            slice(end - size, end)
            for size, end in zip(sizes, accumulate(sizes), strict=True)
        ]
        shape = n_replicas, len(self.parts)
        self.count = torch.zeros(shape, device=self.values.device)
        self.typical_norm = self.values.new_zeros(shape)
        self.views = [self.layout.views(buffer) for buffer in self.buffers]

    def step(self, rates: Sequence[float], chosen=None, record: bool = True) -> None:
        """Update the groups that `chosen`, ``(R, G)`` booleans, names; None is all.

        The norms of what is updated are added to `norm_sum` if `record`.
        """
        if chosen is None:
            chosen = [[True] * len(self.parts)] * len(rates)
        self.combine()
        pieces = [slot.flatten(1) for slot in self.slots]
        norms = [norms_of(pieces[members]) for members in self.members]
        norms = torch.stack(norms, dim=1)
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
                    for slot in self.slots[self.members[g]]:
                        slot[r].div_(divisor[r, g])
                    cells[rates[r]].append((r, g))
        for rate, together in cells.items():
            lists = [
                [view[r] for r, g in together for view in views[self.members[g]]]
                for views in self.views
            ]
            counts = [
                self.count[r, g].clone() for r, g in together for _ in self.parts[g]
            ]
            torch._fused_adam_(*lists, [], counts, lr=rate, **OPTIONS)
