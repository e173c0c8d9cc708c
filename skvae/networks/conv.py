"""Convolutional encoders and decoder for images.

No layer has statistics of its batch: what a row becomes depends on that row alone, in
training and afterwards. Residual blocks start close to the identity instead (Zhang,
Dauphin, Ma 2019, arXiv:1901.09321), which keeps deep stacks trainable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

from torch import Generator, Tensor, nn

from skvae._spec import Specification
from skvae._validation import Interval, StrOptions
from skvae.networks._images import (
    IMAGE_ACTIVATIONS,
    IMAGE_SHAPE,
    Convolution,
    Enlargement,
    ImageShape,
    check_sizes,
    image_gain,
    image_shape,
    same,
)
from skvae.networks._layers import OUTPUT_GAIN, Linear

# How strongly a residual branch counts at the start.
BRANCH_GAIN = 0.3

_CONSTRAINTS: dict = {
    "channels": [tuple, list],
    "width": [Interval(Integral, 1, None, closed="left")],
    "activation": [StrOptions(set(IMAGE_ACTIVATIONS))],
    "image_shape": IMAGE_SHAPE,
}


class ConvEncoder(Specification):
    """Encoder of images: convolutions with stride two, then a hidden layer.

    Parameters
    ----------
    channels : tuple of int, default=(32, 64)
        Channels of each convolution. Every one, with a kernel of 3 x 3, halves height
        and width.
    width : int, default=256
        Units of the hidden layer after the convolutions.
    activation : str, default="relu"
        Non-linearity, "elu" or as in :class:`~skvae.networks.MLP`.
    image_shape : "auto" or tuple, default="auto"
        Shape that each row of X was flattened from, ``(height, width)`` or ``(height,
        width, channels)``. "auto" takes square images of one channel.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAE
    >>> from skvae.networks import ConvEncoder
    >>> X = load_digits().data[:100] / 16
    >>> encoder = ConvEncoder(channels=(4, 8), width=16)
    >>> vae = VAE(encoder=encoder, likelihood="bernoulli", random_state=0)
    >>> vae.partial_fit(X).transform(X).shape
    (100, 2)
    """

    family = "image encoder"
    _parameter_constraints = _CONSTRAINTS

    def __init__(
        self, channels=(32, 64), width=256, activation="relu", image_shape="auto"
    ):
        self.channels = channels
        self.width = width
        self.activation = activation
        self.image_shape = image_shape

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; ValueError if rows are no such images."""
        check_sizes(self, "channels", self.channels)
        shape = image_shape(self, n_in)
        factor = image_gain(self.activation)
        options = {"gain": factor, "stride": 2, "padding": same(3)}
        stages = [
            Convolution(a, b, (3, 3), generators, **options)
            for a, b in pairwise([shape.channels, *self.channels])
        ]
        sizes = halvings(shape, len(stages), math.ceil)
        return EncoderNetwork(stages, self, shape, sizes, n_out, generators)


class ResNetEncoder(Specification):
    """Encoder of images: residual blocks, then a hidden layer.

    Parameters
    ----------
    channels : tuple of int, default=(64, 64, 64)
        Channels of each residual block. Every one is followed by a 2 x 2 convolution
        that halves height and width.
    width : int, default=512
        Units of the hidden layer after the blocks.
    activation : str, default="elu"
        Non-linearity, "elu" or as in :class:`~skvae.networks.MLP`.
    image_shape : "auto" or tuple, default="auto"
        Shape that each row of X was flattened from, ``(height, width)`` or ``(height,
        width, channels)``. "auto" takes square images of one channel.

    Notes
    -----
    The encoder of the image experiments with PixelCNN decoders, of which the published
    programs have a form with batch normalisation. Here there is none, and residual
    branches start small. As ``encoder="resnet"`` it takes its `width` from the
    estimator.

    References
    ----------
    He, Spokoyny, Neubig, Berg-Kirkpatrick, "Lagging Inference Networks and Posterior
    Collapse in Variational Autoencoders", ICLR 2019, arXiv:1901.05534, appendix.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.networks import ResNetEncoder
    >>> VAE(encoder=ResNetEncoder(channels=(32, 32)))
    VAE(encoder=ResNetEncoder(channels=(32, 32)))
    """

    family = "image encoder"
    _parameter_constraints = _CONSTRAINTS

    def __init__(
        self, channels=(64, 64, 64), width=512, activation="elu", image_shape="auto"
    ):
        self.channels = channels
        self.width = width
        self.activation = activation
        self.image_shape = image_shape

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; ValueError if rows are no such images."""
        check_sizes(self, "channels", self.channels)
        shape = image_shape(self, n_in)
        sizes = halvings(shape, len(self.channels), math.floor)
        if min(sizes[-1]) == 0:
            raise ValueError(
                f"ResNetEncoder halves images of {shape.height} x {shape.width} "
                f"{len(self.channels)} times, until nothing is left. Give it fewer "
                "channels, one entry for each halving."
            )
        stages = [
            nn.Sequential(
                ResidualBlock(a, b, generators, self.activation),
                Convolution(b, b, (2, 2), generators, stride=2),
            )
            for a, b in pairwise([shape.channels, *self.channels])
        ]
        return EncoderNetwork(stages, self, shape, sizes, n_out, generators)


class ConvDecoder(Specification):
    """Decoder of images: a hidden layer, then transposed convolutions.

    Parameters
    ----------
    channels : tuple of int, default=(64, 32)
        Channels of each map, the smallest map first. Every transposed convolution, with
        a kernel of 4 x 4, doubles height and width.
    width : int, default=256
        Units of the hidden layer before the maps.
    activation : str, default="relu"
        Non-linearity, "elu" or as in :class:`~skvae.networks.MLP`.
    image_shape : "auto" or tuple, default="auto"
        Shape that each row of X was flattened from, ``(height, width)`` or ``(height,
        width, channels)``. "auto" takes square images of one channel.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.networks import ConvDecoder
    >>> VAE(encoder="conv", decoder=ConvDecoder(image_shape=(32, 32, 3)))
    VAE(decoder=ConvDecoder(image_shape=(32, 32, 3)), encoder='conv')
    """

    family = "image decoder"
    _parameter_constraints = _CONSTRAINTS

    def __init__(
        self, channels=(64, 32), width=256, activation="relu", image_shape="auto"
    ):
        self.channels = channels
        self.width = width
        self.activation = activation
        self.image_shape = image_shape

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; ValueError if rows are no such images."""
        check_sizes(self, "channels", self.channels)
        shape = image_shape(self, n_out)
        return DecoderNetwork(
            n_in, shape, tuple(self.channels), generators, self.width, self.activation
        )


