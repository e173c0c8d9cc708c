"""The noise-free parts: what a model is made of whose encoder is invertible.

With x = g^{-1}(z) and no noise, q(z|x) is a point and the bound is exact:
log p(x|u) = log|det Jg(x)| + log p(g(x)|u). The two terms stand where log p(x|z) and
the KL stand elsewhere, which is their limit for small noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from skvae._gaussian import DiagonalGaussian
from skvae._spec import Specification


class Point(NamedTuple):
    """All probability at z = g(x): `loc` ``(R, B, d)``, `log_det` ``(R, B)``."""

    loc: Tensor
    log_det: Tensor
    marginal: Callable[[], DiagonalGaussian]

    @property
    def scale(self) -> Tensor:
        """Standard deviations, zero."""
        return torch.zeros_like(self.loc)

    def sample(self, noise: Tensor) -> Tensor:
        """Its only value."""
        return self.loc

    def log_prob(self, z: Tensor) -> Tensor:
        """Zero: densities are relative to the point itself."""
        return torch.zeros_like(self.log_det)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """Minus the log-density of the point under `other`, shape ``(R, B)``."""
        return -other.log_prob(self.loc)

    def kl_per_dimension(self, other: DiagonalGaussian) -> Tensor:
        """What `other`, p(z|u), says beyond p(z), per coordinate: KL of the two."""
        return other.kl_per_dimension(self.marginal())


class PointPosterior(Specification):
    """The encoder's output is z itself, and log|det Jg|."""

    family = "posterior"

    def build(self):
        """A posterior has no parameters: it is its own module."""
        return self

    def n_inputs(self, n_features: int, n_auxiliary: int) -> int:
        return n_features

    def n_outputs(self, n_latents: int) -> int:
        return n_latents + 1

    def inputs(self, features: Tensor, u: Tensor | None) -> Tensor:
        return features

    def read(self, raw: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
        return raw[..., :n_latents], raw[..., n_latents]

    def combine(self, encoded: tuple[Tensor, Tensor], prior, u) -> Point:
        return Point(*encoded, prior.marginal)

    def expected_log_likelihood(self, model, x: Tensor, q: Point, z: Tensor) -> Tensor:
        """Log|det Jg| in the units of x, shape ``(R, B)``."""
        # One scale, or with fits stacked that have other data, one a replica.
        return q.log_det - x.shape[-1] * torch.log(model.frame.scale).view(-1, 1)

    def importance_log_weights(
        self, model, x: Tensor, u: Tensor | None, q: Point, noise: Tensor
    ) -> Tensor:
        """Log p(x|u), exact, once for every row of `noise`: ``(R, S, B)``."""
        exact = model.expected_log_likelihood(x, q, q.loc)
        exact = exact + model.prior.log_prob(q.loc, u)
        return exact.unsqueeze(1).expand(-1, len(noise), -1)


class Noiseless(Specification):
    """X is what the decoder says."""

    domain = "real"
    family = "likelihood"

    def build(self, n_features: int, n_replicas: int):
        """Make the module."""
        return NoiselessModule()


class NoiselessModule(nn.Module):
    """The built :class:`Noiseless`."""

    replayable = True

    scales_with_data = True

    def n_outputs(self, n_features: int) -> int:
        return n_features

    def features(self, x: Tensor) -> Tensor:
        return x

    def start(self, mean: Tensor) -> Tensor:
        return mean

    def set_unit(self, unit: Tensor) -> None:
        """Nothing is measured in the unit of x."""

    def mean(self, out: Tensor) -> Tensor:
        return out

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        return out

    def noise_variance(self) -> None:
        return None
