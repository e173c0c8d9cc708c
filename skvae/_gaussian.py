"""Gaussians: the posterior families, and what they are compared with.

Every tensor carries the latent axis last; the axes before it are free (replicas,
rows). All values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, exp, log

LOG_TWO_PI = math.log(2.0 * math.pi)


def bounded_log_scale(t: Tensor) -> Tensor:
    """Smoothly keep a log standard deviation within (-8, 8)."""
    # 8 tanh(t / 8), by the logistic function, which is faster.
    return torch.rsub(torch.sigmoid(t / 4.0), -8.0, alpha=-16.0)


def unbounded_log_scale(t: Tensor) -> Tensor:
    """The inverse of :func:`bounded_log_scale`, for logs out of range too."""
    return 8.0 * torch.atanh((t / 8.0).clamp(-0.999, 0.999))


def require_gaussian(q, who: str) -> None:
    """Raise ValueError unless q is one Gaussian per row."""
    if not hasattr(q, "moved"):
        raise ValueError(
            f"{who} needs a posterior that is a single Gaussian. Got "
            f"{type(q).__name__}; use posterior_type='marginal'."
        )


class _StandardNormalKL(torch.autograd.Function):
    """KL(N(loc, exp(log_scale)^2) || N(0, 1)) of every coordinate."""

    @staticmethod
    def forward(ctx, loc, log_scale):
        excess = torch.expm1(2.0 * log_scale)
        ctx.save_for_backward(loc, log_scale, excess)
        return torch.sub(0.5 * torch.addcmul(excess, loc, loc), log_scale)

    @staticmethod
    def backward(ctx, gradient):
        loc, log_scale, excess = ctx.saved_tensors
        if torch.is_grad_enabled():
            excess = torch.expm1(2.0 * log_scale)
        by_log_scale = gradient * excess
        by_loc = (gradient * loc).sum_to_size(loc.shape)
        return by_loc, by_log_scale.sum_to_size(log_scale.shape)


def _marginal_kl(q, other: DiagonalGaussian | None) -> Tensor:
    """KL of every coordinate's marginal; `other` None is the standard normal."""
    if other is None:
        return _StandardNormalKL.apply(q.loc, q.log_scale)
    precision = exp(-2.0 * other.log_scale)
    second_moment = exp(2.0 * q.log_scale) + (q.loc - other.loc).square()
    return 0.5 * (second_moment * precision - 1.0) + other.log_scale - q.log_scale


def _pairwise_marginal_log_prob(q, z: Tensor) -> Tensor:
    log_scale = q.log_scale.unsqueeze(1)
    standardised = (z.unsqueeze(2) - q.loc.unsqueeze(1)) * exp(-log_scale)
    return -0.5 * (standardised.square() + LOG_TWO_PI) - log_scale


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

    @property
    def covariance(self) -> Tensor:
        """Shape ``(..., d, d)``."""
        return torch.diag_embed(exp(2.0 * self.log_scale))

    @property
    def precision(self) -> Tensor:
        """Inverse of the covariance, shape ``(..., d, d)``."""
        return torch.diag_embed(exp(-2.0 * self.log_scale))

    def sample(self, noise: Tensor) -> Tensor:
        """Reparameterised draw for standard normal `noise` of shape ``(..., d)``."""
        return self.loc + self.scale * noise

    def sample_shared(self, noise: Tensor) -> Tensor:
        """Draws ``(R, S, B, d)`` of R x B Gaussians from the same noise ``(S, d)``."""
        return self.loc.unsqueeze(1) + self.scale.unsqueeze(1) * noise[:, None, :]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of `z`, summed over the latent axis, shape ``(...)``."""
        standardised = (z - self.loc) * exp(-self.log_scale)
        terms = standardised.square() + LOG_TWO_PI
        return -0.5 * terms.sum(-1) - self.log_scale.expand_as(terms).sum(-1)

    def log_volume(self) -> Tensor:
        """Half the log-determinant of the covariance, shape ``(...)``."""
        return self.log_scale.sum(-1)

    def kl_per_dimension(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(self || other) of every coordinate; None is the standard normal."""
        return _marginal_kl(self, other)

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(self || other) summed over the latent axis, shape ``(...)``."""
        return _marginal_kl(self, other).sum(-1)

    def moved(self, shift: Tensor, log_stretch: Tensor) -> DiagonalGaussian:
        """The law of ``sample(shift + exp(log_stretch) * noise)``, ``(..., d)``.

        Shift and stretch are in units of this Gaussian: (0, 0) leaves it as it is.
        """
        loc = self.loc + self.scale * shift
        return DiagonalGaussian(loc, self.log_scale + log_stretch)

    def on_rows(self, change: Callable[[Tensor], Tensor]) -> DiagonalGaussian:
        """With both fields changed along the axes before their last."""
        return DiagonalGaussian(*map(change, self))

    def pairwise_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each code under each Gaussian: ``(R, n, m)`` for m of them."""
        return self.pairwise_marginal_log_prob(z).sum(-1)

    def pairwise_marginal_log_prob(self, z: Tensor) -> Tensor:
        """The same for every coordinate alone, shape ``(R, n, m, d)``."""
        return _pairwise_marginal_log_prob(self, z)

    def product(self, other: DiagonalGaussian) -> DiagonalGaussian:
        """Normalised product of the two densities, again a diagonal Gaussian."""
        precision = exp(-2.0 * self.log_scale)
        other_precision = exp(-2.0 * other.log_scale)
        total = precision + other_precision
        loc = (precision * self.loc + other_precision * other.loc) / total
        return DiagonalGaussian(loc, -0.5 * log(total))


