"""Priors p(z) and p(z | u).

Each is a specification and, built, a module for R replicas. Codes z and draws carry
shapes ``(R, B, d)``, auxiliary variables ``(R or 1, B, m)`` (one-hot where discrete);
every value is in nats and per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Generator, Tensor, nn

from skvae._gaussian import (
    LOG_TWO_PI,
    DiagonalGaussian,
    bounded_log_scale,
    unbounded_log_scale,
)
from skvae._products import products
from skvae._spec import Specification
from skvae._validation import Interval, StrOptions
from skvae.networks._layers import ACTIVATIONS, Linear, normal_weights, zeros

# Singular values below this fraction of the largest count as zero.
RANK_TOLERANCE = 1e-3


def _spectrum(rows: Tensor) -> tuple[int, float]:
    """Rank and condition number of ``(C, k)`` rows, columns centred and scaled."""
    centred = rows.double() - rows.double().mean(0)
    norms = torch.linalg.vector_norm(centred, dim=0)
    scaled = centred / torch.where(norms > 0, norms, torch.ones_like(norms))
    values = torch.linalg.svdvals(scaled)
    if len(values) < rows.shape[1] or not values[0] > 0:
        values = torch.cat([values, values.new_zeros(1)])
    rank = int((values > RANK_TOLERANCE * values[0]).sum()) if values[0] > 0 else 0
    smallest = float(values[-1])
    return rank, float(values[0]) / smallest if smallest > 0 else float("inf")


class StandardNormal(Specification):
    """The prior N(0, I)."""

    needs_u = False

    family = "prior"

    def build(self, n_latents, n_auxiliary, discrete, generators):
        """Make the module."""
        return StandardNormalPrior(n_latents)


class StandardNormalPrior(nn.Module):
    """p(z) = N(0, I)."""

    replayable = True

    needs_u = False
    factorial = True

    def __init__(self, n_latents: int):
        super().__init__()
        self.n_latents = n_latents

    def kl_per_dimension(self, q: DiagonalGaussian, z: Tensor, u=None) -> Tensor:
        return q.kl_per_dimension()

    def kl(self, q: DiagonalGaussian, z: Tensor, u=None) -> Tensor:
        return q.kl()

    def log_prob(self, z: Tensor, u=None) -> Tensor:
        return DiagonalGaussian(torch.zeros_like(z), torch.zeros_like(z)).log_prob(z)

    def assumptions(self) -> dict:
        """What an identifiability theorem would need of this prior."""
        why = "p(z) = N(0, I) looks the same after any rotation"
        return {
            "theorem": None,
            "up_to": None,
            "needs_piecewise_affine": False,
            "assumptions": {"informative prior": (False, why)},
        }

    def sample(self, n: int, u, generator: Generator) -> Tensor:
        return torch.randn(1, n, self.n_latents, generator=generator)


def _component_log_prob(components: DiagonalGaussian, z: Tensor) -> Tensor:
    """Log N(z; component c), shape ``(R, B, C)``; components ``(R, C, d)``."""
    precision = torch.exp(-2.0 * components.log_scale)
    weighted = components.loc * precision
    quadratic = products(z.square(), precision.transpose(1, 2)) - 2.0 * products(
        z, weighted.transpose(1, 2)
    )
    constant = (
        (components.loc * weighted).sum(-1)
        + 2.0 * components.log_scale.sum(-1)
        + z.shape[-1] * LOG_TWO_PI
    )
    return -0.5 * (quadratic + constant.unsqueeze(1))


def _mixture_log_prob(components: DiagonalGaussian, log_weights, z: Tensor) -> Tensor:
    """Log sum_c w_c N(z; component c), shape ``(R, B)``; components ``(R, C, d)``."""
    log_density = _component_log_prob(components, z)
    return torch.logsumexp(log_density + log_weights.unsqueeze(1), dim=-1)


def _mixture_kl_per_dimension(
    q: DiagonalGaussian, components: DiagonalGaussian, log_weights, z: Tensor
) -> Tensor:
    """One-draw estimate of KL(q_d || mixture marginal d), shape ``(R, B, d)``."""
    total = []
    for d in range(z.shape[-1]):
        one = slice(d, d + 1)
        marginal = DiagonalGaussian(
            components.loc[..., one], components.log_scale[..., one]
        )
        own = DiagonalGaussian(q.loc[..., one], q.log_scale[..., one])
        log_p = _mixture_log_prob(marginal, log_weights, z[..., one])
        total.append(own.log_prob(z[..., one]) - log_p)
    return torch.stack(total, dim=-1)


GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def _cluster_centres(codes: Tensor, weight: Tensor, n: int, rounds=30) -> Tensor:
    """Centres ``(n, d)`` of weighted k-means, started as k-means++.

    The uniform draws of k-means++ are a fixed low-discrepancy sequence: what follows
    depends on the codes alone, and on a row of weight two as on two rows.
    """
    chosen = []
    distance = torch.ones_like(weight)
    for number in range(n):
        cumulative = torch.cumsum(weight * distance, 0)
        level = ((number + 0.5) * GOLDEN) % 1.0 * cumulative[-1]
        row = torch.searchsorted(cumulative, level.reshape(1)).clamp_max(len(codes) - 1)
        chosen.append(codes[row])
        new = (codes - codes[row]).square().sum(-1)
        distance = new if number == 0 else torch.minimum(distance, new)
    centres = torch.cat(chosen)
    for _ in range(rounds):
        nearest = torch.cdist(codes, centres).argmin(1)
        share = nn.functional.one_hot(nearest, n).to(codes) * weight.unsqueeze(-1)
        total = share.sum(0).unsqueeze(-1)
        centres = torch.where(total > 0, share.mT @ codes / total, centres)
    return centres


def _moments(components: DiagonalGaussian, log_weights: Tensor) -> DiagonalGaussian:
    """The Gaussian with a mixture's mean and variances, shape ``(R, 1, d)``."""
    weights = torch.exp(log_weights).unsqueeze(-1)
    mean = (weights * components.loc).sum(1, keepdim=True)
    second = weights * (components.scale.square() + components.loc.square())
    variance = (second.sum(1, keepdim=True) - mean.square()).clamp_min(1e-8)
    return DiagonalGaussian(mean, 0.5 * torch.log(variance))


