"""Skip decoder: the latent code is read again at every layer.

h_1 = act(W_1 z),  h_{l+1} = act(W_l h_l + V_l z),  out = W_L h_L + V_L z
(Dieng, Kim, Rush, Blei 2019, section 3; z enters the output as in their decoders for
images and text). Adding an affine map of z before the
activation and concatenating z to h are the same function; `merge` chooses how it is
parameterised and initialised.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Generator, Tensor, nn

from skvae._spec import Specification
from skvae._validation import Interval, StrOptions
from skvae.networks._layers import ACTIVATIONS, SumSkipNetwork, skipped_layers


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


class ConcatSkipNetwork(nn.Module):
    """Skips as concatenations."""

    replayable = True

    def __init__(self, n_in, n_out, generators, width, depth, activation):
        super().__init__()
        self.first, self.layers = skipped_layers(
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


MERGES = {"sum": SumSkipNetwork, "concat": ConcatSkipNetwork}
