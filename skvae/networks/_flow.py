"""Invertible networks: dense maps with monotone splines between them.

    g(x) = A_L s_L( ... A_1 s_1( A_0 W x ) ... )

W whitens the data and stays as it is, the A_l are square matrices with biases, and
each s_l applies one learned increasing function to each coordinate. Both directions
and log|det Jg| are in closed form. Enough such layers, already with leaky ReLUs in
place of the splines, approximate the flow map of any smooth dynamical system (Duan,
Li, Ji, Cai 2022, arXiv:2209.10909).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from skvae._products import products
from skvae._spec import Specification
from skvae._validation import Interval
from skvae.networks._layers import normal_weights, zeros
from skvae.networks._spline import BOUND, Evaluate, Invert

# Slopes and logarithms of bin heights start within a tenth of the identity.
START = 0.1
LARGEST_LOG_SLOPE = 5.0
# Directions of the data with less than this part of the largest variance are treated
# as if they had it.
VARIANCE_FLOOR = 1e-8


class SplineFlow(Specification):
    """Invertible network of dense matrices and one spline per coordinate.

    Parameters
    ----------
    depth : int, default=4
        Number of spline layers; there is one dense matrix more. 0 gives an affine map.
    n_bins : int, default=8
        Pieces of each spline, an even number.

    Notes
    -----
    The splines are rational quadratic on equal bins (Gregory, Delbourgo 1982; Durkan
    et al. 2019), their heights and slopes being learned.

    References
    ----------
    Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", NeurIPS 2019,
    arXiv:1906.04032.

    Duan, Li, Ji, Cai, "Vanilla Feedforward Neural Networks as a Discretization of
    Dynamical Systems", arXiv:2209.10909.

    Examples
    --------
    >>> from skvae import iFlow
    >>> from skvae.networks import SplineFlow
    >>> iFlow(flow=SplineFlow(depth=2))
    iFlow(flow=SplineFlow(depth=2))
    """

    family = "flow"
    _parameter_constraints: dict = {
        "depth": [Interval(Integral, 0, None, closed="left")],
        "n_bins": [Interval(Integral, 2, None, closed="left")],
    }

    def __init__(self, depth=4, n_bins=8):
        self.depth = depth
        self.n_bins = n_bins

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; its output is z and log|det Jg|."""
        if n_out != n_in + 1:
            raise ValueError(
                f"A flow has as many latents as features. Got {n_out - 1} latents and "
                f"{n_in} features."
            )
        if self.n_bins % 2:
            raise ValueError(
                "The 'n_bins' parameter of SplineFlow must be even, so that zero is "
                f"a knot. Got {self.n_bins!r} instead."
            )
        return SplineFlowNetwork(n_in, self.depth, self.n_bins, generators)


def _bounded(t: Tensor) -> Tensor:
    return torch.exp(LARGEST_LOG_SLOPE * torch.tanh(t / LARGEST_LOG_SLOPE))


