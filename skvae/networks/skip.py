"""Skip decoder: the latent code is read again at every layer.

h_1 = act(W_1 z),  h_{l+1} = act(W_l h_l + V_l z),  out = W_L h_L + V_L z
(Dieng, Kim, Rush, Blei 2019, section 3; z enters the output as in their decoders for
images and text). Adding an affine map of z before the
activation and concatenating z to h are the same function; `merge` chooses how it is
parameterised and initialised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Generator, Tensor, nn

from skvae._products import products
from skvae._spec import Specification
from skvae._validation import Interval, StrOptions
from skvae.networks._layers import (
    ACTIVATIONS,
    OUTPUT_GAIN,
    Linear,
    gain,
    normal_weights,
)


class Skip(Specification):
    """Decoder whose every layer, the output included, reads z.

    Parameters
    ----------
    width : int, default=256
        Units of each hidden layer.
    depth : int, default=2
        Number of hidden layers.
    activation : str, default="relu"
        Non-linearity of the hidden layers, as in :class:`~skvae.networks.MLP`.
    merge : {"sum", "concat"}, default="sum"
        "sum" adds a separately scaled map of z to each layer's input, "concat"
        appends z to it.

    References
    ----------
    Dieng, Kim, Rush, Blei, "Avoiding Latent Variable Collapse with Generative Skip
    Models", AISTATS 2019, arXiv:1807.04863.
    """

    family = "network"
    _parameter_constraints: dict = {
        "width": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "merge": [StrOptions({"sum", "concat"})],
    }

    def __init__(self, width=256, depth=2, activation="relu", merge="sum"):
        self.width = width
        self.depth = depth
        self.activation = activation
        self.merge = merge

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas, one generator each."""
        if self.merge not in MERGES:
            raise ValueError(
                f"The 'merge' parameter of Skip must be one of {sorted(MERGES)}. "
                f"Got {self.merge!r} instead."
            )
        return MERGES[self.merge](
            n_in, n_out, generators, self.width, self.depth, self.activation
        )


class SumSkipNetwork(nn.Module):
    """Skips as sums; all maps of z are one matrix product."""

    replayable = True

    def __init__(self, n_in, n_out, generators, width, depth, activation):
        super().__init__()
        self.first, self.layers = _layers(
            n_in, 0, n_out, generators, width, depth, activation
        )
        n_skips = width * (depth - 1) + n_out
        std = OUTPUT_GAIN / math.sqrt(n_in)
        self.skip_weight = normal_weights(generators, n_in, n_skips, std=std)
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        sizes = [layer.weight.shape[-1] for layer in self.layers]
        skips = products(z, self.skip_weight).split(sizes, dim=-1)
        h = self.first(z)
        for layer, skip in zip(self.layers, skips, strict=True):
            h = layer(activate(h)) + skip
        return h


class ConcatSkipNetwork(nn.Module):
    """Skips as concatenations."""

    replayable = True

    def __init__(self, n_in, n_out, generators, width, depth, activation):
        super().__init__()
        self.first, self.layers = _layers(
            n_in, n_in, n_out, generators, width, depth, activation
        )
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        z = z.expand(self.first.weight.shape[0], -1, -1)
        h = self.first(z)
        for layer in self.layers:
            h = layer(torch.cat([activate(h), z], dim=-1))
        return h


def _layers(n_in, n_extra, n_out, generators, width, depth, activation):
    """First layer, and the later ones with `n_extra` more inputs each."""
    sizes = [*[width] * depth, n_out]
    gains = [gain(activation)] * (depth - 1) + [OUTPUT_GAIN]
    first = Linear(n_in, width, generators, gain=gain(activation))
    later = [
        Linear(a + n_extra, b, generators, gain=factor)
        for (a, b), factor in zip(pairwise(sizes), gains, strict=True)
    ]
    return first, nn.ModuleList(later)


MERGES = {"sum": SumSkipNetwork, "concat": ConcatSkipNetwork}
