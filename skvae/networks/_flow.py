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

import torch
from torch import Generator, Tensor, nn

from skvae._spec import Specification
from skvae._validation import Interval
from skvae.networks._layers import affine, normal_weights, zeros

# Splines bend between -BOUND and BOUND, a few standard deviations of their inputs,
# and go on as straight lines.
BOUND = 3.0
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


def _times(tangents: Tensor, matrix: Tensor) -> Tensor:
    """Rows ``(R, B, m, n)`` times one matrix ``(n, n)`` per replica, or for all."""
    return (tangents.flatten(1, 2) @ matrix).unflatten(1, tangents.shape[1:3])


def _divided(x: Tensor, matrix: Tensor) -> Tensor:
    """Rows times the inverse; unchecked, as a check would end recorded steps."""
    return torch.linalg.solve_ex(matrix, x, left=False).result


class Dense(nn.Module):
    """R square matrices with biases, started as random rotations."""

    def __init__(self, n: int, generators: Sequence[Generator]):
        super().__init__()
        self.weight = normal_weights(generators, n, n, std=1.0)
        with torch.no_grad():
            self.weight.copy_(torch.linalg.qr(self.weight).Q)
        self.bias = zeros(generators, 1, n)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(self.weight).logabsdet
        return affine(x, self.weight, self.bias), log_det.unsqueeze(-1)

    def inverse(self, y: Tensor) -> Tensor:
        return _divided(y - self.bias, self.weight)

    def pull_back(self, tangents: Tensor, log_det: Tensor) -> Tensor:
        """Changes ``(R, B, m, n)`` of y as changes of x."""
        return _times(tangents, torch.linalg.inv_ex(self.weight).inverse)

    def slope(self) -> Tensor:
        """Largest singular value, shape ``(R,)``."""
        return torch.linalg.matrix_norm(self.weight, ord=2)


