"""Likelihoods p(x | out): what the decoder's output means.

Each is a specification and, built, a small module for R replicas. `out` has shape
``(R, B, n_outputs)`` and rows of `x` shape ``(R, B, p)``; `log_prob` is in nats,
summed over features, of shape ``(R, B)``. `features` is the encoder's view of x and
`start` the constant output that a model without latents would learn.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from skvae._gaussian import LOG_TWO_PI
from skvae._spec import Specification
from skvae._validation import Interval, StrOptions


class _LikelihoodModule(nn.Module):
    """What the built likelihoods share."""

    replayable = True

    scales_with_data = False

    def n_outputs(self, n_features: int) -> int:
        return n_features

    def features(self, x: Tensor) -> Tensor:
        return x

    def noise_variance(self) -> Tensor | None:
        """Noise variance in units of the output, shape ``(R, 1 or p)``, or None."""
        return None


class Gaussian(Specification):
    """Gaussian likelihood, for real features.

    Parameters
    ----------
    noise : {"shared", "per_feature"} or float, default="shared"
        "shared" learns one variance (as probabilistic PCA), "per_feature" one per
        column (as factor analysis); a number fixes the standard deviation, in the
        units of X.

    Notes
    -----
    log p(x|z) = -1/2 sum_j [(x_j - f_j(z))^2 / s_j^2 + log(2 pi s_j^2)]. Learning the
    noise is what keeps the KL term from being weighed arbitrarily against the
    reconstruction (Lucas et al. 2019, arXiv:1911.02469; Rybkin et al. 2021,
    arXiv:2006.13202).
    """

    domain = "real"

    family = "likelihood"
    _parameter_constraints: dict = {
        "noise": [
            StrOptions({"shared", "per_feature"}),
            Interval(Real, 0, None, closed="neither"),
        ]
    }

    def __init__(self, noise="shared"):
        self.noise = noise

    def build(self, n_features: int, n_replicas: int):
        """Make the module for R replicas; ValueError for an unknown `noise`."""
        sizes = {"shared": 1, "per_feature": n_features}
        if self.noise in sizes:
            return LearnedGaussian(n_replicas, sizes[self.noise])
        if isinstance(self.noise, str) or not self.noise > 0:
            raise ValueError(
                "The 'noise' parameter of Gaussian must be 'shared', 'per_feature' "
                f"or a positive standard deviation. Got {self.noise!r} instead."
            )
        return FixedGaussian(float(self.noise))


class _GaussianLogProb(torch.autograd.Function):
    """Row sums of the Gaussian log-density, with a short backward.

    Where the backward is differentiated in turn, it begins again from the inputs.
    """

    @staticmethod
    def forward(ctx, x, out, log_scale):
        n_features = out.shape[-1]
        # Standardised first: rows of 1e30 are numbers, their squares are not.
        standardised = (x - out).mul_(torch.exp(-log_scale))
        squares = standardised.square().sum(-1)
        ctx.save_for_backward(x, out, log_scale, standardised, squares)
        log_scales = log_scale.sum(-1) * (n_features / log_scale.shape[-1])
        return -0.5 * squares - (log_scales + 0.5 * n_features * LOG_TWO_PI)

    @staticmethod
    def backward(ctx, gradient):
        x, out, log_scale, standardised, squares = ctx.saved_tensors
        inverse = torch.exp(-log_scale)
        if torch.is_grad_enabled():
            standardised = (x - out) * inverse
            squares = standardised.square().sum(-1)
        by_out = standardised * (inverse * gradient.unsqueeze(-1))
        by_log_scale = None
        if ctx.needs_input_grad[2]:
            if log_scale.shape[-1] == 1:
                excess = ((squares - out.shape[-1]) * gradient).unsqueeze(-1)
            else:
                excess = (standardised.square() - 1.0) * gradient.unsqueeze(-1)
            by_log_scale = excess.sum_to_size(log_scale.shape)
        return None, by_out.sum_to_size(out.shape), by_log_scale


class _GaussianModule(_LikelihoodModule):
    scales_with_data = True

    def start(self, mean: Tensor) -> Tensor:
        return mean

    def information(self, mean: Tensor) -> Tensor:
        return torch.ones_like(mean)

    def mean(self, out: Tensor) -> Tensor:
        return out

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        return _GaussianLogProb.apply(x, out, self.log_scale())

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        return out + torch.exp(self.log_scale()) * noise.to(out.device)

    def noise_variance(self) -> Tensor:
        return torch.exp(2.0 * self.log_scale()).squeeze(1)


# Log of the first noise scale: below the data, so that codes pay from the start.
START = -1.5


class LearnedGaussian(_GaussianModule):
    """Noise as a parameter, in units of `unit`, the data's root mean variance."""

    # The parameter moves ten times as fast as a weight: the noise has to travel
    # further than they have.
    speed = 10.0

    def __init__(self, n_replicas: int, n_scales: int):
        super().__init__()
        self.steps = nn.Parameter(
            torch.full((n_replicas, 1, n_scales), START / self.speed)
        )
        self.register_buffer("unit", torch.ones(()))

    def set_unit(self, unit: Tensor) -> None:
        self.unit.copy_(unit)

    def log_scale(self) -> Tensor:
        # The bounds, e^-9 and e^3 units, are out of reach of sensible data.
        moved = nn.functional.hardtanh(self.speed * self.steps, -9.0, 3.0)
        return torch.log(self.unit) + moved


