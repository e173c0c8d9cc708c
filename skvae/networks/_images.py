"""What networks of images share: their shape, and convolutions of R replicas.

Rows are images flattened as numpy does it, ``(H, W)`` or ``(H, W, C)``; inside, an
image is ``(R, B, C, H, W)``. Replicas take turns, so that each computes what it would
compute alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, elu

from skvae._validation import StrOptions
from skvae.networks._layers import ACTIVATIONS, gain, normal_weights, zeros

IMAGE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "elu": elu}

IMAGE_SHAPE = [StrOptions({"auto"}), tuple, list]


class ImageShape(NamedTuple):
    """Rows, columns and channels of an image."""

    height: int
    width: int
    channels: int = 1

    @property
    def size(self) -> int:
        """Number of values of an image."""
        return self.height * self.width * self.channels

    def unflatten(self, x: Tensor) -> Tensor:
        """Images ``(R, B, C, H, W)`` of rows ``(R, B, n)``."""
        x = x.reshape(*x.shape[:-1], self.height, self.width, self.channels)
        return x.movedim(-1, -3)

    def flatten(self, image: Tensor) -> Tensor:
        """Rows ``(R, B, n)`` of images ``(R, B, C, H, W)``."""
        return image.movedim(-3, -1).flatten(-3)


def image_shape(network, n_values: int) -> ImageShape:
    """The shape that a specification gives to rows of `n_values` values.

    Raises ValueError if there is none, or if it is not made of so many values.
    """
    name, shape = type(network).__name__, network.image_shape
    if isinstance(shape, str):
        side = math.isqrt(n_values)
        if side * side != n_values:
            raise ValueError(
                f"{name} takes rows for square images of one channel unless it is told "
                f"otherwise, and {n_values} values make no square. Pass the shape, "
                f"{name}(image_shape=(height, width)) or (height, width, channels)."
            )
        return ImageShape(side, side)
    numbers = all(isinstance(n, Integral) and n > 0 for n in shape)
    if len(shape) not in {2, 3} or not numbers:
        raise ValueError(
            f"The 'image_shape' parameter of {name} must be (height, width), (height, "
            f"width, channels) or 'auto'. Got {shape!r} instead."
        )
    found = ImageShape(*shape)
    if found.size != n_values:
        raise ValueError(
            f"image_shape={tuple(shape)} of {name} makes {found.size} values, but rows "
            f"have {n_values}. Pass the shape that X was flattened from; networks of "
            "images read x alone (posterior_type='joint' adds u to it)."
        )
    return found


def check_sizes(network, parameter: str, values: Sequence[int]) -> None:
    """Raise ValueError unless `values` are positive integers, at least one."""
    if not values or not all(isinstance(n, Integral) and n > 0 for n in values):
        raise ValueError(
            f"The '{parameter}' parameter of {type(network).__name__} must hold "
            f"positive integers, at least one. Got {values!r} instead."
        )


def each_replica(function, weight: Tensor, x: Tensor, *further: Tensor) -> Tensor:
    """``function(x[r], weight[r], ...)`` for each of the R replicas, stacked.

    An `x` with a leading axis of one serves all replicas.
    """
    n_replicas = weight.shape[0]
    copies = x.expand(n_replicas, *x.shape[1:])
    if n_replicas == 1:
        return function(copies[0], weight[0], *(t[0] for t in further)).unsqueeze(0)
    each = zip(copies, weight, *further, strict=True)
    return torch.stack([function(*arguments) for arguments in each])


class Convolution(nn.Module):
    """R independent convolutions, ``(R, B, C, H, W) -> (R, B, C', H', W')``.

    Parameters
    ----------
    n_in, n_out : int
        Channels.
    kernel : tuple of int
        Height and width.
    padding : tuple of int
        Zeros added on the left, on the right, above and below.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: tuple[int, int],
        generators: Sequence[Generator],
        *,
        gain: float = 1.0,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ):
        super().__init__()
        std = gain / math.sqrt(n_in * math.prod(kernel))
        self.weight = normal_weights(generators, n_out, n_in, *kernel, std=std)
        self.bias = zeros(generators, n_out)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        def convolve(x, weight, bias):
            if any(self.padding):
                x = nn.functional.pad(x, self.padding)
            return conv2d(x, weight, bias, self.stride)

        return each_replica(convolve, self.weight, x, self.bias)


class Enlargement(nn.Module):
    """R independent transposed convolutions that double an image.

    What exceeds the target `size`, ``(H', W')``, is cut off.
    """

    def __init__(self, n_in, n_out, size, generators, *, gain: float = 1.0):
        super().__init__()
        # Four of the sixteen taps meet at each place.
        std = gain / math.sqrt(4 * n_in)
        self.weight = normal_weights(generators, n_in, n_out, 4, 4, std=std)
        self.bias = zeros(generators, n_out)
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size

        def enlarge(x, weight, bias):
            out = conv_transpose2d(x, weight, bias, stride=2, padding=1)
            return out[..., :height, :width]

        return each_replica(enlarge, self.weight, x, self.bias)


def same(kernel: int) -> tuple[int, int, int, int]:
    """Padding that keeps the size of an image, for an odd kernel."""
    return (kernel // 2,) * 4


def image_gain(activation: str) -> float:
    """Factor of the initial weights that about keeps the activations' variance."""
    return gain("relu") if activation == "elu" else gain(activation)