class SplineLayer(NamedTuple):
    """An increasing function per replica and coordinate.

    `bins` ``(R, n, K, 4)`` hold bottoms, slopes of chords and slopes at both ends;
    `first` ``(R, 1, n)`` are the numbers of the first bins.
    """

    bins: Tensor
    first: Tensor
    bin_width: float

    def _rows(self, chosen: Tensor) -> Tensor:
        """What the bins `chosen` ``(R, B, n)`` hold, shape ``(R, B, n, 4)``."""
        flat = (chosen + self.first).view(-1)
        return self.bins.reshape(-1, 4).index_select(0, flat).view(*chosen.shape, 4)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and log-derivatives, both of shape ``(R, B, n)``."""
        place = (x.detach().clamp(-BOUND, BOUND) + BOUND) / self.bin_width
        # NaN becomes some whole number, which is why the limits come last.
        chosen = place.long().clamp_(0, self.bins.shape[-2] - 1)
        return Evaluate.apply(x, self._rows(chosen), chosen, self.bin_width)

    def inverse(self, y: Tensor) -> Tensor:
        """The x of these values."""
        starts = self.bins[..., 1:, 0].detach().unsqueeze(1)
        chosen = (y.detach().unsqueeze(-1) >= starts).sum(-1)
        return Invert.apply(y, self._rows(chosen), chosen, self.bin_width)


class Splines(nn.Module):
    """L increasing functions per replica and coordinate, near the identity at first.

    Piecewise rational quadratic on `n_bins` equal bins of [-BOUND, BOUND], linear
    outside, with a continuous derivative everywhere.
    """

    def __init__(self, n_layers, n, n_bins, generators):
        super().__init__()
        self.n_bins, self.bin_width = n_bins, 2.0 * BOUND / n_bins
        self.log_heights = zeros(generators, n_layers, n, n_bins)
        self.log_slopes = zeros(generators, n_layers, n, n_bins + 1)

    def start(self, layer: int, generators: Sequence[Generator]) -> None:
        """Draw where a layer's functions start."""
        for parameter in (self.log_heights, self.log_slopes):
            shape = parameter.shape[2:]
            parameter[:, layer] = normal_weights(generators, *shape, std=START)

    def bins(self) -> Tensor:
        """What :class:`SplineLayer` wants of every layer, shape ``(L, R, n, K, 4)``."""
        chords = _bounded(self.log_heights.transpose(0, 1))
        slopes = _bounded(self.log_slopes.transpose(0, 1))
        heights = self.bin_width * chords
        tops = torch.cumsum(heights, dim=-1)
        middle = self.n_bins // 2
        bottoms = tops - heights - tops[..., middle - 1 : middle]
        columns = [bottoms, chords, slopes[..., :-1], slopes[..., 1:]]
        return torch.stack(columns, dim=-1)

    def layers(self) -> list[SplineLayer]:
        """The layers, each with its part of what all share."""
        bins = self.bins()
        n_replicas, n = bins.shape[1:3]
        first = torch.arange(n_replicas * n, device=bins.device) * self.n_bins
        first = first.view(n_replicas, 1, n)
        return [SplineLayer(b, first, self.bin_width) for b in bins.unbind(0)]

    def slope(self) -> Tensor:
        """Upper bounds on the functions' derivatives, multiplied up, shape ``(R,)``."""
        _, chord, left, right = self.bins().unbind(-1)
        largest = torch.maximum(chord, torch.maximum(left, right))
        smallest = torch.minimum(chord, (2.0 * chord + left + right) / 4.0)
        bounds = chord.square() * largest / smallest.square()
        return bounds.flatten(2).amax(2).prod(0)


