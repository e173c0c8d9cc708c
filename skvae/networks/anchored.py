"""Anchored decoder: an ordinary network, injective by its shadow on K directions.

Let B have K orthonormal columns in R^D, m : R^K -> R^K be strongly monotone up to
fixed rotations, and h : R^K -> R^D be any network. Then

    f(z) = B m(z) + (I - B B^T) h(z)

has B^T f(z) = m(z), hence |f(z) - f(z')| >= |m(z) - m(z')| >= mu |z - z'|: the
decoder is injective with a certificate that is read off m, while all D - K
directions orthogonal to B are free. m is a short stack of closed-form gradients of
strongly convex networks (see `_convex`) with fixed rotations between them, each
keeping distances above mu_l, so mu is the product of the mu_l.

This composition is ours; the dial mu is that of Kinoshita et al. 2023
(arXiv:2304.12770).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Generator, Tensor, nn

from skvae._products import products
from skvae._spec import Specification
from skvae._validation import Interval, StrOptions
from skvae.networks._convex import ConvexGradient, require_injective_sizes
from skvae.networks._layers import ACTIVATIONS, PIECEWISE_AFFINE, DenseNetwork


def orthonormal(generators: Sequence[Generator], n: int, k: int) -> Tensor:
    """Random orthonormal columns, shape ``(R, n, k)``."""
    draws = [torch.linalg.qr(torch.randn(n, k, generator=g)).Q for g in generators]
    return torch.stack(draws).contiguous()


class Anchored(Specification):
    """Injective decoder at the cost of a multilayer perceptron.

    Parameters
    ----------
    width : int, default=256
        Units of each hidden layer of the free network.
    depth : int, default=2
        Hidden layers of the free network.
    activation : str, default="relu"
        Non-linearity of the free network, as in :class:`~skvae.networks.MLP`. If it
        is piecewise affine, so is the whole decoder.
    blocks : int, default=2
        Strongly monotone maps in the anchor m, rotated between them.
    inverse_lipschitz : float, default=0.3
        Lower bound enforced on ``|f(z) - f(z')| / |z - z'|``, whatever the weights.

    References
    ----------
    Kinoshita et al., "Controlling Posterior Collapse by an Inverse Lipschitz
    Constraint on the Decoder Network", ICML 2023, arXiv:2304.12770.
    """

    family = "network"
    _parameter_constraints: dict = {
        "width": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 0, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "blocks": [Interval(Integral, 1, None, closed="left")],
        "inverse_lipschitz": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self, width=256, depth=2, activation="relu", blocks=2, inverse_lipschitz=0.3
    ):
        self.width = width
        self.depth = depth
        self.activation = activation
        self.blocks = blocks
        self.inverse_lipschitz = inverse_lipschitz

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; ValueError if ``n_in > n_out``."""
        require_injective_sizes("Anchored", n_in, n_out)
        return AnchoredNetwork(
            n_in,
            n_out,
            generators,
            self.width,
            self.depth,
            self.activation,
            self.blocks,
            self.inverse_lipschitz,
        )


class AnchoredNetwork(nn.Module):
    """``B m(z) + (I - B B^T) h(z)``, ``(R, B, n_in) -> (R, B, n_out)``."""

    replayable = True

    def __init__(
        self,
        n_in,
        n_out,
        generators,
        width,
        depth,
        activation,
        blocks,
        inverse_lipschitz,
    ):
        super().__init__()
        self.piecewise_affine = activation in PIECEWISE_AFFINE
        convex = "relu" if self.piecewise_affine else "softplus"
        anchor_width = max(16, min(width, 4 * n_in))
        floor = inverse_lipschitz ** (1.0 / blocks)
        self.anchor = nn.ModuleList(
            ConvexGradient(n_in, n_in, generators, anchor_width, 1, convex, floor, 1.0)
            for _ in range(blocks)
        )
        for number in range(1, blocks):
            rotation = orthonormal(generators, n_in, n_in)
            self.register_buffer(f"rotation_{number}", rotation)
        self.register_buffer("basis", orthonormal(generators, n_out, n_in))
        self.free = None
        if n_in < n_out:
            self.free = DenseNetwork(n_in, n_out, generators, width, depth, activation)

    @torch.no_grad()
    def align(self, x: Tensor, weight: Tensor) -> None:
        """Keep the basis B within the features that vary in rows ``(n, p)`` of x.

        In features without variance the constraint could be met where the likelihood
        does not notice.
        """
        share = (weight / weight.sum()).unsqueeze(-1)
        variance = (share * (x - (share * x).sum(0)).square()).sum(0)
        scale = (variance / variance.max()).sqrt().clamp_min(1e-3)
        turned = scale.unsqueeze(-1) * self.basis.to(x)
        self.basis.copy_(torch.linalg.qr(turned).Q)

    def forward(self, z: Tensor) -> Tensor:
        m = self.anchor[0](z)
        for number, block in enumerate(self.anchor[1:], start=1):
            m = block(products(m, getattr(self, f"rotation_{number}")))
        onto = self.basis.transpose(1, 2)
        if self.free is None:
            return products(m, onto)
        h = self.free(z)
        return h + products(m - products(h, self.basis), onto)

    def inverse_lipschitz(self) -> Tensor:
        """Lower bound on the slope between any two codes, shape ``(R,)``."""
        bounds = torch.stack([block.strength().flatten() for block in self.anchor])
        return bounds.prod(0)
