"""The published LIDVAE decoder: Brenier map, zero padding, Brenier map.

f(z) = grad F_2(pad(grad F_1(z))) with F_1, F_2 strongly convex networks (Wang, Blei,
Cunningham 2021, section 3), gradients in closed form (see `_convex`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from torch import Generator, Tensor, nn

from skvae._spec import Specification
from skvae._validation import Interval, StrOptions
from skvae.networks._convex import ConvexGradient, require_injective_sizes


class Brenier(Specification):
    """The published LIDVAE decoder: Brenier map, zero padding, Brenier map.

    Injective, with ``|f(z) - f(z')| >= mu_1 mu_2 |z - z'|``.

    Parameters
    ----------
    width : int, default=256
        Units of each hidden layer of both convex networks.
    depth : int, default=1
        Hidden layers of each convex network.
    activation : {"softplus", "relu"}, default="softplus"
        Its running integral is the first layer's convex function. "relu" gives a
        piecewise affine map when ``depth=1``.
    inverse_lipschitz : float, default=0.3
        Lower bound enforced on ``mu_1 mu_2``, whatever the weights.

    References
    ----------
    Wang, Blei, Cunningham, "Posterior Collapse and Latent Variable
    Non-identifiability", NeurIPS 2021, arXiv:2301.00537, section 3.

    Kinoshita et al., "Controlling Posterior Collapse by an Inverse Lipschitz
    Constraint on the Decoder Network", ICML 2023, arXiv:2304.12770.
    """

    family = "network"
    _parameter_constraints: dict = {
        "width": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 0, None, closed="left")],
        "activation": [StrOptions({"softplus", "relu"})],
        "inverse_lipschitz": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self, width=256, depth=1, activation="softplus", inverse_lipschitz=0.3
    ):
        self.width = width
        self.depth = depth
        self.activation = activation
        self.inverse_lipschitz = inverse_lipschitz

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; ValueError if ``n_in > n_out``."""
        require_injective_sizes("Brenier", n_in, n_out)
        return BrenierNetwork(
            n_in,
            n_out,
            generators,
            self.width,
            max(self.depth, 1),
            self.activation,
            self.inverse_lipschitz,
        )


class BrenierNetwork(nn.Module):
    """``grad F_2(pad(grad F_1(z)))``, ``(R, B, n_in) -> (R, B, n_out)``."""

    replayable = True

    def __init__(
        self, n_in, n_out, generators, width, depth, activation, inverse_lipschitz
    ):
        super().__init__()
        sizes = width, depth, activation, math.sqrt(inverse_lipschitz), 1.0
        self.first = ConvexGradient(n_in, n_in, generators, *sizes)
        self.second = ConvexGradient(n_out, n_in, generators, *sizes)
        self.piecewise_affine = activation == "relu" and depth == 1

    def forward(self, z: Tensor) -> Tensor:
        return self.second(self.first(z))

    def inverse_lipschitz(self) -> Tensor:
        """Lower bound on the slope between any two codes, shape ``(R,)``."""
        return (self.first.strength() * self.second.strength()).flatten()
