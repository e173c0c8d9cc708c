"""Affine maps and activations with a leading axis of R independent replicas.

Activations have shape ``(R, B, n)`` and weights ``(R, n_in, n_out)``: no parameter
is shared between replicas, so the gradient of the summed losses trains all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from skvae._products import product, products


class _Tanh(torch.autograd.Function):
    """``2 s(2 t) - 1`` for the logistic function s, with the derivative of tanh."""

    @staticmethod
    def forward(ctx, t):
        y = torch.rsub(torch.sigmoid(t + t), -1.0, alpha=-2.0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


def tanh(t: Tensor) -> Tensor:
    """Hyperbolic tangent, up to some 1e-7 in single precision.

    There torch's logistic function takes a fifth of the time of its tangent.
    Differentiable any number of times.
    """
    if t.dtype == torch.float32 and t.device.type == "cpu":
        return _Tanh.apply(t)
    return torch.tanh(t)


def xtanh(t: Tensor) -> Tensor:
    """``tanh(t) + 0.1 t``, the activation of the iVAE experiments."""
    return torch.add(tanh(t), t, alpha=0.1)


def leaky_relu(t: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.1."""
    return nn.functional.leaky_relu(t, 0.1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": leaky_relu,
    "tanh": tanh,
    "xtanh": xtanh,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
    "identity": torch.clone,
}

# The same over their argument, for those whose derivative is known from their value.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS,
    "relu": torch.relu_,
}

# Outputs start near the constant that a model without latents would learn; from
# far away the noise grows first, and features are given up that it then hides.
OUTPUT_GAIN = 0.3

PIECEWISE_AFFINE = frozenset({"relu", "leaky_relu", "identity"})

_GAIN = {"relu": math.sqrt(2.0), "leaky_relu": math.sqrt(2.0), "silu": math.sqrt(2.0)}


def gain(activation: str) -> float:
    """Factor of the initial weights that keeps the activations' variance."""
    return _GAIN.get(activation, 1.0)


def normal_weights(
    generators: Sequence[Generator], *shape: int, std: float
) -> nn.Parameter:
    """A parameter of shape ``(R, *shape)``, each replica from its own stream."""
    draws = [torch.randn(*shape, generator=g) for g in generators]
    return nn.Parameter(torch.stack(draws).mul_(std))


def zeros(generators: Sequence[Generator], *shape: int) -> nn.Parameter:
    """A parameter of zeros of shape ``(R, *shape)``."""
    return nn.Parameter(torch.zeros(len(generators), *shape))


class Linear(nn.Module):
    """R independent affine maps, weights stored as ``(R, n_in, n_out)``."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        generators: Sequence[Generator],
        *,
        gain: float = 1.0,
    ):
        super().__init__()
        std = gain / math.sqrt(max(n_in, 1))
        self.weight = normal_weights(generators, n_in, n_out, std=std)
        self.bias = zeros(generators, 1, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return products(x, self.weight, self.bias)

    def alone(self, x: Tensor) -> Tensor:
        """The map of a single replica, ``(B, n_in) -> (B, n_out)``."""
        return product(x, self.weight.squeeze(0), self.bias.view(-1))


class DenseNetwork(nn.Module):
    """R multilayer perceptrons, ``(R, B, n_in) -> (R, B, n_out)``."""

    replayable = True

    def __init__(self, n_in, n_out, generators, width, depth, activation):
        super().__init__()
        sizes = [n_in, *[width] * depth]
        self.hidden = nn.ModuleList(
            Linear(a, b, generators, gain=gain(activation)) for a, b in pairwise(sizes)
        )
        self.output = Linear(sizes[-1], n_out, generators, gain=OUTPUT_GAIN)
        self.activation = activation

    def before_output(self, x: Tensor) -> Tensor:
        """What the output layer reads, ``(R, B, width)``."""
        activate = IN_PLACE[self.activation]
        for layer in self.hidden:
            x = activate(layer(x))
        return x

    def turn_inputs(self, maps: Tensor) -> None:
        """Read ``maps @ z`` in the place of z, maps of shape ``(R, d, d)``."""
        first = self.hidden[0].weight if len(self.hidden) else self.output.weight
        first.copy_(maps.mT @ first.to(maps))

    def forward(self, x: Tensor) -> Tensor:
        activate = IN_PLACE[self.activation]
        if self.output.weight.shape[0] > 1:
            return self.output(self.before_output(x))
        x = x.squeeze(0)
        for layer in self.hidden:
            x = activate(layer.alone(x))
        return self.output.alone(x).unsqueeze(0)


def skipped_layers(n_in, extra, n_out, generators, width, depth, activation):
    """First layer, and the later ones with `extra` more inputs, a number for each."""
    sizes = [*[width] * depth, n_out]
    gains = [gain(activation)] * (depth - 1) + [OUTPUT_GAIN]
    first = Linear(n_in, width, generators, gain=gain(activation))
    later = [
        Linear(a + more, b, generators, gain=factor)
        for (a, b), more, factor in zip(pairwise(sizes), extra, gains, strict=True)
    ]
    return first, nn.ModuleList(later)


class SumSkipNetwork(nn.Module):
    """Every layer reads z, by a sum; all maps of z are one matrix product.

    Without `output`, the last layer does not.
    """

    replayable = True

    def __init__(
        self, n_in, n_out, generators, width, depth, activation, *, output=True
    ):
        super().__init__()
        self.first, self.layers = skipped_layers(
            n_in, [0] * depth, n_out, generators, width, depth, activation
        )
        self.sizes = [width] * (depth - 1) + [n_out] * output
        std = OUTPUT_GAIN / math.sqrt(n_in)
        self.skip_weight = normal_weights(generators, n_in, sum(self.sizes), std=std)
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        skips = products(z, self.skip_weight).split(self.sizes, dim=-1)
        h = self.first(z)
        for layer, skip in zip(self.layers, skips, strict=False):
            h = layer(activate(h)) + skip
        rest = self.layers[len(self.sizes) :]
        return rest[0](activate(h)) if rest else h
