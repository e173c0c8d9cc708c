"""Objectives: what training minimises, per row and per replica, in nats.

Loss convention of the whole package: summed over features and latents, averaged
over rows. Whatever the loss, the history's log-likelihood and KL are the two terms of
the plain evidence lower bound.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae._gaussian import LOG_TWO_PI, DiagonalGaussian, require_gaussian
from skvae._model import Terms
from skvae._spec import Specification
from skvae._validation import Interval, StrOptions


def _check_warm_up(objective) -> None:
    if not 0 <= objective.warm_up < 1:
        raise ValueError(
            f"The 'warm_up' parameter of {type(objective).__name__} is a fraction of "
            "training and must be in [0, 1), or beta would never be reached. "
            f"Got {objective.warm_up!r}."
        )


class _Annealed:
    """What the built objectives share: beta, reached after the warm-up."""

    n_draws = 1
    """Draws of z per row and step."""

    coupling: str | None = None
    """Why the rows of a batch cannot be shared between processes, if they cannot."""

    weighting = "beta", "warm_up"
    """What decides :meth:`weight` and nothing else."""

    def __init__(self, beta: float, warm_up: float):
        self.beta, self.warm_up = beta, warm_up

    def annealing(self, progress: float) -> float:
        """Share of `beta` reached after the fraction `progress` of training."""
        return 1.0 if progress >= self.warm_up else progress / self.warm_up

    def weight(self, progress: float) -> float:
        """Weight of the KL term after the fraction `progress` of training."""
        return self.beta * self.annealing(progress)

    def is_final(self, progress: float) -> bool:
        """Whether the objective has stopped changing."""
        return progress >= self.warm_up


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

    def build(self, beta: float, prior, n_rows: int | None = None):
        """Make the objective; ValueError for options out of range."""
        _check_warm_up(self)
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


class WeightedELBO(_Annealed):
    """The built :class:`ELBO`."""

    def __init__(self, beta: float, warm_up: float, free_bits: float):
        super().__init__(beta, warm_up)
        self.free_bits = free_bits
        if free_bits:
            self.coupling = "free_bits judges the mean KL of a whole batch"

    def terms(
        self, model, x: Tensor, u: Tensor | None, q: DiagonalGaussian, noise, progress
    ) -> Terms:
        z = q.sample(noise)
        log_likelihood = model.expected_log_likelihood(x, q, z)
        kl = charged = model.prior.kl(q, z, u)
        if self.free_bits:
            per_dimension = model.prior.kl_per_dimension(q, z, u)
            free = per_dimension.mean(1, keepdim=True) <= self.free_bits
            refund = torch.where(free, self.free_bits - per_dimension, 0.0)
            charged = kl + refund.sum(-1)
        loss = self.weight(progress) * charged - log_likelihood
        return Terms(loss, log_likelihood, kl)


def _weighted(n_batch: int, n_rows: int, like: Tensor) -> Tensor:
    """Log-weights ``(B, B)`` of minibatch weighted sampling."""
    return like.new_full((n_batch, n_batch), -math.log(n_rows * n_batch))


def _stratified(n_batch: int, n_rows: int, like: Tensor) -> Tensor:
    """Log-weights ``(B, B)`` of minibatch stratified sampling.

    The row's own posterior weighs 1/N, as it does in q(z); one other stands in for
    what the rest, at 1/(B - 1) each, leave over.
    """
    if n_batch == 1:
        return like.new_zeros(1, 1)
    n_others = n_batch - 1
    weights = like.new_full((n_batch, n_batch), 1.0 / n_others)
    rows = torch.arange(n_batch, device=like.device)
    weights[rows, (rows + 1) % n_batch] = (n_rows - n_others) / (n_rows * n_others)
    weights[rows, rows] = 1.0 / n_rows
    return torch.log(weights)


AGGREGATES = {"weighted": _weighted, "stratified": _stratified}


class TotalCorrelation(Specification):
    """The objective of beta-TC-VAE: total correlation weighed on its own.

    With q(z) = (1/N) sum_n q(z|x_n), estimated from the batch,

    loss = -log p(x|z) + w(t) beta [a I(x; z) + b TC + c sum_d KL(q(z_d) || p(z_d))],

    where TC = KL(q(z) || prod_d q(z_d)). The paper's beta is `weight` here; the
    estimator's `beta` multiplies the whole bracket, as it multiplies the KL term in
    every other objective, and stays at 1 for beta-TC-VAE.

    Parameters
    ----------
    weight : float, default=6.0
        The weight b of the total correlation; the paper takes 6 for dSprites.
    mutual_information_weight : float, default=1.0
        The weight a of the mutual information of x and z.
    dimension_weight : float, default=1.0
        The weight c of the dimension-wise KL.
    estimator : {"weighted", "stratified"}, default="weighted"
        How q(z) is estimated from a batch: minibatch weighted sampling, or minibatch
        stratified sampling, which is unbiased for q(z) but noisier.
    warm_up : float, default=0.0
        Fraction of training over which w(t) rises linearly from 0 to 1.

    Notes
    -----
    One draw z serves all terms. As the three sum to log q(z|x) - log p(z), whose mean
    is the KL in closed form, the bracket is evaluated as
    ``c KL + (a - c) I + (b - c) TC``: with equal weights it is the ELBO exactly. Under
    "weighted", log q(z) misses about log N, so that the reported loss contains a
    constant, (d - 1) log N in TC, without influence on training. Sample weights weigh
    the rows' losses; q(z) counts every row once.

    A prior p(z|u) takes the place of p(z). Gaussian mixtures are refused: their
    coordinates depend on each other, which is what this objective punishes.

    References
    ----------
    Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational
    Autoencoders", NeurIPS 2018, arXiv:1802.04942, eqs. 2 and 4, appendix C.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.objectives import TotalCorrelation
    >>> VAE(objective=TotalCorrelation(weight=4.0))
    VAE(objective=TotalCorrelation(weight=4.0))
    """

    family = "objective"
    _parameter_constraints: dict = {
        "weight": [Interval(Real, 0, None, closed="left")],
        "mutual_information_weight": [Interval(Real, 0, None, closed="left")],
        "dimension_weight": [Interval(Real, 0, None, closed="left")],
        "estimator": [StrOptions(set(AGGREGATES))],
        "warm_up": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        weight=6.0,
        mutual_information_weight=1.0,
        dimension_weight=1.0,
        estimator="weighted",
        warm_up=0.0,
    ):
        self.weight = weight
        self.mutual_information_weight = mutual_information_weight
        self.dimension_weight = dimension_weight
        self.estimator = estimator
        self.warm_up = warm_up

    def build(self, beta: float, prior, n_rows: int | None = None):
        """Make the objective for `n_rows` training rows; ValueError if it cannot be."""
        self._validate_params()
        _check_warm_up(self)
        if n_rows is None:
            raise ValueError("TotalCorrelation needs n_rows, the N of q(z).")
        if not prior.factorial:
            raise ValueError(
                "TotalCorrelation needs a prior whose coordinates are independent; a "
                "Gaussian mixture prior is not. Use objective='elbo', or a standard "
                "normal or conditional prior."
            )
        weights = self.mutual_information_weight, self.weight, self.dimension_weight
        return DecomposedELBO(
            beta, self.warm_up, weights, AGGREGATES[self.estimator], n_rows
        )


class DecomposedELBO(_Annealed):
    """The built :class:`TotalCorrelation`."""

    coupling = "TotalCorrelation estimates q(z) from a whole batch"

    def __init__(self, beta: float, warm_up: float, weights, aggregate, n_rows: int):
        super().__init__(beta, warm_up)
        self.weights, self.aggregate, self.n_rows = weights, aggregate, n_rows

    def decompose(self, prior, q, z: Tensor, u: Tensor | None):
        """Mutual information, total correlation, dimension-wise KL: each ``(R, B)``.

        They sum to log q(z|x) - log p(z|u), whatever estimates q(z).
        """
        log_weights = self.aggregate(z.shape[1], self.n_rows, z)
        joint = torch.logsumexp(q.pairwise_log_prob(z) + log_weights, dim=2)
        marginals = q.pairwise_marginal_log_prob(z) + log_weights.unsqueeze(-1)
        product = torch.logsumexp(marginals, dim=2).sum(-1)
        return (
            q.log_prob(z) - joint,
            joint - product,
            product - prior.log_prob(z, u),
        )

    def terms(self, model, x: Tensor, u: Tensor | None, q, noise, progress) -> Terms:
        require_gaussian(q, "TotalCorrelation")
        z = q.sample(noise)
        log_likelihood = model.expected_log_likelihood(x, q, z)
        kl = model.prior.kl(q, z, u)
        information, correlation, _ = self.decompose(model.prior, q, z, u)
        a, b, c = self.weights
        charged = c * kl + (a - c) * information + (b - c) * correlation
        loss = self.weight(progress) * charged - log_likelihood
        return Terms(loss, log_likelihood, kl)


class IWAE(Specification):
    """The importance-weighted bound of k draws, tighter than the ELBO.

    loss = -log (1/k) sum_i p(x|z_i) [p(z_i) / q(z_i|x)]^(w(t) beta),   z_i ~ q(z|x).

    With one draw it is the ELBO, its KL estimated by that draw. It trains the decoder
    better and the encoder worse as k grows, because the encoder's gradient drowns in
    noise (Rainforth et al. 2018, arXiv:1802.04537).

    Parameters
    ----------
    n_draws : int, default=5
        The number k of draws per row and step; the cost of the decoder grows with it.
    warm_up : float, default=0.0
        Fraction of training over which w(t) rises linearly from 0 to 1.

    Notes
    -----
    Only ``beta=1`` gives a bound on log p(x). :meth:`score` is unaffected by this
    choice: it always weighs its own `n_draws` draws.

    References
    ----------
    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016,
    arXiv:1509.00519, eq. 8.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.objectives import IWAE
    >>> VAE(objective=IWAE(n_draws=10))
    VAE(objective=IWAE(n_draws=10))
    """

    family = "objective"
    _parameter_constraints: dict = {
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "warm_up": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(self, n_draws=5, warm_up=0.0):
        self.n_draws = n_draws
        self.warm_up = warm_up

    def build(self, beta: float, prior, n_rows: int | None = None):
        """Make the objective; ValueError for options out of range."""
        self._validate_params()
        _check_warm_up(self)
        return ImportanceWeightedBound(beta, self.warm_up, self.n_draws)


class ImportanceWeightedBound(_Annealed):
    """The built :class:`IWAE`."""

    def __init__(self, beta: float, warm_up: float, n_draws: int):
        super().__init__(beta, warm_up)
        self.n_draws = n_draws

    def terms(self, model, x: Tensor, u: Tensor | None, q, noise, progress) -> Terms:
        require_gaussian(q, "IWAE")
        if self.n_draws == 1:
            noise = noise.unsqueeze(2)
        # Draws lead, so that the weight may differ between the replicas behind them.
        draws = [q.sample(draw) for draw in noise.unbind(2)]
        z = torch.cat(draws, dim=1)
        log_q = -0.5 * (noise.square() + LOG_TWO_PI).sum(-1).movedim(2, 0)
        log_q = log_q - q.log_volume()

        def repeated(rows):
            return None if rows is None else rows.repeat(1, self.n_draws, 1)

        def per_draw(values):
            return values.unflatten(1, (self.n_draws, -1)).transpose(0, 1)

        rows = repeated(x)
        log_likelihood = per_draw(
            model.likelihood.log_prob(rows, model.decode(z, rows))
        )
        log_prior = per_draw(model.prior.log_prob(z, repeated(u)))
        log_weights = log_likelihood + self.weight(progress) * (log_prior - log_q)
        loss = math.log(self.n_draws) - torch.logsumexp(log_weights, dim=0)
        kl = model.prior.kl(q, draws[0], u)
        return Terms(loss, log_likelihood.mean(0), kl)


class CovariateInformed(Specification):
    """The bound under a mixture of the posteriors with and without u.

    loss = -E_qa [log p(x|z)] + w(t) beta E_qa [log qa(z) - log p(z|u)],
    qa = a q(z|x,u) + (1 - a) q(z|x).

    Where u says much about z, the posterior with u can leave to p(z|u) what the
    encoder should learn, and codes without u are poor. Here q(z|x) has to explain x
    and agree with p(z|u) by itself. For every `a` this is a bound on log p(x|u).

    Parameters
    ----------
    alpha : float, default=0.5
        The share a of the posterior with u. 1 is the plain bound.
    warm_up : float, default=0.0
        Fraction of training over which w(t) rises linearly from 0 to 1.

    Notes
    -----
    One draw from each posterior; the decoder is evaluated for both, and the KL is
    estimated by them. It needs a posterior that can do without u:
    ``posterior_type="product"``. Without u it is the plain bound. The paper chooses
    `a` for each row anew; here it is a constant.

    References
    ----------
    Kim, Lee, Kim, "Covariate-informed Representation Learning to Prevent Posterior
    Collapse of iVAE", AISTATS 2023, arXiv:2202.04206.

    Examples
    --------
    >>> from skvae import iVAE
    >>> from skvae.objectives import CovariateInformed
    >>> iVAE(objective=CovariateInformed(alpha=0.3))
    iVAE(objective=CovariateInformed(alpha=0.3))
    """

    family = "objective"
    _parameter_constraints: dict = {
        "alpha": [Interval(Real, 0, 1, closed="both")],
        "warm_up": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(self, alpha=0.5, warm_up=0.0):
        self.alpha = alpha
        self.warm_up = warm_up

    def build(self, beta: float, prior, n_rows: int | None = None):
        """Make the objective; ValueError for options out of range."""
        self._validate_params()
        _check_warm_up(self)
        return MixedPosteriorBound(beta, self.warm_up, self.alpha)


class MixedPosteriorBound(_Annealed):
    """The built :class:`CovariateInformed`."""

    n_draws = 2

    def __init__(self, beta: float, warm_up: float, alpha: float):
        super().__init__(beta, warm_up)
        self.alpha = alpha

    def terms(self, model, x: Tensor, u: Tensor | None, q, noise, progress) -> Terms:
        require_gaussian(q, "CovariateInformed")
        informed, alone = noise.unbind(2)
        without = q if u is None else model.posterior(x, None)
        shares = ((self.alpha, q, informed), (1.0 - self.alpha, without, alone))
        log_likelihood = kl = 0.0
        for share, component, draw in shares:
            z = component.sample(draw)
            log_q = (
                torch.stack([q.log_prob(z), without.log_prob(z)], dim=-1)
                + z.new_tensor([self.alpha, 1.0 - self.alpha]).log()
            )
            excess = torch.logsumexp(log_q, -1) - model.prior.log_prob(z, u)
            likelihood = model.likelihood.log_prob(x, model.decode(z, x))
            log_likelihood = log_likelihood + share * likelihood
            kl = kl + share * excess
        return Terms(self.weight(progress) * kl - log_likelihood, log_likelihood, kl)


OBJECTIVES = {
    "elbo": ELBO,
    "total_correlation": TotalCorrelation,
    "iwae": IWAE,
    "covariate_informed": CovariateInformed,
}

__all__ = ["ELBO", "IWAE", "CovariateInformed", "TotalCorrelation"]