class SplineFlowNetwork(nn.Module):
    """The built :class:`SplineFlow`, ``(R, B, n) -> (R, B, n + 1)``.

    Matrices and splines of all layers lie in one parameter each, so that the inverses
    of all matrices, and the bins of all splines, come of a few operations.
    """

    replayable = True

    def __init__(self, n, depth, n_bins, generators):
        super().__init__()
        self.register_buffer("whitening", torch.eye(n).unsqueeze(0))
        self.weight = zeros(generators, depth + 1, n, n)
        self.bias = zeros(generators, depth + 1, 1, n)
        self.splines = Splines(depth, n, n_bins, generators)
        self._start(generators)

    @torch.no_grad()
    def _start(self, generators: Sequence[Generator]) -> None:
        """Draw rotations and splines, layer by layer.

        The first layers of a deep flow so start as those of a shallow one do.
        """
        for layer in range(self.weight.shape[1]):
            draw = normal_weights(generators, *self.weight.shape[2:], std=1.0)
            self.weight[:, layer] = torch.linalg.qr(draw).Q
            if layer < self.splines.log_heights.shape[1]:
                self.splines.start(layer, generators)

    @torch.no_grad()
    def align(self, x: Tensor, weight: Tensor) -> None:
        """Whiten rows ``(m, n)`` of x, taken relative to their root mean variance."""
        share = (weight / weight.sum()).unsqueeze(-1)
        centred = x - (share * x).sum(0)
        covariance = centred.mT @ (share * centred)
        covariance /= torch.diagonal(covariance).mean()
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(VARIANCE_FLOOR * values[-1])
        self.whitening.copy_(vectors * values.rsqrt())

    def _inverses(self) -> list[Tensor]:
        """The inverses of the layers' matrices and of W, the last layer's first.

        They are not checked: that would end recorded steps.
        """
        inverses = torch.linalg.inv_ex(self.weight).inverse.unbind(1)
        return [*reversed(inverses), torch.linalg.inv_ex(self.whitening).inverse]

    def _layers(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Codes of x, and the logarithms of the splines' slopes on the way."""
        weights, biases = self.weight.unbind(1), self.bias.unbind(1)
        z, log_slopes = products(x @ self.whitening, weights[0], biases[0]), []
        splines = self.splines.layers()
        for spline, weight, bias in zip(splines, weights[1:], biases[1:], strict=True):
            z, log_slope = spline(z)
            log_slopes.append(log_slope)
            z = products(z, weight, bias)
        return z, log_slopes

    def forward(self, x: Tensor) -> Tensor:
        z, log_slopes = self._layers(x)
        log_det = torch.linalg.slogdet(self.weight).logabsdet.sum(-1, keepdim=True)
        log_det = log_det + torch.linalg.slogdet(self.whitening).logabsdet.unsqueeze(-1)
        for log_slope in log_slopes:
            log_det = log_det + log_slope.sum(-1)
        return torch.cat([z, log_det.expand(z.shape[:-1]).unsqueeze(-1)], dim=-1)

    def linearised(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Codes of x, and the first n columns of the inverse's Jacobian there.

        The columns are rows of the result, ``(R, B, n, p)``.
        """
        z, log_slopes = self._layers(x)
        first, *inverses, colouring = self._inverses()
        columns = first[:, None, :n].expand(-1, z.shape[1], -1, -1)
        shape = columns.shape
        for log_slope, inverse in zip(reversed(log_slopes), inverses, strict=True):
            columns = columns * torch.exp(-log_slope).unsqueeze(-2)
            columns = (columns.flatten(1, 2) @ inverse).view(shape)
        return z, (columns.flatten(1, 2) @ colouring).view(shape)

    def inverse(self, z: Tensor) -> Tensor:
        """The x of which z is the image, shape ``(R, B, n)``."""
        biases = reversed(self.bias.unbind(1))
        first, *inverses, colouring = self._inverses()
        x = (z - next(biases)) @ first
        splines = reversed(self.splines.layers())
        for spline, bias, inverse in zip(splines, biases, inverses, strict=True):
            x = (spline.inverse(x) - bias) @ inverse
        return x @ colouring

    def slope(self) -> Tensor:
        """Upper bound on ``|g(x) - g(x')| / |x - x'|``, shape ``(R,)``."""
        matrices = torch.linalg.matrix_norm(self.weight, ord=2).prod(1)
        whitening = torch.linalg.matrix_norm(self.whitening, ord=2)
        return self.splines.slope() * matrices * whitening

    def inverted(self) -> InverseFlow:
        """The other direction, as a decoder that shares these parameters."""
        return InverseFlow(self)


class InverseFlow(nn.Module):
    """The inverse of a flow that another module owns, ``(R, B, n) -> (R, B, n)``."""

    replayable = True
    has_loose_certificate = True

    def __init__(self, flow: nn.Module):
        super().__init__()
        # In a tuple, so that its parameters are not registered a second time.
        self._flow = (flow,)

    def forward(self, z: Tensor) -> Tensor:
        return self._flow[0].inverse(z)

    def align(self, x: Tensor, weight: Tensor) -> None:
        """Hand rows of x to the flow."""
        self._flow[0].align(x, weight)

    def inverse_lipschitz(self) -> Tensor:
        """Lower bound on the slope between any two codes, shape ``(R,)``."""
        return 1.0 / self._flow[0].slope()


__all__ = ["SplineFlow"]
