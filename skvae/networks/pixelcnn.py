"""Gated PixelCNN: a decoder of images that reads the pixels before the one it predicts.

p(x | z) = prod_i p(x_i | x_1, ..., x_{i-1}, z) in the order of reading (van den Oord et
al. 2016). A vertical stack v sees the rows above, a horizontal one h the row itself:

    v_{l+1} = g(V_l),                V_l = K_l * [v_l, m_l(z)],
    h_{l+1} = h_l + U_l g(H_l),      H_l = k_l * [h_l, m_l(z)] + W_l V_l,
    g([a, b]) = tanh(a) sigmoid(b),  out = O [h_L, m_L(z)],

U, W and O being 1 x 1 convolutions. Kernels are cut to what they may see: K_l to the
rows up to this one, k_l to the columns up to this one. With v_0 the image moved down by
a row and h_0 the image moved right by a pixel, nothing sees the pixel it predicts or a
later one, which is what masks A and then B do; the maps m_l(z) are not moved, so that
the first pixels depend on z as all others do.

The maps enter the first layer alone, or, in the Skip-VAE, all of them and the output
(Dieng, Kim, Rush, Blei 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from skvae._spec import Specification
from skvae._validation import Interval
from skvae.networks._images import (
    IMAGE_SHAPE,
    Convolution,
    ImageShape,
    check_sizes,
    image_shape,
)
from skvae.networks._layers import OUTPUT_GAIN, Linear, tanh


class PixelCNN(Specification):
    """Autoregressive decoder of images: each pixel given z and the pixels before it.

    It can model an image without z, which makes it the decoder whose latents collapse
    most readily; `skip` is the published remedy.

    Parameters
    ----------
    n_layers : int, default=8
        Number of gated layers.
    n_channels : int, default=32
        Channels of either stack.
    kernel_size : int or tuple of int, default=3
        Odd width of the kernels, of all layers or of each.
    skip : bool, default=False
        Whether every layer and the output read z, rather than the first layer alone.
        :class:`~skvae.SkipVAE` sets it for ``decoder="pixelcnn"``.
    n_maps : int, default=1
        Feature maps that z becomes, by an affine map, wherever it is read.
    image_shape : "auto" or tuple, default="auto"
        Shape that each row of X was flattened from, ``(height, width)`` or ``(height,
        width, channels)``. "auto" takes square images of one channel.

    Notes
    -----
    Channels of one pixel are independent given z and the pixels before it. The
    published programs join layers by 1 x 1 convolutions where an identity stands here,
    and mask z as they mask x, so that without skips the first pixel does not see it.

    Sampling takes as many passes through the decoder as there are pixels. Without a
    draw, as in `inverse_transform`, each pixel is replaced by its mean given z and the
    means before it: the same answer every time, and not exactly the mean of x given z.

    References
    ----------
    van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, "Conditional
    Image Generation with PixelCNN Decoders", NeurIPS 2016, arXiv:1606.05328.

    Dieng, Kim, Rush, Blei, "Avoiding Latent Variable Collapse with Generative Skip
    Models", AISTATS 2019, arXiv:1807.04863, section 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import SkipVAE
    >>> from skvae.networks import PixelCNN
    >>> X = (load_digits().data[:100] > 8).astype("float32")
    >>> decoder = PixelCNN(n_layers=2, n_channels=4, skip=True)
    >>> vae = SkipVAE(2, decoder=decoder, likelihood="bernoulli", random_state=0)
    >>> vae.partial_fit(X).transform(X).shape
    (100, 2)
    >>> vae.sample(3, random_state=0).shape
    (3, 64)
    """

    family = "image decoder"
    _parameter_constraints: dict = {
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "n_channels": [Interval(Integral, 1, None, closed="left")],
        "kernel_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "skip": ["boolean"],
        "n_maps": [Interval(Integral, 1, None, closed="left")],
        "image_shape": IMAGE_SHAPE,
    }

    def __init__(
        self,
        n_layers=8,
        n_channels=32,
        kernel_size=3,
        skip=False,
        n_maps=1,
        image_shape="auto",
    ):
        self.n_layers = n_layers
        self.n_channels = n_channels
        self.kernel_size = kernel_size
        self.skip = skip
        self.n_maps = n_maps
        self.image_shape = image_shape

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; ValueError if rows are no such images."""
        return PixelCNNNetwork(
            n_in,
            image_shape(self, n_out),
            self._kernels(),
            generators,
            self.n_channels,
            self.n_maps,
            self.skip,
        )

    def _kernels(self) -> list[int]:
        """The width of each layer's kernels."""
        sizes = self.kernel_size
        if isinstance(sizes, Integral):
            sizes = [sizes] * self.n_layers
        check_sizes(self, "kernel_size", sizes)
        if len(sizes) != self.n_layers or any(size % 2 == 0 for size in sizes):
            raise ValueError(
                "The 'kernel_size' parameter of PixelCNN must be an odd number, or one "
                f"for each of n_layers={self.n_layers}. Got {self.kernel_size!r} "
                "instead."
            )
        return list(sizes)