class CorrelatedGaussian:
    """A Gaussian with full covariance, given by its precision.

    A diagonal posterior biases the decoder towards orthogonal columns in its Jacobian
    however small the noise, because the bound is tight only there (Reizinger et al.
    2022, arXiv:2206.02416). Full covariances remove that bias.

    Parameters
    ----------
    loc : Tensor of shape (..., d)
        Mean.
    factor : Tensor of shape (..., d, d)
        Lower triangular C with positive diagonal, precision = C C^T.
    """

    def __init__(self, loc: Tensor, factor: Tensor):
        self.loc, self.factor = loc, factor

    @cached_property
    def inverse(self) -> Tensor:
        """The inverse of `factor`, shape ``(..., d, d)``."""
        n = self.loc.shape[-1]
        eye = torch.eye(n, dtype=self.loc.dtype, device=self.loc.device)
        return torch.linalg.solve_triangular(
            self.factor, eye.expand_as(self.factor), upper=False
        )

    @property
    def covariance(self) -> Tensor:
        """Shape ``(..., d, d)``."""
        return self.inverse.mT @ self.inverse

    @property
    def precision(self) -> Tensor:
        """Inverse of the covariance, shape ``(..., d, d)``."""
        return self.factor @ self.factor.mT

    @property
    def scale(self) -> Tensor:
        """Marginal standard deviations, shape ``(..., d)``."""
        return self.inverse.square().sum(-2).sqrt()

    @property
    def log_scale(self) -> Tensor:
        """Logs of the marginal standard deviations, shape ``(..., d)``."""
        return 0.5 * log(self.inverse.square().sum(-2))

    def sample(self, noise: Tensor) -> Tensor:
        """Reparameterised draw for standard normal `noise` of shape ``(..., d)``."""
        return self.loc + (noise.unsqueeze(-2) @ self.inverse).squeeze(-2)

    def sample_shared(self, noise: Tensor) -> Tensor:
        """Draws ``(R, S, B, d)`` of R x B Gaussians from the same noise ``(S, d)``."""
        moved = torch.einsum("sk,rbkd->rsbd", noise, self.inverse)
        return self.loc.unsqueeze(1) + moved

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of `z`, shape ``(...)``."""
        standardised = ((z - self.loc).unsqueeze(-2) @ self.factor).squeeze(-2)
        terms = standardised.square() + LOG_TWO_PI
        return -0.5 * terms.sum(-1) - self.log_volume()

    def log_volume(self) -> Tensor:
        """Half the log-determinant of the covariance, shape ``(...)``."""
        return -log(torch.diagonal(self.factor, dim1=-2, dim2=-1)).sum(-1)

    def kl_per_dimension(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL of every coordinate's marginal; their sum is less than the KL."""
        return _marginal_kl(self, other)

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(self || other), shape ``(...)``; None is the standard normal."""
        total_correlation = self.log_scale.sum(-1) - self.log_volume()
        return _marginal_kl(self, other).sum(-1) + total_correlation

    def moved(self, shift: Tensor, log_stretch: Tensor) -> CorrelatedGaussian:
        """The law of ``sample(shift + exp(log_stretch) * noise)``, ``(..., d)``."""
        factor = self.factor * exp(-log_stretch).unsqueeze(-2)
        return CorrelatedGaussian(self.sample(shift), factor)

    def on_rows(self, change: Callable[[Tensor], Tensor]) -> CorrelatedGaussian:
        """With both fields changed along the axes of ``(...)``."""
        return CorrelatedGaussian(change(self.loc), change(self.factor))

    def pairwise_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each code under each Gaussian: ``(R, n, m)`` for m of them."""
        standardised = torch.einsum(
            "rnmd,rmde->rnme", z.unsqueeze(2) - self.loc.unsqueeze(1), self.factor
        )
        terms = standardised.square() + LOG_TWO_PI
        return -0.5 * terms.sum(-1) - self.log_volume().unsqueeze(1)

    def pairwise_marginal_log_prob(self, z: Tensor) -> Tensor:
        """The same for every coordinate alone, shape ``(R, n, m, d)``."""
        return _pairwise_marginal_log_prob(self, z)

    def product(self, other: DiagonalGaussian) -> CorrelatedGaussian:
        """Normalised product with a diagonal Gaussian."""
        precision = self.precision
        other_precision = exp(-2.0 * other.log_scale)
        weighted = (precision @ self.loc.unsqueeze(-1)).squeeze(-1)
        weighted = (weighted + other_precision * other.loc).unsqueeze(-1)
        # A failed factorisation becomes NaN, which training knows how to undo.
        factor, failed = torch.linalg.cholesky_ex(
            precision + torch.diag_embed(other_precision)
        )
        factor = torch.where(failed[..., None, None] > 0, torch.nan, factor)
        loc = torch.cholesky_solve(weighted, factor).squeeze(-1)
        return CorrelatedGaussian(loc, factor)
