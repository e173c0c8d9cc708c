"""Brenier maps in closed form: gradients of strongly convex networks.

A potential with first layer t_0 = A_0^T x + b_0 and further layers
t_l = W_l^T phi(t_{l-1}) + A_l^T x + b_l, all W_l >= 0 and phi convex and
non-decreasing, is convex in x. With output F(x) = w . phi(t_L) + c . x + mu/2 |x|^2,
w >= 0, its gradient is

    g(x) = sum_l A_l delta_l + c + mu x,
    delta_L = w phi'(t_L),   delta_{l-1} = (W_l delta_l) phi'(t_{l-1}),

which is written below as forward operations: no double backward, and all
back-projections are one matrix product. g is strongly monotone with constant mu, so
|g(x) - g(x')| >= mu |x - x'|.

Sources: Wang, Blei, Cunningham 2021 (arXiv:2301.00537) for such maps in a decoder;
Kinoshita et al. 2023 (arXiv:2304.12770) for mu.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from skvae._products import products
from skvae.networks._layers import normal_weights, zeros


def _half_square_softplus(t: Tensor) -> Tensor:
    return 0.5 * softplus(t).square()


def _half_square_softplus_slope(t: Tensor) -> Tensor:
    return softplus(t) * torch.sigmoid(t)


def _half_square_relu(t: Tensor) -> Tensor:
    return 0.5 * torch.relu(t).square()


# Convex, non-decreasing functions and their slopes: the first layer's slope grows
# linearly, so that the map is unbounded; the slopes of later layers are bounded.
CONVEX = {
    "softplus": (
        (_half_square_softplus, _half_square_softplus_slope),
        (softplus, torch.sigmoid),
    ),
    "relu": ((_half_square_relu, torch.relu), (softplus, torch.sigmoid)),
}


class _Positive(torch.autograd.Function):
    """Softplus, with a derivative that is cheaper than torch's on large weights."""

    @staticmethod
    def forward(ctx, t):
        ctx.save_for_backward(t)
        return softplus(t)

    @staticmethod
    def backward(ctx, gradient):
        (t,) = ctx.saved_tensors
        return torch.sigmoid(t) * gradient


def inverse_softplus(value: float) -> float:
    """The argument at which softplus equals `value` > 0."""
    return math.log(math.expm1(value))


class StrongConvexity(nn.Module):
    """A learned modulus ``mu >= floor > 0`` per replica, started at `start`."""

    def __init__(self, n_replicas: int, floor: float, start: float):
        super().__init__()
        self.floor = floor
        self.excess = nn.Parameter(torch.empty(n_replicas, 1, 1))
        self.restart(start)

    @torch.no_grad()
    def restart(self, start: float) -> None:
        """Let the modulus be `start`, or next to the floor if that is larger."""
        self.excess.fill_(inverse_softplus(max(start - self.floor, 1e-3)))

    def forward(self) -> Tensor:
        return self.floor + softplus(self.excess)


class ConvexGradient(nn.Module):
    """R gradients of strongly convex networks on R^n.

    Only the first `n_live` inputs are given, the others being zero, so only those
    columns are multiplied on the way in: ``(R, B, n_live) -> (R, B, n)``.
    """

    def __init__(self, n, n_live, generators, width, depth, activation, floor, start):
        super().__init__()
        n_replicas = len(generators)
        self.n_live, self.width, self.activation = n_live, width, activation
        self.strength = StrongConvexity(n_replicas, floor, start)
        directions = normal_weights(
            generators, n, depth * width, std=1.0 / math.sqrt(n_live)
        ).detach()
        # Apart, because only the first are read on the way in: the gradient of a
        # part of a tensor is a whole one.
        self.live, self.further = (
            nn.Parameter(part.clone())
            for part in directions.split([n_live, n - n_live], dim=1)
        )
        self.thresholds = normal_weights(generators, 1, depth * width, std=0.5)
        self.constant = zeros(generators, 1, n)
        mixing = inverse_softplus(1.0)
        self.mixing = nn.ParameterList(
            nn.Parameter(torch.full((n_replicas, width, width), mixing))
            for _ in range(depth - 1)
        )
        self.path = nn.Parameter(torch.full((n_replicas, 1, width), mixing))
        # Chosen so that the curvature adds about one to the slope at the start.
        self.path_scale = n_live / width

    def forward(self, x: Tensor) -> Tensor:
        parts = products(x, self.live, self.thresholds).split(self.width, dim=-1)
        weights = [_Positive.apply(mixing) / self.width for mixing in self.mixing]
        phi = CONVEX[self.activation]
        levels = [parts[0]]
        for number, (part, weight) in enumerate(zip(parts[1:], weights, strict=True)):
            value = phi[min(number, 1)][0]
            levels.append(part + products(value(levels[-1]), weight))

        def slope(number):
            return phi[min(number, 1)][1](levels[number])

        delta = self.path_scale * softplus(self.path) * slope(len(weights))
        deltas = [delta]
        for number in reversed(range(len(weights))):
            delta = products(delta, weights[number].transpose(1, 2)) * slope(number)
            deltas.insert(0, delta)
        stacked = deltas[0] if len(deltas) == 1 else torch.cat(deltas, dim=-1)
        own, other = self.constant.split([self.n_live, self.further.shape[1]], dim=-1)
        gradient = products(stacked, self.live.transpose(1, 2), own)
        gradient = gradient + self.strength() * x
        if not len(self.further[0]):
            return gradient
        further = products(stacked, self.further.transpose(1, 2), other)
        return torch.cat([gradient, further], dim=-1)


def require_injective_sizes(name: str, n_in: int, n_out: int) -> None:
    """Raise ValueError where no map from R^n_in to R^n_out can be injective."""
    if n_in > n_out:
        raise ValueError(
            f"{name} needs n_components <= n_features, because no continuous map "
            f"to fewer dimensions is injective. Got n_components={n_in} and "
            f"n_features={n_out}; lower n_components."
        )