class FixedGaussian(_GaussianModule):
    """Noise as a constant, in the units of X."""

    def __init__(self, scale: float):
        super().__init__()
        self.register_buffer("constant", torch.full((1, 1, 1), math.log(scale)))

    def set_unit(self, unit: Tensor) -> None:
        pass

    def log_scale(self) -> Tensor:
        return self.constant


class _BernoulliLogProb(torch.autograd.Function):
    """Row sums of the Bernoulli log-probability, with a one-pass backward."""

    @staticmethod
    def forward(ctx, x, logits):
        ctx.save_for_backward(x, logits)
        return -binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        ).sum(-1)

    @staticmethod
    def backward(ctx, gradient):
        x, logits = ctx.saved_tensors
        return None, (x - torch.sigmoid(logits)) * gradient.unsqueeze(-1)


class Bernoulli(Specification):
    """Bernoulli likelihood, for binary features and for grey levels in [0, 1].

    Parameters
    ----------
    resample : bool, default=False
        Whether training reads X as probabilities and draws binary features from them
        anew in every step ("dynamic binarisation" of images): there is more to see,
        and less to learn by heart. What a fit tells of its rows (bounds, KL, active
        components) is of rows drawn once. Methods take X as it is: draw the features
        of the rows that are scored.

    Notes
    -----
    log p(x|z) = sum_j x_j log p_j + (1 - x_j) log(1 - p_j). For x strictly between 0
    and 1 this is the usual cross-entropy and not the log of a density: such values
    compare with each other, not with those of other likelihoods.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.likelihoods import Bernoulli
    >>> VAE(likelihood=Bernoulli(resample=True))
    VAE(likelihood=Bernoulli(resample=True))
    """

    domain = "unit interval"

    family = "likelihood"
    _parameter_constraints: dict = {"resample": ["boolean"]}

    def __init__(self, resample=False):
        self.resample = resample

    def build(self, n_features: int, n_replicas: int):
        """Make the module."""
        self._validate_params()
        return BernoulliModule(self.resample)


class BernoulliModule(_LikelihoodModule):
    """Outputs are logits. With `resample`, training draws x from what it is given."""

    def __init__(self, resample: bool = False):
        super().__init__()
        self.resample = resample

    def start(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=1e-3)

    def information(self, mean: Tensor) -> Tensor:
        return mean * (1.0 - mean)

    def mean(self, out: Tensor) -> Tensor:
        return torch.sigmoid(out)

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        return _BernoulliLogProb.apply(x, out)

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        uniform = torch.rand(out.shape, generator=generator, dtype=out.dtype)
        return (uniform.to(out.device) < torch.sigmoid(out)).to(out.dtype)


