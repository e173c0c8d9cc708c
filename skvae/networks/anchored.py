"""Anchored decoder: an ordinary network, injective by its shadow on K directions.

Let S be a diagonal of feature scales with largest entry 1, B have K orthonormal columns
in R^D, m : R^K -> R^K be strongly monotone up to fixed rotations, and h : R^K -> R^D
be any network. Then

    f(z) = h(z) + S^-1 B (m(z) - B^T S h(z))

has B^T S f(z) = m(z), hence |f(z) - f(z')| >= |m(z) - m(z')| >= mu |z - z'|: the
decoder is injective with a certificate that is read off m, while all D - K other
directions are free. m is a short stack of closed-form gradients of strongly convex
networks (see `_convex`) with fixed rotations between them, each keeping distances above
mu_l, so mu is the product of the mu_l.

B is learned: B = C L^-T for any C of full column rank, L L^T = C^T C being the Cholesky
decomposition. With B at random, m has to tell what K mixtures of the features do with
z, which costs likelihood. S is what keeps a learned B honest, which else turns to
features where the likelihood does not notice z: its squares are proportional to the
Fisher information of the outputs at the mean of x, so that mu is noticed alike by
whichever features it is met.

This composition is ours; the dial mu is that of Kinoshita et al. 2023
(arXiv:2304.12770), and h reads z at every layer like the decoders of Dieng et al. 2019
(arXiv:1807.04863).
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
from skvae.networks._layers import (
    ACTIVATIONS,
    PIECEWISE_AFFINE,
    DenseNetwork,
    SumSkipNetwork,
    zeros,
)

# Where K is near D, some anchors have to lie in features that are hardly noticed.
LEAST_SCALE = 0.1


def orthonormal(generators: Sequence[Generator], n: int, k: int) -> Tensor:
    """Random orthonormal columns, shape ``(R, n, k)``."""
    draws = [torch.linalg.qr(torch.randn(n, k, generator=g)).Q for g in generators]
    return torch.stack(draws).contiguous()


def right_solve(y: Tensor, triangle: Tensor, upper: bool = False) -> Tensor:
    """The x with ``x @ triangle = y``."""
    return torch.linalg.solve_triangular(triangle, y, upper=upper, left=False)


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
    skip : bool, default=True
        Whether every layer of the free network reads z, as in
        :class:`~skvae.networks.Skip`.
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
        "skip": ["boolean"],
        "blocks": [Interval(Integral, 1, None, closed="left")],
        "inverse_lipschitz": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        width=256,
        depth=2,
        activation="relu",
        skip=True,
        blocks=2,
        inverse_lipschitz=0.3,
    ):
        self.width = width
        self.depth = depth
        self.activation = activation
        self.skip = skip
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
            self.skip,
            self.blocks,
            self.inverse_lipschitz,
        )


class AnchoredNetwork(nn.Module):
    """``h(z) + S^-1 B (m(z) - B^T S h(z))``, ``(R, B, n_in) -> (R, B, n_out)``."""

    replayable = True

    def __init__(
        self,
        n_in,
        n_out,
        generators,
        width,
        depth,
        activation,
        skip,
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
        self.register_buffer("scale", torch.ones(len(generators), n_out, 1))
        # B, or where it starts.
        self.register_buffer("start", orthonormal(generators, n_out, n_in))
        self.free = None
        if n_in < n_out:
            network = SumSkipNetwork if skip and depth else DenseNetwork
            self.free = network(n_in, n_out, generators, width, depth, activation)
            # The optimiser moves all features as fast: those of small scale are not to
            # swing, so C is `start` plus this times the squares of the scales.
            self.turn = zeros(generators, n_out, n_in)

    @torch.no_grad()
    def notice(self, information: Tensor) -> None:
        """Take S from how much the likelihood notices of each feature, ``(n_out,)``."""
        share = information / information.max().clamp_min(1e-12)
        self.scale.copy_(share.sqrt().clamp_min(LEAST_SCALE).unsqueeze(-1))
        # Else features of small scale would start with large slopes.
        for block in self.anchor:
            block.strength.restart(float(share.mean().sqrt()))

    @torch.no_grad()
    def align(self, x: Tensor, weight: Tensor) -> None:
        """Start with B within the features that vary in rows ``(n, p)`` of x."""
        share = (weight / weight.sum()).unsqueeze(-1)
        variance = (share * (x - (share * x).sum(0)).square()).sum(0)
        deviation = (variance / variance.max()).sqrt().clamp_min(1e-3).unsqueeze(-1)
        turned = self.scale * deviation * self.start.to(x)
        self.start.copy_(torch.linalg.qr(turned).Q)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """C and L, ``(R, D, K)`` and ``(R, K, K)``."""
        c = self.start + self.scale.square() * self.turn
        return c, torch.linalg.cholesky_ex(products(c.mT, c)).L

    def basis(self) -> Tensor:
        """The orthonormal columns B, ``(R, D, K)``."""
        if self.free is None:
            return self.start
        c, lower = self._factors()
        return right_solve(c, lower.mT, upper=True)

    def forward(self, z: Tensor) -> Tensor:
        m = self.anchor[0](z)
        for number, block in enumerate(self.anchor[1:], start=1):
            m = block(products(m, getattr(self, f"rotation_{number}")))
        if self.free is None:
            return products(m, (self.start / self.scale).mT)
        h = self.free(z)
        # Triangular systems are solved in full precision, whatever the networks have.
        with torch.autocast(z.device.type, enabled=False):
            # B stays a product: a batch mostly has fewer rows than x has features.
            c, lower = self._factors()
            m, h = m.to(c.dtype), h.to(c.dtype)
            missing = m - right_solve(products(h, self.scale * c), lower.mT, upper=True)
            return h + products(right_solve(missing, lower), (c / self.scale).mT)

    def inverse_lipschitz(self) -> Tensor:
        """Lower bound on the slope between any two codes, shape ``(R,)``."""
        bounds = torch.stack([block.strength().flatten() for block in self.anchor])
        return bounds.prod(0)
