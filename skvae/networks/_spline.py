"""Increasing rational quadratic functions on equal bins, with gradients in closed form.

With t in [0, 1] the place in a bin of width w, c its chord's slope and l, r the slopes
at its ends (Gregory, Delbourgo 1982; Durkan et al. 2019, equations 4 and 5),

    D = c + (l + r - 2c) t(1-t),    N = t (ct + l(1-t)),
    M = r t^2 + 2c t(1-t) + l (1-t)^2,
    value = bottom + w c N / D,     slope = (c / D)^2 M.

Beyond the outer knots functions go on as straight lines. Small flows spend their time
on the number of operations, of which autograd's gradients take half as many again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Splines bend between -BOUND and BOUND, a few standard deviations of their inputs,
# and go on as straight lines.
BOUND = 3.0


class Pieces(NamedTuple):
    """The letters above at points x, each of shape ``(R, B, n)``."""

    t: Tensor
    rest: Tensor
    both: Tensor
    bend: Tensor
    denominator: Tensor
    towards_left: Tensor
    towards_right: Tensor
    height: Tensor
    mixed: Tensor
    ratio: Tensor
    slope: Tensor
    excess: Tensor

    @classmethod
    def at(cls, x: Tensor, chosen: Tensor, rows: Tensor, width: float) -> Pieces:
        """Of the bins `chosen` ``(R, B, n)``, whose four numbers are `rows`."""
        _, c, left, right = rows.unbind(-1)
        inside = x.clamp(-BOUND, BOUND)
        t = (inside + BOUND) / width - chosen
        rest = 1.0 - t
        both = t * rest
        bend = torch.sub(left + right, c, alpha=2.0)
        denominator = torch.addcmul(c, bend, both)
        towards_left = torch.addcmul(c * t, left, rest)
        towards_right = torch.addcmul(c * rest, right, t)
        height = t * towards_left / denominator
        mixed = torch.addcmul(t * towards_right, rest, towards_left)
        ratio = c / denominator
        slope = ratio * ratio * mixed
        return cls(
            t, rest, both, bend, denominator, towards_left, towards_right, height,
            mixed, ratio, slope, x - inside,
        )  # fmt: skip

    def value(self, rows: Tensor, width: float) -> Tensor:
        """The function's value."""
        c, bottom = rows[..., 1], rows[..., 0]
        value = torch.addcmul(bottom, c, self.height, value=width)
        return torch.addcmul(value, self.slope, self.excess)

    def by_x(self, weight: Tensor, width: float) -> Tensor:
        """Derivative of the logarithm of the slope, times `weight`."""
        change = (self.towards_right - self.towards_left) / self.mixed
        change = change - self.bend * (self.rest - self.t) / self.denominator
        return weight * change * ((self.excess == 0.0) * (2.0 / width))

    def by_rows(self, rows: Tensor, weight: Tensor, by_log: Tensor, width: float):
        """Gradient ``(R, B, n, 4)`` of ``weight * value + by_log * log(slope)``.

        The value is that within the bins; the lines beyond them are in `by_log`.
        """
        c = rows[..., 1]
        scaled = weight * self.ratio * width
        share, by_mixed = self.both / self.denominator, by_log / self.mixed
        straight = 1.0 - 2.0 * self.both
        outer = scaled * self.both
        common = -torch.addcmul(outer * self.height, by_log, share, value=2.0)
        by_left = torch.addcmul(common + outer, by_mixed * self.rest, self.rest)
        by_right = torch.addcmul(common, by_mixed * self.t, self.t)
        within = torch.addcmul(self.t * self.t, self.height, straight, value=-1.0)
        by_chord = torch.addcmul(scaled * within, weight, self.height, value=width)
        of_log = 1.0 / c - straight / self.denominator
        by_chord = torch.addcmul(by_chord, by_log, of_log, value=2.0)
        by_chord = torch.addcmul(by_chord, by_mixed, self.both, value=2.0)
        return torch.stack([weight, by_chord, by_left, by_right], dim=-1)


class Evaluate(torch.autograd.Function):
    """Values and logarithms of the slopes at x, both ``(R, B, n)``.

    The backward is made of differentiable operations on the inputs where it is itself
    to be differentiated, and else takes what the forward left.
    """

    @staticmethod
    def forward(ctx, x, rows, chosen, width):
        pieces = Pieces.at(x, chosen, rows, width)
        ctx.save_for_backward(x, rows, chosen)
        ctx.pieces, ctx.width = pieces, width
        return pieces.value(rows, width), torch.log(pieces.slope)

    @staticmethod
    def backward(ctx, by_value, by_log_slope):
        x, rows, chosen = ctx.saved_tensors
        pieces = ctx.pieces
        if torch.is_grad_enabled():
            pieces = Pieces.at(x, chosen, rows, ctx.width)
        by_x = by_value * pieces.slope
        by_log = torch.addcmul(by_log_slope, by_x, pieces.excess)
        by_rows = pieces.by_rows(rows, by_value, by_log, ctx.width)
        return by_x + pieces.by_x(by_log_slope, ctx.width), by_rows, None, None


class Invert(torch.autograd.Function):
    """The x of given values; its gradients are those of an implicit function."""

    @staticmethod
    def forward(ctx, y, rows, chosen, width):
        bottom, c, left, right = rows.unbind(-1)
        inside = torch.minimum(torch.maximum(y, bottom), bottom + width * c)
        beyond = y - inside
        # The root in [0, 1] of a quadratic, in the form that loses no digits.
        rise = (inside - bottom) / width
        bend = rise * torch.sub(left + right, c, alpha=2.0)
        quadratic = torch.addcmul(bend, c, c - left)
        linear = torch.addcmul(-bend, c, left)
        constant = c * rise
        root = torch.addcmul(linear * linear, quadratic, constant, value=4.0)
        t = 2.0 * constant / (linear + root.clamp_min_(0.0).sqrt_())
        x = (t + chosen) * width - BOUND
        x = torch.addcdiv(x, beyond, torch.where(beyond < 0.0, left, right))
        ctx.save_for_backward(x, rows, chosen)
        ctx.width = width
        return x

    @staticmethod
    def backward(ctx, by_x):
        x, rows, chosen = ctx.saved_tensors
        pieces = Pieces.at(x, chosen, rows, ctx.width)
        by_y = by_x / pieces.slope
        by_log = by_x * pieces.excess
        return by_y, -pieces.by_rows(rows, by_y, by_log, ctx.width), None, None