def halvings(shape: ImageShape, n: int, rounded) -> list[tuple[int, int]]:
    """Height and width of an image, and after each of `n` halvings."""
    sizes = [(shape.height, shape.width)]
    for _ in range(n):
        height, width = sizes[-1]
        sizes.append((rounded(height / 2), rounded(width / 2)))
    return sizes


class ResidualBlock(nn.Module):
    """``act(s(x) + f(x))``: f two convolutions, s the identity or a 1 x 1 one."""

    def __init__(self, n_in, n_out, generators, activation):
        super().__init__()
        options = {"padding": same(3)}
        self.first = Convolution(
            n_in, n_out, (3, 3), generators, gain=image_gain(activation), **options
        )
        self.second = Convolution(
            n_out, n_out, (3, 3), generators, gain=BRANCH_GAIN, **options
        )
        self.shortcut = nn.Identity()
        if n_in != n_out:
            self.shortcut = Convolution(n_in, n_out, (1, 1), generators)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        activate = IMAGE_ACTIVATIONS[self.activation]
        return activate(self.shortcut(x) + self.second(activate(self.first(x))))


class EncoderNetwork(nn.Module):
    """Stages that shrink an image, and two affine maps, ``(R, B, n) -> (R, B, m)``."""

    # Networks of images fill the processor with one replica.
    stackable = False

    def __init__(self, stages, options, shape, sizes, n_out, generators):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.shape, self.activation = shape, options.activation
        channels, width = options.channels, options.width
        n_left = channels[-1] * math.prod(sizes[-1])
        factor = image_gain(self.activation)
        self.hidden = Linear(n_left, width, generators, gain=factor)
        self.output = Linear(width, n_out, generators, gain=OUTPUT_GAIN)
        read = zip(channels, sizes[:-1], strict=True)
        self.n_activations = max(n * math.prod(size) for n, size in read)

    def forward(self, x: Tensor) -> Tensor:
        activate = IMAGE_ACTIVATIONS[self.activation]
        image = self.shape.unflatten(x)
        for stage in self.stages:
            image = activate(stage(image))
        return self.output(activate(self.hidden(image.flatten(2))))


class DecoderNetwork(nn.Module):
    """Two affine maps, and enlargements up to an image, ``(R, B, d) -> (R, B, n)``."""

    stackable = False

    def __init__(self, n_in, shape, channels, generators, width, activation):
        super().__init__()
        self.shape, self.activation = shape, activation
        factor = image_gain(activation)
        sizes = halvings(shape, len(channels), math.ceil)[::-1]
        self.start = ImageShape(*sizes[0], channels[0])
        self.hidden = Linear(n_in, width, generators, gain=factor)
        self.map = Linear(width, self.start.size, generators, gain=factor)
        gains = [factor] * (len(channels) - 1) + [OUTPUT_GAIN]
        steps = zip(
            pairwise([*channels, shape.channels]), sizes[1:], gains, strict=True
        )
        self.stages = nn.ModuleList(
            Enlargement(a, b, size, generators, gain=g) for (a, b), size, g in steps
        )
        written = zip([*channels[1:], shape.channels], sizes[1:], strict=True)
        self.n_activations = max(n * math.prod(size) for n, size in written)

    def forward(self, z: Tensor) -> Tensor:
        activate = IMAGE_ACTIVATIONS[self.activation]
        image = self.start.unflatten(self.map(activate(self.hidden(z))))
        for stage in self.stages:
            image = stage(activate(image))
        return self.shape.flatten(image)
