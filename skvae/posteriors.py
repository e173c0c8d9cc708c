"""Posterior families: what the encoder reads, and how its answer meets the prior.

`encoded` is the encoder's output as a Gaussian, ``(R, B, d)``; u has shape
``(R or 1, B, m)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skvae._gaussian import DiagonalGaussian
from skvae._spec import Specification


class EncoderPosterior(Specification):
    """Take q(z|x): the encoder's own Gaussian, which never sees u."""

    requires_u = False

    def build(self):
        """A posterior has no parameters: it is its own module."""
        return self

    def n_inputs(self, n_features: int, n_auxiliary: int) -> int:
        return n_features

    def inputs(self, features: Tensor, u: Tensor | None) -> Tensor:
        return features

    def combine(self, encoded: DiagonalGaussian, prior, u) -> DiagonalGaussian:
        return encoded


class ProductPosterior(EncoderPosterior):
    """Take q(z|x,u) proportional to q(z|x) p(z|u), and q(z|x) where u is not known.

    Without u, p(z|u) is replaced by the Gaussian with the moments of p(z) over the
    training u, so that leaving u out drops knowledge and not a network's input.
    """

    def combine(self, encoded: DiagonalGaussian, prior, u) -> DiagonalGaussian:
        return encoded.product(prior.marginal() if u is None else prior.given(u))


class JointPosterior(EncoderPosterior):
    """Take q(z|x,u) from one encoder of x and u, as in the iVAE paper."""

    requires_u = True

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
