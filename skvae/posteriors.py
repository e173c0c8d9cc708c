"""Posterior families: what the encoder reads, and what its answer means.

The encoder's raw output ``(R, B, n_outputs)`` becomes a Gaussian ``(R, B, d)``, which
may then meet the prior; u has shape ``(R or 1, B, m)``.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._gaussian import (
    LOG_TWO_PI,
    CorrelatedGaussian,
    DiagonalGaussian,
    bounded_log_scale,
    unbounded_log_scale,
)
from skvae._spec import Specification
from skvae._validation import Interval


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


def _written_diagonal(loc: Tensor, precision: Tensor) -> Tensor:
    log_scale = -0.5 * torch.log(torch.diagonal(precision, dim1=-2, dim2=-1))
    return torch.cat([loc, unbounded_log_scale(log_scale)], dim=-1)


def _written_full(loc: Tensor, precision: Tensor) -> Tensor:
    factor, _ = torch.linalg.cholesky_ex(precision)
    scale = torch.diagonal(factor, dim1=-2, dim2=-1)
    n = loc.shape[-1]
    rows, columns = torch.tril_indices(n, n, -1, device=loc.device)
    below = (factor / scale.unsqueeze(-1))[..., rows, columns]
    log_scale = unbounded_log_scale(-torch.log(scale))
    return torch.cat([loc, log_scale, below], dim=-1)


class Form(NamedTuple):
    """How raw output and Gaussian are made of each other."""

    n_outputs: Callable[[int], int]
    read: Callable[[Tensor, int], DiagonalGaussian | CorrelatedGaussian]
    write: Callable[[Tensor, Tensor], Tensor]


COVARIANCE = {
    "diagonal": Form(lambda d: 2 * d, _diagonal, _written_diagonal),
    "full": Form(lambda d: 2 * d + d * (d - 1) // 2, _full, _written_full),
}


# Numbers in the covariances of a posterior's parts that are held at a time.
PARTS_ELEMENTS = 1 << 22


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
        return COVARIANCE[self.covariance].n_outputs(n_latents)

    def read(self, raw: Tensor, n_latents: int) -> DiagonalGaussian:
        return COVARIANCE[self.covariance].read(raw, n_latents)

    def write(self, loc: Tensor, precision: Tensor) -> Tensor:
        """Raw output that is read as the Gaussian ``(..., d)`` and ``(..., d, d)``.

        A diagonal covariance keeps the diagonal of the precision.
        """
        return COVARIANCE[self.covariance].write(loc, precision)

    def inputs(self, features: Tensor, u: Tensor | None) -> Tensor:
        return features

    def combine(self, encoded: DiagonalGaussian, prior, u) -> DiagonalGaussian:
        return encoded

    def expected_log_likelihood(self, model, x: Tensor, q, z: Tensor) -> Tensor:
        """Estimate of E_q log p(x|z) from a draw z of q, shape ``(R, B)``."""
        return model.likelihood.log_prob(x, model.decode(z, x))

    def importance_log_weights(self, model, x: Tensor, u, q, noise: Tensor) -> Tensor:
        """Log p(x,z|u)/q(z|x,u) for noise ``(S, d)`` shared by rows: ``(R, S, B)``."""
        n_draws = noise.shape[0]
        z = q.sample_shared(noise)
        # log q(z|x) needs the noise and the volume alone.
        log_q = -0.5 * (noise.square() + LOG_TWO_PI).sum(-1)[:, None]
        log_q = log_q - q.log_volume().unsqueeze(1)
        u = None if u is None else u.repeat(1, n_draws, 1)
        joint = model.log_joint(x.repeat(1, n_draws, 1), z.flatten(1, 2), u)
        return joint.view(z.shape[:-1]) - log_q

    def memberships(self, prior, q, noise: Tensor) -> Tensor:
        """E_q p(y|z) for a mixture prior, from draws ``(S, d)``, ``(R, B, C)``."""
        z = q.sample_shared(noise)
        given_z = prior.responsibilities(z.flatten(1, 2))
        return given_z.unflatten(1, z.shape[1:3]).mean(1)


def _stratified(parts, shares: Tensor, noise: Tensor) -> Tensor:
    """Draws of mixtures of C Gaussians ``(R, B, C, d)``, ``(R, B, S, d)``.

    Each part gets its share ``(R, B, C)`` of the noise ``(S, d)``, to within one draw,
    from a random start: far digits of a normal draw are uniform whatever it is.
    """
    start = (1e3 * noise[0, 0]).frac().abs()
    places = (torch.arange(len(noise)).to(noise) + start) / len(noise)
    places = places.expand(*shares.shape[:-1], -1).contiguous()
    chosen = torch.searchsorted(shares.cumsum(-1), places)
    chosen.clamp_(max=shares.shape[-1] - 1)
    replicas = torch.arange(chosen.shape[0], device=noise.device).view(-1, 1, 1)
    rows = torch.arange(chosen.shape[1], device=noise.device).unsqueeze(-1)
    return parts.on_rows(lambda t: t[replicas, rows, chosen]).sample(noise)


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

    def importance_log_weights(self, model, x: Tensor, u, q, noise: Tensor) -> Tensor:
        """Log p(x,z|u)/q(z|x,u) for noise ``(S, d)``, or of p(x,z)/q: ``(R, S, B)``.

        Without u the proposal is not `q` but the mixture over the training u,

            q(z|x) = sum_u w_u e(z|x) p(z|u) / C(x) = e(z|x) p(z) / C(x),

        e being the encoder's Gaussian: the weight is C(x) p(x|z) / e(z|x).
        """
        if u is not None:
            return super().importance_log_weights(model, x, u, q, noise)
        grid = model.prior.grid
        n_rows = max(1, PARTS_ELEMENTS // (grid.shape[1] * noise.shape[1] ** 2))
        if x.shape[1] > n_rows:
            pieces = (
                self.importance_log_weights(model, rows, None, q, noise)
                for rows in x.split(n_rows, dim=1)
            )
            return torch.cat([*pieces], dim=-1)
        encoded = model.encoded(x).on_rows(lambda t: t.unsqueeze(2))
        prior = model.prior.given(grid).on_rows(lambda t: t.unsqueeze(1))
        parts = encoded.product(prior)
        # A product of two Gaussians is a third one times the integral of the product.
        integral = sum(f.log_prob(parts.loc) for f in (encoded, prior))
        integral = integral - parts.log_prob(parts.loc)
        log_shares = integral + model.prior.grid_log_weights.unsqueeze(1)
        log_total = torch.logsumexp(log_shares, dim=-1, keepdim=True)
        z = _stratified(parts, torch.exp(log_shares - log_total), noise)
        log_encoded = encoded.log_prob(z).transpose(1, 2)
        z = z.transpose(1, 2).flatten(1, 2)
        repeated = x.repeat(1, len(noise), 1)
        log_likelihood = model.likelihood.log_prob(repeated, model.decode(z, repeated))
        return log_total.mT + log_likelihood.view(log_encoded.shape) - log_encoded


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
                "Use posterior_type='product' for latents that do without u, as "
                "objective='covariate_informed' trains them."
            )
        shape = (*torch.broadcast_shapes(features.shape[:-1], u.shape[:-1]), -1)
        return torch.cat([features.expand(shape), u.expand(shape)], dim=-1)


class CategoricalGaussian:
    """A law of category y and code z: q(y) N(z; loc_y, scale_y^2), y in 1..C.

    Its draws hold one code per category, side by side as rows, so that sums over y
    are exact and only z is drawn.

    Parameters
    ----------
    log_weights : Tensor of shape (R, B, C)
        Log q(y).
    parts : DiagonalGaussian of shape (R, B, C, d)
        q(z|y).
    """

    def __init__(self, log_weights: Tensor, parts: DiagonalGaussian):
        self.log_weights, self.parts = log_weights, parts

    @property
    def weights(self) -> Tensor:
        """q(y), shape ``(R, B, C)``."""
        return torch.exp(self.log_weights)

    @property
    def loc(self) -> Tensor:
        """Mean of z, shape ``(R, B, d)``."""
        return (self.weights.unsqueeze(-1) * self.parts.loc).sum(-2)

    @property
    def scale(self) -> Tensor:
        """Standard deviations of z, shape ``(R, B, d)``."""
        spread = (self.parts.loc - self.loc.unsqueeze(-2)).square()
        variance = self.parts.scale.square() + spread
        return (self.weights.unsqueeze(-1) * variance).sum(-2).sqrt()

    def sample(self, noise: Tensor) -> Tensor:
        """One code per category from `noise` ``(R, B, d)``, shape ``(R, B C, d)``."""
        return self.parts.sample(noise.unsqueeze(-2)).flatten(1, 2)

    def expectation(self, values: Tensor) -> Tensor:
        """Sum over y of q(y) times the values at the codes of a draw, ``(R, B)``."""
        return (self.weights * values.view(self.log_weights.shape)).sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of S draws z ``(R, S, B, d)`` of each row, y summed out."""
        loc, log_scale = (part.unsqueeze(1) for part in self.parts)
        log_parts = DiagonalGaussian(loc, log_scale).log_prob(z.unsqueeze(-2))
        return torch.logsumexp(log_parts + self.log_weights.unsqueeze(1), dim=-1)

    def kl_to_mixture(self, components: DiagonalGaussian, log_weights) -> Tensor:
        """KL of (y, z) to w_y N(z; component y), shape ``(R, B)``.

        `components` have shape ``(R, C, d)`` and `log_weights` ``(R or 1, C)``.
        """
        given = DiagonalGaussian(
            components.loc.unsqueeze(1), components.log_scale.unsqueeze(1)
        )
        within = self.parts.kl(given) + self.log_weights - log_weights.unsqueeze(1)
        return (self.weights * within).sum(-1)

    def kl_per_dimension_to_mixture(self, components, log_weights) -> Tensor:
        """KL given y of every coordinate, averaged over q(y), shape ``(R, B, d)``."""
        given = DiagonalGaussian(
            components.loc.unsqueeze(1), components.log_scale.unsqueeze(1)
        )
        return (self.weights.unsqueeze(-1) * self.parts.kl_per_dimension(given)).sum(-2)


