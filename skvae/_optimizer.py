"""Adam on one flat buffer: a single fused call updates R models.

Building a ``torch.optim`` optimiser imports the compiler stack, seconds in every
worker process; the fused kernel itself needs none of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

# A gradient longer than this many times the recent average is shortened to it.
CLIP_RATIO = 5.0
CLIP_MEMORY = 0.98


class FlatAdam:
    """Adam over all parameters of a model with R replicas.

    The parameters become views of `values` ``(R, P)``, and their gradients are copied
    side by side into `gradients`, so that per-replica norms and the update are single
    operations.
    """

    def __init__(self, model: nn.Module, n_replicas: int):
        self.parameters = parameters = list(model.parameters())
        sizes = [p.numel() // n_replicas for p in parameters]
        like = parameters[0]
        self.values = like.new_empty(n_replicas, sum(sizes))
        self.gradients = torch.zeros_like(self.values)
        self.slots = []
        start = 0
        for p, size in zip(parameters, sizes, strict=True):
            view = self.values[:, start : start + size].view(p.shape)
            view.copy_(p.detach())
            p.data = view
            self.slots.append(self.gradients[:, start : start + size].view(p.shape))
            start += size
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)
        self.count = torch.zeros((), device=like.device)
        self.typical_norm = like.new_zeros(n_replicas)
        self.norm_sum = like.new_zeros(n_replicas)

    def differentiate(self, loss: Tensor) -> None:
        """Put the gradient of a scalar into `gradients`."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        pairs = [
            (s, g) for s, g in zip(self.slots, found, strict=True) if g is not None
        ]
        torch._foreach_copy_([s for s, _ in pairs], [g for _, g in pairs])

    def _shorten(self) -> Tensor:
        """Divisors that clip each replica's gradient, shape ``(R,)``."""
        norms = torch.linalg.vector_norm(self.gradients, dim=1)
        self.norm_sum += norms
        known = torch.where(self.typical_norm > 0, self.typical_norm, norms)
        divisor = (norms / (CLIP_RATIO * known)).clamp_min(1.0)
        moved = CLIP_MEMORY * known + (1.0 - CLIP_MEMORY) * norms / divisor
        self.typical_norm = torch.where(torch.isfinite(moved), moved, known)
        return torch.where(torch.isfinite(divisor), divisor, torch.ones_like(divisor))

    def step(self, rates: Sequence[float]) -> None:
        """One update with one learning rate per replica."""
        divisor = self._shorten()
        if len(rates) > 1:
            self.gradients.div_(divisor.unsqueeze(1))
            scale = None
        else:
            scale = divisor.squeeze(0)
        self.count += 1
        if len(set(rates)) == 1:
            groups = [(slice(None), rates[0])]
        else:
            groups = [(slice(r, r + 1), rate) for r, rate in enumerate(rates)]
        for rows, rate in groups:
            torch._fused_adam_(
                [self.values[rows]],
                [self.gradients[rows]],
                [self.first[rows]],
                [self.second[rows]],
                [],
                [self.count.clone()],
                lr=rate,
                beta1=BETA_1,
                beta2=BETA_2,
                weight_decay=0.0,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
            )

    def restore(self, replica: int, values: Tensor) -> None:
        """Put back one replica's parameters and forget its momentum."""
        self.values[replica] = values[replica]
        self.first[replica] = 0.0
        self.second[replica] = 0.0
        self.typical_norm[replica] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What a later :meth:`resume` needs, on the CPU."""
        names = ("first", "second", "count", "typical_norm")
        return {name: getattr(self, name).detach().cpu().clone() for name in names}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Continue from an earlier :meth:`state`."""
        for name, value in state.items():
            setattr(self, name, value.to(self.values.device).clone())