class Spline(nn.Module):
    """One increasing function per replica and coordinate, near the identity at first.

    Piecewise rational quadratic on `n_bins` equal bins of [-BOUND, BOUND], linear
    outside, with a continuous derivative everywhere.
    """

    def __init__(self, n: int, n_bins: int, generators: Sequence[Generator]):
        super().__init__()
        self.n_bins, self.bin_width = n_bins, 2.0 * BOUND / n_bins
        self.log_heights = normal_weights(generators, n, n_bins, std=START)
        self.log_slopes = normal_weights(generators, n, n_bins + 1, std=START)

    def bins(self) -> Tensor:
        """Per bin its bottom, chord slope and end slopes, shape ``(R, n, K, 4)``."""

        def bounded(t):
            return torch.exp(LARGEST_LOG_SLOPE * torch.tanh(t / LARGEST_LOG_SLOPE))

        chords, slopes = bounded(self.log_heights), bounded(self.log_slopes)
        heights = self.bin_width * chords
        tops = torch.cumsum(heights, dim=-1)
        middle = self.n_bins // 2
        bottoms = tops - heights - tops[..., middle - 1 : middle]
        columns = [bottoms, chords, slopes[..., :-1], slopes[..., 1:]]
        return torch.stack(columns, dim=-1)

    def _rows(self, bins: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        """The four columns of the bins ``chosen`` ``(R, B, n)``."""
        n_replicas, n, n_bins, _ = bins.shape
        first = torch.arange(n_replicas * n, device=chosen.device) * n_bins
        flat = (chosen + first.view(n_replicas, 1, n)).reshape(-1)
        rows = bins.reshape(-1, 4).index_select(0, flat)
        return rows.view(*chosen.shape, 4).unbind(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and log-derivatives, both of shape ``(R, B, n)``."""
        inside = x.clamp(-BOUND, BOUND)
        place = (inside + BOUND) / self.bin_width
        chosen = place.detach().long().clamp_(0, self.n_bins - 1)
        bottom, chord, left, right = self._rows(self.bins(), chosen)
        t = place - chosen
        rest = 1.0 - t
        both = t * rest
        ratio = chord / (chord + (left + right - 2.0 * chord) * both)
        value = bottom + self.bin_width * ratio * t * (chord * t + left * rest)
        mixed = right * t * t + 2.0 * chord * both + left * rest * rest
        slope = ratio * ratio * mixed
        return value + slope * (x - inside), torch.log(slope)

    def inverse(self, y: Tensor) -> Tensor:
        bins = self.bins()
        bottoms, chords, left, right = bins.unbind(-1)
        low = bottoms[..., :1]
        high = bottoms[..., -1:] + self.bin_width * chords[..., -1:]
        across = y.transpose(1, 2)
        inside = torch.minimum(torch.maximum(across, low), high).contiguous()
        chosen = torch.searchsorted(bottoms[..., 1:].contiguous(), inside, right=True)
        outside = (across - inside).transpose(1, 2)
        edge = torch.where(outside < 0, left[:, None, :, 0], right[:, None, :, -1])
        bottom, chord, left, right = self._rows(bins, chosen.transpose(1, 2))
        # The root in [0, 1] of a quadratic, in the form that loses no digits.
        rise = (inside.transpose(1, 2) - bottom) / self.bin_width
        bend = left + right - 2.0 * chord
        a = chord * (chord - left) + rise * bend
        b = chord * left - rise * bend
        c = chord * rise
        root = (b.square() + 4.0 * a * c).clamp_min(0.0).sqrt()
        t = 2.0 * c / (b + root)
        return (chosen.transpose(1, 2) + t) * self.bin_width - BOUND + outside / edge

    def pull_back(self, tangents: Tensor, log_slope: Tensor) -> Tensor:
        """Changes ``(R, B, m, n)`` of the values as changes of x."""
        return tangents * torch.exp(-log_slope).unsqueeze(-2)

    def slope(self) -> Tensor:
        """Upper bound on the derivative of any of the functions, shape ``(R,)``."""
        _, chord, left, right = self.bins().unbind(-1)
        largest = torch.maximum(chord, torch.maximum(left, right))
        smallest = torch.minimum(chord, (2.0 * chord + left + right) / 4.0)
        return (chord.square() * largest / smallest.square()).flatten(1).amax(1)


class SplineFlowNetwork(nn.Module):
    """The built :class:`SplineFlow`, ``(R, B, n) -> (R, B, n + 1)``."""

    replayable = True

    def __init__(self, n, depth, n_bins, generators):
        super().__init__()
        self.register_buffer("whitening", torch.eye(n).unsqueeze(0))
        self.layers = nn.ModuleList([Dense(n, generators)])
        for _ in range(depth):
            self.layers.append(Spline(n, n_bins, generators))
            self.layers.append(Dense(n, generators))

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

    def forward(self, x: Tensor) -> Tensor:
        log_det = torch.linalg.slogdet(self.whitening).logabsdet.unsqueeze(-1)
        x = x @ self.whitening
        for layer in self.layers:
            x, change = layer(x)
            log_det = log_det + (change.sum(-1) if change.dim() == 3 else change)
        return torch.cat([x, log_det.expand(x.shape[:-1]).unsqueeze(-1)], dim=-1)

    def linearised(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Codes of x, and the first n columns of the inverse's Jacobian there.

        The columns are rows of the result, ``(R, B, n, p)``.
        """
        z, slopes = x @ self.whitening, []
        for layer in self.layers:
            z, change = layer(z)
            slopes.append(change)
        columns = torch.eye(n, z.shape[-1], dtype=z.dtype, device=z.device)
        columns = columns.expand(*z.shape[:-1], -1, -1)
        for layer, change in zip(reversed(self.layers), reversed(slopes), strict=True):
            columns = layer.pull_back(columns, change)
        return z, _times(columns, torch.linalg.inv_ex(self.whitening).inverse)

    def inverse(self, z: Tensor) -> Tensor:
        """The x of which z is the image, shape ``(R, B, n)``."""
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return _divided(z, self.whitening)

    def slope(self) -> Tensor:
        """Upper bound on ``|g(x) - g(x')| / |x - x'|``, shape ``(R,)``."""
        slopes = [layer.slope() for layer in self.layers]
        whitening = torch.linalg.matrix_norm(self.whitening, ord=2)
        return torch.stack(slopes).prod(0) * whitening

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
