"""Skip decoder: the latent code is read again at every layer.

h_1 = act(W_1 z),  h_{l+1} = act(W_l h_l + V_l z),  out = W_L h_L + V_L z
(Dieng, Kim, Rush, Blei 2019, section 3). z enters the output in their PixelCNN and LSTM
and not in their fully connected decoder; `output` chooses. Adding an affine map of z
before the activation and concatenating z to h are the same function; `merge` chooses
how it is parameterised and initialised.
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
    output : bool, default=True
        Whether the output layer reads z as well. It is what prevents collapse: on
        Omniglot, decoders with skips between hidden layers alone lose all latents
        where this one keeps them. Without it latents are fewer, and more of what a
        linear classifier reads.

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
        "output": ["boolean"],
    }

    def __init__(self, width=256, depth=2, activation="relu", merge="sum", output=True):
        self.width = width
        self.depth = depth
        self.activation = activation
        self.merge = merge
        self.output = output

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas, one generator each."""
        if self.merge not in MERGES:
            raise ValueError(
                f"The 'merge' parameter of Skip must be one of {sorted(MERGES)}. "
                f"Got {self.merge!r} instead."
            )
        return MERGES[self.merge](
            n_in,
            n_out,
            generators,
            self.width,
            self.depth,
            self.activation,
            output=self.output,
        )


class ConcatSkipNetwork(nn.Module):
    """Skips as concatenations."""

    replayable = True

    def __init__(self, n_in, n_out, generators, width, depth, activation, *, output):
        super().__init__()
        extra = [n_in] * (depth - 1) + [n_in if output else 0]
        self.first, self.layers = skipped_layers(
            n_in, extra, n_out, generators, width, depth, activation
        )
        self.activation, self.output = activation, output

    def forward(self, z: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        z = z.expand(self.first.weight.shape[0], -1, -1)
        h = self.first(z)
        *hidden, output = self.layers
        for layer in hidden:
            h = layer(torch.cat([activate(h), z], dim=-1))
        h = activate(h)
        return output(torch.cat([h, z], dim=-1) if self.output else h)


MERGES = {"sum": SumSkipNetwork, "concat": ConcatSkipNetwork}