class ConditionalGaussian(Specification):
    """The iVAE prior: N(m(u), s(u)^2), coordinates independent given u.

    Parameters
    ----------
    mean : {"learned", "zero"}, default="learned"
        Whether the mean depends on u.
    variance : {"learned", "unit"}, default="learned"
        Whether the variance depends on u. A mean that depends on u alone does not
        identify the latents beyond a linear map.
    width : int, default=50
        Hidden units of the network that reads a continuous u. A discrete u has one
        mean and variance per category.

    Notes
    -----
    An exponential family with sufficient statistics (z, z^2) when both are learned,
    z^2 when only the variance is (Khemakhem et al. 2020, arXiv:1907.04809, eq. 7).
    """

    needs_u = True

    family = "prior"
    _parameter_constraints: dict = {
        "mean": [StrOptions({"learned", "zero"})],
        "variance": [StrOptions({"learned", "unit"})],
        "width": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, mean="learned", variance="learned", width=50):
        self.mean = mean
        self.variance = variance
        self.width = width

    def build(self, n_latents, n_auxiliary, discrete, generators):
        """Make the module for R replicas; ValueError for an unknown choice."""
        allowed = {"mean": ("learned", "zero"), "variance": ("learned", "unit")}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"The {name!r} parameter of ConditionalGaussian must be one of "
                    f"{choices}. Got {getattr(self, name)!r} instead."
                )
        width = None if discrete else self.width
        return ConditionalGaussianPrior(
            n_latents,
            n_auxiliary,
            generators,
            width,
            self.mean == "learned",
            self.variance == "learned",
        )


