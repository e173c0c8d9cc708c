"""Diagonal Gaussians: the posterior family, and what it is compared with.

Every tensor carries the latent axis last; the axes before it are free (draws,
replicas, rows). All values are in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, exp, log, tanh

LOG_TWO_PI = math.log(2.0 * math.pi)


def bounded_log_scale(t: Tensor) -> Tensor:
    """Smoothly keep a log standard deviation within (-8, 8)."""
    return 8.0 * tanh(t / 8.0)


class DiagonalGaussian(NamedTuple):
    """A Gaussian with independent coordinates, ``N(loc, exp(log_scale)^2)``.

    Both fields have shape ``(..., d)`` and broadcast against each other.
    """

    loc: Tensor
    log_scale: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations, shape ``(..., d)``."""
        return exp(self.log_scale)

    def sample(self, noise: Tensor) -> Tensor:
        """Reparameterised draw for standard normal `noise` of shape ``(..., d)``."""
        return self.loc + self.scale * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of `z`, summed over the latent axis, shape ``(...)``."""
        standardised = (z - self.loc) * exp(-self.log_scale)
        terms = standardised.square() + LOG_TWO_PI
        return -0.5 * terms.sum(-1) - self.log_scale.expand_as(terms).sum(-1)

    def kl_per_dimension(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) of every coordinate, shape ``(..., d)``."""
        precision = exp(-2.0 * other.log_scale)
        quadratic = (exp(2.0 * self.log_scale) + (self.loc - other.loc).square()) * (
            precision
        )
        return 0.5 * (quadratic - 1.0) + other.log_scale - self.log_scale

    def kl_from_standard(self) -> Tensor:
        """KL(self || N(0, I)) of every coordinate, shape ``(..., d)``."""
        moments = exp(2.0 * self.log_scale) + self.loc.square()
        return 0.5 * (moments - 1.0) - self.log_scale

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) summed over the latent axis, shape ``(...)``."""
        return self.kl_per_dimension(other).sum(-1)

    def product(self, other: DiagonalGaussian) -> DiagonalGaussian:
        """Normalised product of the two densities, again a diagonal Gaussian."""
        precision, other_precision = (
            exp(-2.0 * self.log_scale),
            exp(-2.0 * other.log_scale),
        )
        total = precision + other_precision
        loc = (precision * self.loc + other_precision * other.loc) / total
        return DiagonalGaussian(loc, -0.5 * log(total))
