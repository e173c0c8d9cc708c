"""Objectives: what training minimises, per row and per replica, in nats.

Loss convention of the whole package: summed over features and latents, averaged
over rows.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from skvae._gaussian import DiagonalGaussian
from skvae._model import Terms
from skvae._spec import Specification
from skvae._validation import Interval


class ELBO(Specification):
    """Evidence lower bound with a weighted KL term, warm-up and free bits.

    loss = -log p(x|z) + w(t) beta sum_d KL_d,   z ~ q(z|x),

    with one reparameterised draw z per row and step.

    Parameters
    ----------
    warm_up : float, default=0.0
        Fraction of training over which w(t) rises linearly from 0 to 1.
    free_bits : float, default=0.0
        Nats per latent below which a latent's KL, averaged over the batch, costs
        nothing more (Kingma et al. 2016, arXiv:1606.04934).

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.objectives import ELBO
    >>> VAE(objective=ELBO(warm_up=0.2))
    VAE(objective=ELBO(warm_up=0.2))
    """

    family = "objective"
    _parameter_constraints: dict = {
        "warm_up": [Interval(Real, 0, 1, closed="left")],
        "free_bits": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, warm_up=0.0, free_bits=0.0):
        self.warm_up = warm_up
        self.free_bits = free_bits

    def build(self, beta: float, prior):
        """Make the objective; ValueError for options out of range."""
        if not 0 <= self.warm_up < 1:
            raise ValueError(
                "The 'warm_up' parameter of ELBO is a fraction of training and must "
                f"be in [0, 1), or beta would never be reached. Got {self.warm_up!r}."
            )
        if not self.free_bits >= 0:
            raise ValueError(
                "The 'free_bits' parameter of ELBO must be in [0, inf). "
                f"Got {self.free_bits!r}."
            )
        if self.free_bits and not prior.factorial:
            raise ValueError(
                "free_bits needs a prior whose coordinates are independent; a "
                "Gaussian mixture prior is not. Use free_bits=0."
            )
        return WeightedELBO(beta, self.warm_up, self.free_bits)


class WeightedELBO:
    """The built :class:`ELBO`."""

    def __init__(self, beta: float, warm_up: float, free_bits: float):
        self.beta, self.warm_up, self.free_bits = beta, warm_up, free_bits

    def weight(self, progress: float) -> float:
        """Weight of the KL term after the fraction `progress` of training."""
        if progress >= self.warm_up:
            return self.beta
        return self.beta * progress / self.warm_up

    def is_final(self, progress: float) -> bool:
        """Whether the objective has stopped changing."""
        return progress >= self.warm_up

    def terms(
        self, model, x: Tensor, u: Tensor | None, q: DiagonalGaussian, noise, progress
    ) -> Terms:
        z = q.sample(noise)
        log_likelihood = model.likelihood.log_prob(x, model.decode(z))
        kl = charged = model.prior.kl(q, z, u)
        if self.free_bits:
            per_dimension = model.prior.kl_per_dimension(q, z, u)
            free = per_dimension.mean(1, keepdim=True) <= self.free_bits
            refund = torch.where(free, self.free_bits - per_dimension, 0.0)
            charged = kl + refund.sum(-1)
        loss = self.weight(progress) * charged - log_likelihood
        return Terms(loss, log_likelihood, kl)


OBJECTIVES = {"elbo": ELBO}

__all__ = ["ELBO"]