class ConditionalGaussianPrior(nn.Module):
    """p(z|u); without u, the mixture of p(z|u) over the training u.

    The mixture is kept as `grid` ``(1, C, m)``, values of u, with log frequencies.
    """

    replayable = True

    needs_u = True
    factorial = True

    def __init__(
        self, n_latents, n_auxiliary, generators, width, learn_mean, learn_variance
    ):
        super().__init__()
        self.n_latents = n_latents
        n_in = n_auxiliary if width is None else width
        self.hidden = None if width is None else Linear(n_auxiliary, width, generators)
        self.learn_mean, self.learn_variance = learn_mean, learn_variance
        self.mean = Linear(n_in, n_latents, generators, gain=0.1)
        # Variances start apart: equal ones are a saddle where u says nothing.
        self.log_scale = Linear(n_in, n_latents, generators, gain=1.0)
        self.n_auxiliary = n_auxiliary
        # Whether each u has variances of its own, whatever the others have.
        self.tabular = width is None and learn_variance

    def table(self) -> DiagonalGaussian:
        """p(z|u) of every category, ``(R, C, d)``."""
        like = self.mean.weight
        return self.given(torch.eye(self.n_auxiliary).to(like).unsqueeze(0))

    @torch.no_grad()
    def tabulate(self, mean: Tensor, variance: Tensor) -> None:
        """Set mean and variance ``(R, C, d)`` of every category."""
        raw = unbounded_log_scale(0.5 * torch.log(variance))
        for layer, value in ((self.mean, mean), (self.log_scale, raw)):
            layer.weight.copy_(value.to(layer.weight) - layer.bias)

    def set_mixture(self, grid: Tensor, log_weights: Tensor) -> None:
        """Keep the training u, ``(C, m)``, for answers without u."""
        self.register_buffer("grid", grid.unsqueeze(0))
        self.register_buffer("grid_log_weights", log_weights.unsqueeze(0))

    def given(self, u: Tensor) -> DiagonalGaussian:
        """p(z|u), of shape ``(R, B, d)``."""
        h = u if self.hidden is None else ACTIVATIONS["tanh"](self.hidden(u))
        zero = torch.zeros((), dtype=u.dtype, device=u.device)
        shape = (self.mean.weight.shape[0], u.shape[1], self.n_latents)
        mean = self.mean(h) if self.learn_mean else zero.expand(shape)
        log_scale = (
            bounded_log_scale(self.log_scale(h))
            if self.learn_variance
            else zero.expand(shape)
        )
        return DiagonalGaussian(mean, log_scale)

    def marginal(self) -> DiagonalGaussian:
        """The Gaussian with the mean and variances of p(z) over the training u."""
        return _moments(self.given(self.grid), self.grid_log_weights)

    @torch.no_grad()
    def assumptions(self) -> dict:
        """What Theorems 1 to 3 of Khemakhem et al. 2020 need of this prior.

        The L-matrix holds the natural parameters of each training u, here minus
        their mean and with columns of unit length.
        """
        prior = self.given(self.grid)
        precision = torch.exp(-2.0 * prior.log_scale[0])
        parts = []
        if self.learn_mean:
            parts.append(prior.loc[0] * precision)
        if self.learn_variance:
            parts.append(-0.5 * precision)
        needed = len(parts) * self.n_latents
        rank, condition = _spectrum(torch.cat(parts, dim=1)) if parts else (0, math.inf)
        n_values = self.grid.shape[1]
        return {
            "theorem": "Khemakhem et al. 2020, Theorems 1 to 3",
            "up_to": "order, sign, scale and componentwise transformation",
            "needs_piecewise_affine": False,
            "l_matrix_rank": rank,
            "l_matrix_full_rank": needed,
            "l_matrix_condition": condition,
            "assumptions": {
                "enough values of u": (
                    needed > 0 and n_values >= needed + 1,
                    f"{n_values} distinct values, {needed + 1} needed",
                ),
                "L-matrix of full rank": (
                    needed > 0 and rank == needed,
                    f"rank {rank} of {needed}, condition number {condition:.3g}",
                ),
                "variance depends on u": (
                    self.learn_variance,
                    "a prior whose mean alone depends on u leaves a linear map free",
                ),
            },
        }

    def kl_per_dimension(self, q: DiagonalGaussian, z: Tensor, u=None) -> Tensor:
        if u is None:
            return _mixture_kl_per_dimension(
                q, self.given(self.grid), self.grid_log_weights, z
            )
        return q.kl_per_dimension(self.given(u))

    def kl(self, q: DiagonalGaussian, z: Tensor, u=None) -> Tensor:
        if u is None:
            return q.log_prob(z) - self.log_prob(z)
        return q.kl(self.given(u))

    def log_prob(self, z: Tensor, u=None) -> Tensor:
        if u is None:
            components = self.given(self.grid)
            return _mixture_log_prob(components, self.grid_log_weights, z)
        return self.given(u).log_prob(z)

    def sample(self, n: int, u, generator: Generator) -> Tensor:
        if u is None:
            chosen = torch.multinomial(
                torch.exp(self.grid_log_weights[0]).cpu().float(),
                n,
                replacement=True,
                generator=generator,
            )
            u = self.grid[:, chosen]
        prior = self.given(u)
        return prior.sample(torch.randn(prior.loc.shape, generator=generator))


class GaussianMixture(Specification):
    """A learned mixture of diagonal Gaussians, for when no u is at hand.

    Parameters
    ----------
    n_mixtures : int, default=10
        Number of mixture components.
    weights : {"learned", "uniform"}, default="learned"
        Whether the weights of the components are learned or all equal.
    start : {"random", "kmeans"}, default="random"
        Where the means begin: standard normal, or at the centres of clusters of the
        untrained encoder's codes. Far from all codes a component gets no gradient.

    References
    ----------
    Kivva et al., "Identifiability of deep generative models without auxiliary
    information", NeurIPS 2022, arXiv:2206.10044.
    """

    needs_u = False

    family = "prior"
    _parameter_constraints: dict = {
        "n_mixtures": [Interval(Integral, 1, None, closed="left")],
        "weights": [StrOptions({"learned", "uniform"})],
        "start": [StrOptions({"random", "kmeans"})],
    }

    def __init__(self, n_mixtures=10, weights="learned", start="random"):
        self.n_mixtures = n_mixtures
        self.weights = weights
        self.start = start

    def build(self, n_latents, n_auxiliary, discrete, generators):
        """Make the module for R replicas."""
        return GaussianMixturePrior(
            n_latents,
            self.n_mixtures,
            generators,
            self.weights == "learned",
            self.start == "kmeans",
        )