class _CountModule(_LikelihoodModule):
    """Outputs are log-rates; the encoder reads log(1 + x)."""

    def features(self, x: Tensor) -> Tensor:
        return torch.log1p(x)

    def start(self, mean: Tensor) -> Tensor:
        return torch.log(mean.clamp_min(1e-3))

    def mean(self, out: Tensor) -> Tensor:
        return torch.exp(self.log_rate(out))

    def log_rate(self, out: Tensor) -> Tensor:
        # exp overflows single precision near 88, and a rate of e^20 is no count.
        return out.clamp(-20.0, 20.0)


class Poisson(Specification):
    """Poisson likelihood, for counts whose variance is about their mean.

    Notes
    -----
    log p(x|z) = sum_j x_j log r_j - r_j - log x_j!, with rates r = exp(out).
    """

    domain = "count"

    family = "likelihood"

    def build(self, n_features: int, n_replicas: int):
        """Make the module."""
        return PoissonModule()


class PoissonModule(_CountModule):
    """Outputs are log-rates."""

    def information(self, mean: Tensor) -> Tensor:
        return mean

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        log_rate = self.log_rate(out)
        return (x * log_rate - torch.exp(log_rate) - torch.lgamma(x + 1.0)).sum(-1)

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        rate = self.mean(out)
        return torch.poisson(rate.cpu(), generator=generator).to(rate)


class NegativeBinomial(Specification):
    """Negative binomial likelihood, for counts more dispersed than Poisson's.

    Notes
    -----
    With mean r = exp(out) and a learned inverse dispersion a_j per feature, the
    variance is r + r^2 / a. As a grows it becomes the Poisson likelihood.
    """

    domain = "count"

    family = "likelihood"

    def build(self, n_features: int, n_replicas: int):
        """Make the module for R replicas."""
        return NegativeBinomialModule(n_features, n_replicas)


class NegativeBinomialModule(_CountModule):
    """Outputs are log-means; the inverse dispersion is a parameter per feature."""

    def __init__(self, n_features: int, n_replicas: int):
        super().__init__()
        self.log_concentration = nn.Parameter(torch.ones(n_replicas, 1, n_features))

    def information(self, mean: Tensor) -> Tensor:
        # At the dispersion that training starts from.
        return mean / (1.0 + mean / math.e)

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        log_mean = self.log_rate(out)
        log_a = self.log_concentration.clamp(-10.0, 10.0)
        a = torch.exp(log_a)
        # log(a + mean), kept exact where the two differ by many orders.
        log_sum = log_a + softplus(log_mean - log_a)
        terms = (
            torch.lgamma(x + a)
            - torch.lgamma(a)
            - torch.lgamma(x + 1.0)
            + a * (log_a - log_sum)
            + x * (log_mean - log_sum)
        )
        return terms.sum(-1)

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        mean = self.mean(out).cpu()
        a = torch.exp(self.log_concentration.clamp(-10.0, 10.0)).cpu()
        gamma = torch._standard_gamma(
            a.expand_as(mean).contiguous(), generator=generator
        )
        return torch.poisson(gamma * mean / a, generator=generator).to(out)


class Tokens(Specification):
    """Categorical likelihood of tokens, given by a decoder that reads what came before.

    Notes
    -----
    log p(x|z) = sum_t log p(x_t | x_<t, z) over the tokens that are no padding (0). The
    decoder evaluates its softmax at the observed tokens, and its output are these
    terms.
    """

    domain = "token"

    family = "likelihood"

    def build(self, n_features: int, n_replicas: int):
        """Make the module."""
        return TokensModule()


class TokensModule(_LikelihoodModule):
    """Outputs are the log-probabilities of the observed tokens."""

    symbolic = True
    """Numbers name things: they have no origin and no unit."""

    def lengths(self, x: Tensor) -> Tensor:
        """Columns of each row ``(n, p)`` up to its last token, ``(n,)``."""
        steps = torch.arange(1, x.shape[-1] + 1, device=x.device)
        return ((x != 0) * steps).amax(-1)

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        return out.sum(-1)


LIKELIHOODS = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
}

__all__ = ["Bernoulli", "Gaussian", "NegativeBinomial", "Poisson", "Tokens"]
