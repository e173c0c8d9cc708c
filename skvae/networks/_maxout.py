"""Maxout networks: each unit is the largest of several affine functions.

Units of the last layer are absolute values instead, as in the feature extractor of
time-contrastive learning (Hyvarinen, Morioka 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from skvae.networks._layers import Linear

# He's initialisation.
GAIN = math.sqrt(2.0)


class MaxoutNetwork(nn.Module):
    """R networks of `depth` maxout layers and one of |affine|, He-initialised.

    Activations ``(R, B, n_in) -> (R, B, n_out)``.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        generators: Sequence[Generator],
        width: int,
        depth: int,
        n_pieces: int,
    ):
        super().__init__()
        self.n_pieces = n_pieces
        sizes = [n_in, *[width] * depth]
        self.hidden = nn.ModuleList(
            Linear(a, n_pieces * b, generators, gain=GAIN) for a, b in pairwise(sizes)
        )
        self.output = Linear(sizes[-1], n_out, generators, gain=GAIN)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            pieces = layer(x)
            x = pieces.unflatten(-1, (self.n_pieces, -1)).amax(-2)
        return torch.abs(self.output(x))