class GaussianMixturePrior(nn.Module):
    """p(z) = sum_c w_c N(z; m_c, s_c^2)."""

    replayable = True

    needs_u = False
    factorial = False

    def __init__(
        self,
        n_latents: int,
        n_mixtures: int,
        generators: Sequence[Generator],
        learn_weights: bool = True,
        from_codes: bool = False,
    ):
        super().__init__()
        self.n_latents = n_latents
        self.from_codes = from_codes
        self.loc = normal_weights(generators, n_mixtures, n_latents, std=1.0)
        self.raw_log_scale = zeros(generators, n_mixtures, n_latents)
        self.logits = zeros(generators, n_mixtures) if learn_weights else None

    @torch.no_grad()
    def place(self, codes: Tensor, weight: Tensor) -> None:
        """Start the means at cluster centres of weighted codes ``(R, n, d)``."""
        for loc, own in zip(self.loc, codes, strict=True):
            loc.copy_(_cluster_centres(own.double(), weight.double(), len(loc)))

    def components(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.loc, bounded_log_scale(self.raw_log_scale))

    @torch.no_grad()
    def assumptions(self) -> dict:
        """What Kivva et al. 2022 need of this prior, for affine identifiability."""
        used = torch.exp(self.log_weights()[0]) > 1.0 / (10.0 * self.loc.shape[1])
        n_used = int(used.sum())
        rank, condition = _spectrum(self.loc[0][used]) if n_used > 1 else (0, math.inf)
        return {
            "theorem": "Kivva et al. 2022, affine identifiability",
            "up_to": "an affine map of z",
            "needs_piecewise_affine": True,
            "n_mixtures_used": n_used,
            "means_rank": rank,
            "means_condition": condition,
            "assumptions": {
                "two or more mixture components": (
                    n_used >= 2,
                    f"{n_used} of {len(used)} carry weight",
                ),
                "component means of full rank": (
                    rank == self.n_latents,
                    f"rank {rank} of {self.n_latents}: {self.n_latents + 1} or more "
                    "components are needed for the means to span the latent space",
                ),
            },
        }

    def log_weights(self) -> Tensor:
        """Log pi, shape ``(R or 1, C)``."""
        if self.logits is None:
            n_mixtures = self.loc.shape[1]
            return self.loc.new_full((1, n_mixtures), -math.log(n_mixtures))
        return torch.log_softmax(self.logits, dim=-1)

    def kl_per_dimension(self, q, z: Tensor, u=None) -> Tensor:
        components, log_weights = self.components(), self.log_weights()
        if hasattr(q, "kl_per_dimension_to_mixture"):
            return q.kl_per_dimension_to_mixture(components, log_weights)
        return _mixture_kl_per_dimension(q, components, log_weights, z)

    def kl(self, q, z: Tensor, u=None) -> Tensor:
        """KL of q to the mixture: of (y, z) in closed form where q knows y."""
        if hasattr(q, "kl_to_mixture"):
            return q.kl_to_mixture(self.components(), self.log_weights())
        return q.log_prob(z) - self.log_prob(z)

    def log_prob(self, z: Tensor, u=None) -> Tensor:
        return _mixture_log_prob(self.components(), self.log_weights(), z)

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(y|z) by Bayes' rule, shape ``(R, B, C)``."""
        log_joint = _component_log_prob(self.components(), z)
        return torch.softmax(log_joint + self.log_weights().unsqueeze(1), dim=-1)

    def sample(self, n: int, u, generator: Generator) -> Tensor:
        """Draws ``(1, n, d)`` of all components, or of component number `u`."""
        if u is not None:
            chosen = u.expand(n)
        else:
            weights = torch.exp(self.log_weights()[0]).cpu().float()
            chosen = torch.multinomial(weights, n, True, generator=generator)
        components = self.components()
        picked = DiagonalGaussian(
            components.loc[:, chosen], components.log_scale[:, chosen]
        )
        return picked.sample(torch.randn(picked.loc.shape, generator=generator))


PRIORS = {
    "standard_normal": StandardNormal,
    "conditional_gaussian": ConditionalGaussian,
    "gaussian_mixture": GaussianMixture,
}

__all__ = ["ConditionalGaussian", "GaussianMixture", "StandardNormal"]