class EnumeratedPosterior(EncoderPosterior):
    """Take q(y|x) q(z|x,y) for a mixture prior, with y summed out exactly.

    One network gives the logits of y and a mean and scale of z for each y.

    Parameters
    ----------
    n_mixtures : int, default=10
        Number of mixture components y.
    """

    _parameter_constraints: dict = {
        "n_mixtures": [Interval(Integral, 1, None, closed="left")]
    }

    write = None

    def __init__(self, n_mixtures=10):
        self.n_mixtures = n_mixtures

    def build(self):
        """A posterior has no parameters: it is its own module."""
        return self

    def n_outputs(self, n_latents: int) -> int:
        return self.n_mixtures * (1 + 2 * n_latents)

    def read(self, raw: Tensor, n_latents: int) -> CategoricalGaussian:
        n = self.n_mixtures
        logits, loc, log_scale = raw.split([n, n * n_latents, n * n_latents], dim=-1)
        parts = DiagonalGaussian(
            loc.unflatten(-1, (n, n_latents)),
            bounded_log_scale(log_scale).unflatten(-1, (n, n_latents)),
        )
        return CategoricalGaussian(torch.log_softmax(logits, dim=-1), parts)

    def expected_log_likelihood(self, model, x: Tensor, q, z: Tensor) -> Tensor:
        """Sum over y of q(y|x) log p(x|z_y), shape ``(R, B)``."""
        repeated = x.repeat_interleave(self.n_mixtures, dim=1)
        out = model.decode(z, repeated)
        return q.expectation(model.likelihood.log_prob(repeated, out))

    def memberships(self, prior, q, noise: Tensor) -> Tensor:
        """q(y|x), shape ``(R, B, C)``."""
        return q.weights

    def importance_log_weights(self, model, x: Tensor, u, q, noise: Tensor) -> Tensor:
        """Log of sum_y q(y|x) p(x,z_y)/q(z_y|x) for noise ``(S, d)``, ``(R, S, B)``.

        The proposal is the mixture q(z|x), drawn once from each of its parts; a part
        that q(y|x) rules out weighs nothing, however badly it was learned.
        """
        repeated = x.repeat(1, noise.shape[0], 1)
        terms = []
        for y in range(self.n_mixtures):
            loc, log_scale = (part[:, :, y] for part in q.parts)
            z = DiagonalGaussian(loc, log_scale).sample_shared(noise)
            joint = model.log_joint(repeated, z.flatten(1, 2)).view(z.shape[:-1])
            log_share = q.log_weights[:, :, y].unsqueeze(1)
            terms.append(log_share + joint - q.log_prob(z))
        return torch.logsumexp(torch.stack(terms), dim=0)


POSTERIORS = {
    "encoder": EncoderPosterior,
    "product": ProductPosterior,
    "joint": JointPosterior,
    "enumerated": EnumeratedPosterior,
}

__all__ = [
    "EncoderPosterior",
    "EnumeratedPosterior",
    "JointPosterior",
    "ProductPosterior",
]
