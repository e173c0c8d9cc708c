"""Multilayer perceptrons: the default encoder and the plain decoder."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from torch import Generator

from skvae._spec import Specification
from skvae._validation import Interval, StrOptions
from skvae.networks._layers import ACTIVATIONS, DenseNetwork


class MLP(Specification):
    """Fully connected network with `depth` hidden layers of equal `width`.

    Parameters
    ----------
    width : int, default=256
        Units of each hidden layer.
    depth : int, default=2
        Number of hidden layers; 0 gives an affine map.
    activation : {"relu", "leaky_relu", "tanh", "xtanh", "silu", "softplus", \
"identity"}, default="relu"
        Non-linearity of the hidden layers.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.networks import MLP
    >>> VAE(decoder=MLP(width=64, depth=0))
    VAE(decoder=MLP(depth=0, width=64))
    """

    family = "network"
    _parameter_constraints: dict = {
        "width": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 0, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
    }

    def __init__(self, width=256, depth=2, activation="relu"):
        self.width = width
        self.depth = depth
        self.activation = activation

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas, one generator each."""
        return DenseNetwork(
            n_in, n_out, generators, self.width, self.depth, self.activation
        )