def gate(pair: Tensor) -> Tensor:
    """``tanh(a) sigmoid(b)`` of the two halves of the channels."""
    a, b = pair.chunk(2, dim=-3)
    return tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks, ``n_in`` and ``n_maps`` channels to ``n``."""

    def __init__(self, n_in, n_maps, n, kernel, generators, residual):
        super().__init__()
        self.residual = residual
        reach = kernel // 2
        n_read = n_in + n_maps
        self.vertical = Convolution(
            n_read,
            2 * n,
            (reach + 1, kernel),
            generators,
            padding=(reach, reach, reach, 0),
        )
        self.horizontal = Convolution(
            n_read, 2 * n, (1, reach + 1), generators, padding=(reach, 0, 0, 0)
        )
        self.across = Convolution(2 * n, 2 * n, (1, 1), generators)
        self.out = Convolution(n, n, (1, 1), generators)

    def forward(self, v: Tensor, h: Tensor, maps) -> tuple[Tensor, Tensor]:
        def read(stack):
            return torch.cat([stack, *maps], dim=-3)

        above = self.vertical(read(v))
        row = self.out(gate(self.horizontal(read(h)) + self.across(above)))
        return gate(above), h + row if self.residual else row


class PixelCNNNetwork(nn.Module):
    """The built :class:`PixelCNN`, z ``(R, B, d)`` and x to outputs ``(R, B, n)``."""

    autoregressive = True
    stackable = False

    def __init__(self, n_in, shape, kernels, generators, n_channels, n_maps, skip):
        super().__init__()
        self.shape, self.n_maps, self.skip = shape, n_maps, skip
        self.n_places = len(kernels) + 1 if skip else 1
        maps = ImageShape(shape.height, shape.width, self.n_places * n_maps)
        self.map_shape = maps
        self.maps = Linear(n_in, maps.size, generators)
        self.layers = nn.ModuleList()
        for number, kernel in enumerate(kernels):
            n_before = n_channels if number else shape.channels
            n_read = n_maps if skip or number == 0 else 0
            sizes = n_before, n_read, n_channels, kernel
            self.layers.append(GatedLayer(*sizes, generators, residual=number > 0))
        self.output = Convolution(
            n_channels + n_maps * skip,
            shape.channels,
            (1, 1),
            generators,
            gain=OUTPUT_GAIN,
        )
        # Rows above a pixel on which it may depend.
        self.reach = 1 + sum(kernel // 2 for kernel in kernels)
        self.n_activations = 2 * n_channels * shape.height * shape.width
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def align(self, x: Tensor, weight: Tensor) -> None:
        """Take the origin and unit in which pixels are read from rows ``(m, n)``."""
        share = (weight / weight.sum()).unsqueeze(-1)
        centre = (share * x).sum(0).mean()
        variance = (share * (x - centre).square()).sum(0).mean()
        self.centre.copy_(centre)
        self.scale.copy_(variance.sqrt() if variance > 0 else torch.ones(()))

    def places(self, z: Tensor) -> list[Tensor]:
        """The maps of z wherever it is read, each ``(R, B, n_maps, H, W)``."""
        return list(self.map_shape.unflatten(self.maps(z)).split(self.n_maps, dim=-3))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        maps = self.places(z)
        x = x.expand(*maps[0].shape[:2], -1)
        return self.shape.flatten(self.predict(self.shape.unflatten(x), maps))

    def predict(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Outputs for the rows of an image that may be a part of one, from the top."""
        image = (image - self.centre) / self.scale
        v = pad(image, (0, 0, 1, 0))[..., :-1, :]
        h = pad(image, (1, 0))[..., :-1]
        for number, layer in enumerate(self.layers):
            v, h = layer(v, h, maps[number : number + 1])
        return self.output(torch.cat([h, *maps[len(self.layers) :]], dim=-3))

    @torch.no_grad()
    def generate(
        self, z: Tensor, likelihood, generator: Generator | None = None
    ) -> Tensor:
        """Go through x ``(R, B, n)`` pixel by pixel, drawing it or taking means.

        Each pass reads only the rows that the pixel may depend on.
        """
        maps = self.places(z)
        height, width, n_channels = self.shape
        x = z.new_zeros(*maps[0].shape[:2], self.shape.size)
        for row in range(height):
            top = max(0, row - self.reach)
            window = [m[..., top : row + 1, :] for m in maps]
            for column in range(width):
                image = self.shape.unflatten(likelihood.features(x))
                out = z.new_zeros(image.shape)
                found = self.predict(image[..., top : row + 1, :], window)
                out[..., row, :] = found[..., -1, :]
                out = self.shape.flatten(out)
                if generator is None:
                    values = likelihood.mean(out)
                else:
                    values = likelihood.sample(out, generator)
                start = (row * width + column) * n_channels
                pixel = slice(start, start + n_channels)
                x[..., pixel] = values[..., pixel]
        return x
