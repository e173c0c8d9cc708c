"""A flow on padded codes as decoder, and its inverse as encoder.

    f(z) = g^{-1}(z, 0)        with g : R^D -> R^D an invertible network, z in R^K

is injective whatever its weights, and its inverse on its range needs no network of
its own: the first K coordinates of g(x). Around them, for noise of standard deviation
s that is small against the curvature of f, p(x|z) is a Gaussian in z of precision
J^T J / s^2 with J the Jacobian of f. Taken as q(z|x), it makes the bound tight as s
goes to zero, which an encoder of its own reaches only as far as it has learned to
invert. Codes padded with zeros are those of Brehmer, Cranmer 2020 (arXiv:2003.13913);
their noise and encoder are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from skvae._spec import Specification
from skvae.networks._convex import require_injective_sizes
from skvae.networks._flow import SplineFlow

# Noise is learned; it starts, as that of likelihoods does, at this part of the data.
LOG_NOISE = -1.5
# Part of the mean precision added in every direction, for the sake of factorisation.
JITTER = 1e-6


class InjectiveFlow(SplineFlow):
    """Injective decoder with a closed-form inverse: a flow on codes padded with zeros.

    Parameters
    ----------
    depth : int, default=4
        Number of spline layers of the flow.
    n_bins : int, default=8
        Pieces of each spline, an even number.

    See Also
    --------
    Inverse : The encoder that goes with it.
    SplineFlow : The flow.

    Notes
    -----
    Matrices are as wide as X: meant for tens of features rather than for images. The
    certificate ``inverse_lipschitz_`` multiplies the bounds of the layers and is loose.

    References
    ----------
    Brehmer, Cranmer, "Flows for simultaneous manifold learning and density
    estimation", NeurIPS 2020, arXiv:2003.13913.

    Examples
    --------
    >>> from skvae import IdentifiableVAE
    >>> from skvae.datasets import make_nonlinear_ica
    >>> from skvae.networks import InjectiveFlow
    >>> X, u = make_nonlinear_ica(800, n_segments=8, n_features=3, random_state=0)
    >>> vae = IdentifiableVAE(2, decoder=InjectiveFlow(depth=3), max_iter=5,
    ...                       random_state=0)
    >>> vae.fit(X, u=u).transform(X, u=u).shape
    (800, 2)
    """

    family = "network"
    has_inverse = True
    """Whether :class:`Inverse` can be its encoder."""

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas; ValueError if ``n_in > n_out``."""
        require_injective_sizes("InjectiveFlow", n_in, n_out)
        flow = super().build(n_out, n_out + 1, generators)
        return InjectiveFlowNetwork(flow, n_in, n_out)


class InjectiveFlowNetwork(nn.Module):
    """The built :class:`InjectiveFlow`, ``(R, B, n_in) -> (R, B, n_out)``."""

    replayable = True
    has_loose_certificate = True
    """Whether its slopes may be far above the bound that is computed."""

    def __init__(self, flow: nn.Module, n_in: int, n_out: int):
        super().__init__()
        self.flow = flow
        self.n_in, self.n_out = n_in, n_out

    def align(self, x: Tensor, weight: Tensor) -> None:
        """Hand rows of x to the flow."""
        self.flow.align(x, weight)

    def forward(self, z: Tensor) -> Tensor:
        return self.flow.inverse(nn.functional.pad(z, (0, self.n_out - self.n_in)))

    def invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes ``(R, B, n_in)`` of x, and J^T J there, ``(R, B, n_in, n_in)``.

        Where x is not in the decoder's range, J is that of the flow's inverse at x.
        """
        z, columns = self.flow.linearised(x, self.n_in)
        return z[..., : self.n_in], columns @ columns.mT

    def inverse_lipschitz(self) -> Tensor:
        """Lower bound on the slope between any two codes, shape ``(R,)``."""
        return 1.0 / self.flow.slope()


class Inverse(Specification):
    """Encoder that is the decoder's inverse, for decoders that have one.

    q(z|x) has its mean where the decoder gives x, or the closest that its inverse
    says, and the precision J^T J / s^2, J being the decoder's Jacobian there and s a
    learned noise: all that is trained is the decoder and one number.

    See Also
    --------
    InjectiveFlow : A decoder with a closed-form inverse.

    Notes
    -----
    For a Gaussian likelihood, whose mean is the decoder's output. Meant for
    ``covariance="full"``; a diagonal one takes the diagonal of the precision.

    Examples
    --------
    >>> from skvae import iVAE
    >>> from skvae.networks import InjectiveFlow, Inverse
    >>> iVAE(2, encoder=Inverse(), decoder=InjectiveFlow(), covariance="full")
    iVAE(covariance='full', decoder=InjectiveFlow(), encoder=Inverse())
    """

    family = "network"
    of_decoder = True
    """Whether it is built from the decoder, and after it."""

    def build(self, decoder: nn.Module, n_in: int, likelihood, posterior, n_replicas):
        """Make the module for R replicas.

        Raises
        ------
        ValueError
            If the decoder has no inverse, or x alone does not say where z is.
        """
        if not hasattr(decoder, "invert"):
            raise ValueError(
                "encoder='inverse' needs a decoder with an inverse, and "
                f"{type(decoder).__name__} has none. Use decoder='flow'."
            )
        if not likelihood.scales_with_data:
            raise ValueError(
                "encoder='inverse' inverts the mean of x, and the decoder gives it "
                "for likelihood='gaussian' alone. Use encoder='mlp'."
            )
        if n_in != decoder.n_out or getattr(posterior, "write", None) is None:
            raise ValueError(
                "encoder='inverse' answers with one Gaussian per row from x alone, "
                f"and {type(posterior).__name__} needs more. Use encoder='mlp'."
            )
        return InverseNetwork(decoder, posterior, n_replicas)


class InverseNetwork(nn.Module):
    """The built :class:`Inverse`, ``(R, B, p) -> (R, B, n_outputs)``."""

    replayable = True

    def __init__(self, decoder: nn.Module, posterior, n_replicas: int):
        super().__init__()
        # In a tuple, so that its parameters are not registered a second time.
        self._decoder = (decoder,)
        self.posterior = posterior
        # The Jacobian of a row is the largest thing that is kept of it.
        self.n_activations = decoder.n_in * decoder.n_out
        self.log_noise = nn.Parameter(torch.full((n_replicas, 1, 1), LOG_NOISE))

    def forward(self, x: Tensor) -> Tensor:
        z, metric = self._decoder[0].invert(x)
        mean = torch.diagonal(metric, dim1=-2, dim2=-1).mean(-1, keepdim=True)
        metric = metric + torch.diag_embed((JITTER * mean).expand_as(z))
        noise = torch.exp(-2.0 * self.log_noise).unsqueeze(-1)
        return self.posterior.write(z, noise * metric)
