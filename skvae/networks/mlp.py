"""Multilayer perceptrons: the default encoder and the plain decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from skvae._spec import Specification
from skvae.networks._layers import ACTIVATIONS, Linear, gain


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

    def __init__(self, width=256, depth=2, activation="relu"):
        self.width = width
        self.depth = depth
        self.activation = activation

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas, one generator each."""
        return DenseNetwork(
            n_in, n_out, generators, self.width, self.depth, self.activation
        )


class DenseNetwork(nn.Module):
    """R multilayer perceptrons, ``(R, B, n_in) -> (R, B, n_out)``."""

    def __init__(self, n_in, n_out, generators, width, depth, activation):
        super().__init__()
        sizes = [n_in, *[width] * depth]
        self.hidden = nn.ModuleList(
            Linear(a, b, generators, gain=gain(activation))
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.output = Linear(sizes[-1], n_out, generators)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        for layer in self.hidden:
            x = activate(layer(x))
        return self.output(x)
