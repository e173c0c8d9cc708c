"""Posterior families: what the encoder reads, and what its answer means.

The encoder's raw output ``(R, B, n_outputs)`` becomes a Gaussian ``(R, B, d)``, which
may then meet the prior; u has shape ``(R or 1, B, m)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skvae._gaussian import CorrelatedGaussian, DiagonalGaussian, bounded_log_scale
from skvae._spec import Specification


def _diagonal(raw: Tensor, n_latents: int) -> DiagonalGaussian:
    loc, log_scale = raw.split(n_latents, dim=-1)
    return DiagonalGaussian(loc, bounded_log_scale(log_scale))


def _full(raw: Tensor, n_latents: int) -> CorrelatedGaussian:
    n_below = n_latents * (n_latents - 1) // 2
    loc, log_scale, below = raw.split([n_latents, n_latents, n_below], dim=-1)
    rows, columns = torch.tril_indices(n_latents, n_latents, -1, device=raw.device)
    unit = torch.eye(n_latents, dtype=raw.dtype, device=raw.device)
    unit = unit.repeat(*raw.shape[:-1], 1, 1)
    unit[..., rows, columns] = below
    scale = torch.exp(-bounded_log_scale(log_scale))
    return CorrelatedGaussian(loc, scale.unsqueeze(-1) * unit)


# Reader of the raw output, and how many numbers it needs for d latents.
COVARIANCE = {
    "diagonal": (_diagonal, lambda d: 2 * d),
    "full": (_full, lambda d: 2 * d + d * (d - 1) // 2),
}


class EncoderPosterior(Specification):
    """Take q(z|x): the encoder's own Gaussian, which never sees u.

    Parameters
    ----------
    covariance : {"diagonal", "full"}, default="diagonal"
        Whether the coordinates of z are independent given x.
    """

    family = "posterior"

    def __init__(self, covariance="diagonal"):
        self.covariance = covariance

    def build(self):
        """A posterior has no parameters: it is its own module."""
        if self.covariance not in COVARIANCE:
            raise ValueError(
                f"The 'covariance' parameter of {type(self).__name__} must be one of "
                f"{sorted(COVARIANCE)}. Got {self.covariance!r} instead."
            )
        return self

    def n_inputs(self, n_features: int, n_auxiliary: int) -> int:
        return n_features

    def n_outputs(self, n_latents: int) -> int:
        return COVARIANCE[self.covariance][1](n_latents)

    def read(self, raw: Tensor, n_latents: int) -> DiagonalGaussian:
        return COVARIANCE[self.covariance][0](raw, n_latents)

    def inputs(self, features: Tensor, u: Tensor | None) -> Tensor:
        return features

    def combine(self, encoded: DiagonalGaussian, prior, u) -> DiagonalGaussian:
        return encoded


class ProductPosterior(EncoderPosterior):
    """Take q(z|x,u) proportional to q(z|x) p(z|u), and q(z|x) where u is not known.

    Without u, p(z|u) is replaced by the Gaussian with the moments of p(z) over the
    training u, so that leaving u out drops knowledge and not a network's input.

    Parameters
    ----------
    covariance : {"diagonal", "full"}, default="diagonal"
        Whether the coordinates of z are independent given x (and u).
    """

    def combine(self, encoded: DiagonalGaussian, prior, u) -> DiagonalGaussian:
        return encoded.product(prior.marginal() if u is None else prior.given(u))


class JointPosterior(EncoderPosterior):
    """Take q(z|x,u) from one encoder of x and u, as in the iVAE paper.

    Parameters
    ----------
    covariance : {"diagonal", "full"}, default="diagonal"
        Whether the coordinates of z are independent given x (and u).
    """

    def n_inputs(self, n_features: int, n_auxiliary: int) -> int:
        return n_features + n_auxiliary

    def inputs(self, features: Tensor, u: Tensor | None) -> Tensor:
        if u is None:
            raise ValueError(
                "posterior_type='joint' encodes x together with u: u must be passed. "
                "Use posterior_type='product' for latents that do without u."
            )
        shape = (*torch.broadcast_shapes(features.shape[:-1], u.shape[:-1]), -1)
        return torch.cat([features.expand(shape), u.expand(shape)], dim=-1)


POSTERIORS = {
    "encoder": EncoderPosterior,
    "product": ProductPosterior,
    "joint": JointPosterior,
}

__all__ = ["EncoderPosterior", "JointPosterior", "ProductPosterior"]
