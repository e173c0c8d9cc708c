"""Inference procedures: how q is found, and the optimisation step that trains it.

A procedure is its own specification and keeps nothing of a run: what one has to
remember from step to step stands in the state's `memory`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae._gaussian import LOG_TWO_PI, DiagonalGaussian, require_gaussian
from skvae._model import Terms
from skvae._optimizer import FlatAdam, GroupedAdam
from skvae._random import generator, shared_noise, standard_normal
from skvae._spec import Specification
from skvae._unmixing import unmix, unmixable
from skvae._validation import Interval, StrOptions

# Decides the noise of refinement outside training: the same for all rows and models.
NOISE_SEED = 0

# Sequences whose posteriors are refined at once, outside training.
REFINED_ROWS = 64

# Rows of a batch, and batches, that the mutual information is estimated from.
INFORMATION_ROWS = 256
INFORMATION_BATCHES = 4

# Parts of training after which codes are unmixed, and the rows that it is found from.
# Earlier, codes are no map of the sources yet, and diagonal posteriors got stuck.
UNMIXED = 0.6, 0.8
UNMIXING_ROWS = 1 << 13


def batch_loss(batch, rows: Tensor) -> Tensor:
    """Weighted mean of ``(R, B)`` values over the rows, shape ``(R,)``."""
    return (batch.weight * rows).sum(-1) / batch.weight.sum(-1)


class Amortized(Specification):
    """The encoder's answer is the posterior; both networks take one joint step.

    Parameters
    ----------
    precision : {"float32", "bfloat16"}, default="float32"
        Numbers in which training multiplies matrices. "bfloat16" has eight significant
        bits: faster on a GPU with tensor cores and on few CPUs, at some cost to the
        bound. Parameters, likelihoods, KL terms and all that follows training stay as
        they are.
    unmix : bool, default=True
        Whether training now and then turns the codes to where they are least
        correlated given u (the linear independent component analysis of Pham and
        Cardoso 2001), where that raises the bound. For priors with a mean and variance
        for each discrete u and dense networks; others are not concerned. Gradients
        alone often rest at rotations of the sources.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.inference import Amortized
    >>> VAE(inference=Amortized(precision="bfloat16"))
    VAE(inference=Amortized(precision='bfloat16'))
    """

    family = "inference"

    _parameter_constraints: dict = {
        "precision": [StrOptions({"float32", "bfloat16"})],
        "unmix": ["boolean"],
    }

    precision, unmix = "float32", True

    stackable = True
    """Whether its replicas may belong to different fits."""

    draws = False
    """Whether its steps draw more than the noise that comes with a batch."""

    coupling: str | None = None
    """Why the rows of a batch cannot be shared between processes, if they cannot."""

    replayable = True
    """Whether its steps are the same operations for every batch of a shape."""

    def __init__(self, precision="float32", unmix=True):
        self.precision = precision
        self.unmix = unmix

    def build(self):
        """A procedure has no parts of its own: it is what trains."""
        self._validate_params()
        return self

    def arithmetic(self, device: torch.device):
        """Context of a step: the precision of its matrix products."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.precision))

    def optimizer(self, model) -> FlatAdam:
        """The optimiser of all parameters, as the steps need it."""
        return FlatAdam(model, model.n_replicas)

    def end_epoch(self, state) -> None:
        """Called by the loop after the last step of each epoch."""
        if self.unmix and unmixable(state.model) and state.passed(UNMIXED):
            unmix(state.model, state.chunks(UNMIXING_ROWS))

    def posterior(self, model, x, u=None) -> DiagonalGaussian:
        """q(z|x,u), shape ``(R, B, d)``."""
        return model.posterior(x, u)

    def terms(self, state, batch, q) -> Terms:
        """The objective's terms for this q, per row."""
        with state.model.perturbed(batch.noise):
            return state.objective.terms(
                state.model, batch.x, batch.u, q, batch.noise, state.progress
            )

    def step(self, state, batch) -> Terms:
        """One gradient step on the batch, for every replica at once."""
        with self.arithmetic(batch.x.device):
            q = state.model.posterior(batch.x, batch.u)
            terms = self.terms(state, batch, q)
        state.optimizer.differentiate(batch_loss(batch, terms.loss).sum())
        state.optimizer.step(state.rates())
        return terms


def mirrored_signs(draws: Tensor) -> Tensor:
    """Signs of n draws, each followed by its opposite: ``(..., 2 n, d)``.

    They have the mean and covariance of standard normal draws, and unlike these they
    average to both exactly: where log p(x|z) is quadratic in each latent, nothing is
    left of the noise but what couples the latents.
    """
    signs = draws.sign()
    return torch.stack([signs, -signs], dim=-2).flatten(-3, -2)


def ascend(gradients, start, step_sizes, momentum: float, clip: float):
    """Ascent with momentum, row by row, from a tuple of tensors ``(..., d)``.

    p_k = momentum p_{k-1} + clipped gradient_k,  lambda_{k+1} = lambda_k + alpha_k p_k.

    `gradients(k, position)` gives one gradient per tensor; each row's is shortened to
    the length `clip`. Differentiable wherever the gradients are.
    """
    position, velocity = start, [torch.zeros_like(part) for part in start]
    for k, size in enumerate(step_sizes):
        moved = []
        for number, gradient in enumerate(gradients(k, position)):
            # Bounded inside the root, whose slope is infinite at zero.
            square = gradient.square().sum(-1, keepdim=True).clamp_min(clip**2)
            clipped = gradient * (clip * torch.rsqrt(square))
            velocity[number] = momentum * velocity[number] + clipped
            moved.append(position[number] + size * velocity[number])
        position = tuple(moved)
    return position


class SemiAmortized(Amortized):
    """The encoder's answer is refined for each row: semi-amortised inference.

    From the encoder's Gaussian, the mean and log scale of q climb the row's ELBO for a
    few steps of gradient ascent with momentum. Training differentiates the objective
    at the refined q exactly, through all steps, so that the encoder learns where to
    start and the decoder how it will be read. The refined q answers in
    :meth:`transform`, :meth:`posterior` and :meth:`score_samples` as well.

    Parameters
    ----------
    n_steps : int, default=10
        Number of steps T. A training step costs about T + 1 times an amortised one.
    step_size : float, default=0.1
        Size of the first step, in units of the encoder's posterior; later ones shrink
        linearly, ``alpha_k = step_size (1 - k / T)``.
    momentum : float, default=0.5
        Share of the last step's direction that the next one keeps.
    clip : float, default=1.0
        Largest length of a row's gradient, per square root of a latent, for the mean
        and for the log scale.
    encoder_loss : {"total", "bound", "divergence"}, default="total"
        What the encoder learns from. "total" is the objective at the refined q, by
        differentiation through the steps. The others take the refined q as given,
        which makes a step about half as dear: "bound" is the objective at the
        encoder's own q, and "divergence" is KL(encoder's q || refined q).

    Notes
    -----
    The published program moves the mean and log variance themselves by the gradient
    of the loss averaged over the batch, with alpha = 1: per row that is a step of 1/B,
    a 50th for its images. It shortens the gradient of the whole batch to 5, so that a
    row's posterior depends on its batch. Here a row depends on itself alone, and is
    moved in units of its encoder's standard deviations: z = m + s (a + exp(b) e),
    ascending in (a, b) from zero. The curvature there is about one, whatever the units
    of z and however small the noise, where a step of 1/B in z overshoots as soon as
    posterior standard deviations fall below about a tenth. Each step has one draw e,
    of random signs, and the next its mirror image; the shrinking steps average over
    them. The draws are new for every row in training; elsewhere all rows share them.

    What is ascended is always the ELBO with beta 1, in training with its KL term under
    the objective's warm-up. Beta, free bits and the like enter the objective at the
    refined q. Where the posterior meets the prior, as in iVAE, it is the result of the
    meeting that is refined. Full covariances are moved and stretched along their own
    axes.

    "bound" is called VAE+SVI in the paper, and "divergence" VAE+SVI+KL.

    References
    ----------
    Kim, Wiseman, Miller, Sontag, Rush, "Semi-Amortized Variational Autoencoders",
    ICML 2018, arXiv:1802.02550, algorithm 1.

    Krishnan, Liang, Hoffman, "On the challenges of learning with inference networks on
    sparse, high-dimensional data", AISTATS 2018, arXiv:1710.06085, for "divergence".

    Examples
    --------
    >>> from skvae import SkipVAE
    >>> from skvae.inference import SemiAmortized
    >>> SkipVAE(inference=SemiAmortized(n_steps=5))
    SkipVAE(inference=SemiAmortized(n_steps=5))
    """

    draws = True

    _parameter_constraints: dict = {
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "step_size": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "clip": [Interval(Real, 0, None, closed="neither")],
        "encoder_loss": [StrOptions({"total", "bound", "divergence"})],
    }

    def __init__(
        self,
        n_steps=10,
        step_size=0.1,
        momentum=0.5,
        clip=1.0,
        encoder_loss="total",
    ):
        self.n_steps = n_steps
        self.step_size = step_size
        self.momentum = momentum
        self.clip = clip
        self.encoder_loss = encoder_loss

    def posterior(self, model, x, u=None) -> DiagonalGaussian:
        """The refined q(z|x,u), shape ``(R, B, d)``, without a graph."""
        with torch.no_grad():
            encoded = model.posterior(x, u)
            draws = shared_noise(
                NOISE_SEED, 2 * self.n_pairs(), model.n_latents, encoded.loc
            )
            noise = mirrored_signs(draws[: self.n_pairs()])
            lengths = model.lengths(x.flatten(0, 1))
            if lengths is None:
                return self.refine(model, x, u, encoded, noise)

            def refined(rows):
                own = None if u is None else u[:, rows]
                start = encoded.on_rows(lambda field: field[:, rows])
                return self.refine(model, x[:, rows], own, start, noise)

            # Rows of like length together: little padding, and short graphs.
            order = lengths.view(len(x), -1).amax(0).argsort(stable=True)
            parts = [refined(rows) for rows in order.split(REFINED_ROWS)]
            back = order.argsort()
            fields = (
                torch.cat(pieces, 1)[:, back] for pieces in zip(*parts, strict=True)
            )
            return type(encoded)(*fields)

    def n_pairs(self) -> int:
        """Draws that the steps need, each serving two of them."""
        return math.ceil(self.n_steps / 2)

    def refine(
        self, model, x, u, encoded, noise, kl_weight=1.0, differentiable=False
    ) -> DiagonalGaussian:
        """Q after the steps, for noise ``(T or more, d)`` or ``(R, B, T, d)``."""
        require_gaussian(encoded, "Semi-amortised inference")

        def gradients(k, position):
            with torch.enable_grad():
                if not differentiable:
                    position = tuple(part.detach() for part in position)
                if not position[0].requires_grad:
                    for part in position:
                        part.requires_grad_()
                q = encoded.moved(*position)
                z = q.sample(noise[..., k, :])
                log_likelihood = model.expected_log_likelihood(x, q, z)
                bound = log_likelihood - kl_weight * model.prior.kl(q, z, u)
                return torch.autograd.grad(
                    bound.sum(), position, create_graph=differentiable
                )

        sizes = [self.step_size * (1.0 - k / self.n_steps) for k in range(self.n_steps)]
        start = tuple(torch.zeros_like(encoded.loc) for _ in range(2))
        clip = self.clip * math.sqrt(model.n_latents)
        return encoded.moved(*ascend(gradients, start, sizes, self.momentum, clip))

    def step(self, state, batch) -> Terms:
        """One gradient step on the batch, for every replica at once."""
        model, optimizer = state.model, state.optimizer
        encoded = model.posterior(batch.x, batch.u)
        noise = mirrored_signs(state.noise(batch.x.shape[1], self.n_pairs()))
        kl_weight = state.objective.annealing(state.progress)
        through = self.encoder_loss == "total"
        with torch.set_grad_enabled(through):
            q = self.refine(model, batch.x, batch.u, encoded, noise, kl_weight, through)
        terms = self.terms(state, batch, q)
        loss = batch_loss(batch, terms.loss).sum()
        if through:
            optimizer.differentiate(loss)
        else:
            if self.encoder_loss == "bound":
                rows = self.terms(state, batch, encoded).loss
            else:
                z = encoded.sample(noise[..., 0, :])
                rows = encoded.log_prob(z) - q.log_prob(z)
            inference, generative = model.parameter_groups()
            optimizer.differentiate(loss, generative)
            optimizer.differentiate(batch_loss(batch, rows).sum(), inference)
        optimizer.step(state.rates())
        return terms


class Lagging(Amortized):
    """The encoder is trained until it has caught up before each decoder step.

    Aggressive training: for every batch the encoder takes steps on random batches
    until its loss, averaged over blocks of them, stops falling, and then the decoder,
    the prior and the likelihood take one step on the batch. After each epoch the
    mutual information of x and z is estimated; once it has stayed below its best value
    `patience` times, in a row or not, training goes on with ordinary joint steps.

    Parameters
    ----------
    max_inner_steps : int, default=99
        Largest number of encoder steps for one batch.
    block : int, default=10
        Encoder steps whose losses are averaged before they are compared.
    patience : int, default=5
        Epochs with less mutual information than the best one before the aggressive
        phase ends.

    Notes
    -----
    The settings are the paper's for images; for text it takes ``block=15`` and
    ``patience=1``. The information is estimated from up to 1024 rows, held out where
    early stopping holds rows out, in batches of 256: no estimate exceeds log 256 =
    5.5 nats, and at this ceiling the phase ends soon, as it should. Replicas run
    through their phases independently of each other. The two groups of parameters
    keep separate Adam moments, step counts and gradient clips throughout.

    `partial_fit` goes on in the phase in which the last call stopped, and each call
    counts as an epoch; `fit` starts with the aggressive phase, under `warm_start` too.

    References
    ----------
    He, Spokoyny, Neubig, Berg-Kirkpatrick, "Lagging Inference Networks and Posterior
    Collapse in Variational Autoencoders", ICLR 2019, arXiv:1901.05534, algorithm 1.

    Examples
    --------
    >>> from skvae import VAE
    >>> from skvae.inference import Lagging
    >>> VAE(inference=Lagging(max_inner_steps=20))
    VAE(inference=Lagging(max_inner_steps=20))
    """

    replayable = False
    draws = True
    coupling = "Lagging inference decides by the loss of whole batches"

    _parameter_constraints: dict = {
        "max_inner_steps": [Interval(Integral, 1, None, closed="left")],
        "block": [Interval(Integral, 1, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, max_inner_steps=99, block=10, patience=5):
        self.max_inner_steps = max_inner_steps
        self.block = block
        self.patience = patience

    def optimizer(self, model) -> GroupedAdam:
        """An optimiser that can step the encoder and the rest apart."""
        return GroupedAdam(model, model.n_replicas, model.parameter_groups())

    def aggressive(self, state) -> list[bool]:
        """Which replicas are in the aggressive phase."""
        n_replicas = state.model.n_replicas
        memory = state.memory
        if "failures" not in memory:
            memory["failures"] = torch.zeros(n_replicas)
            memory["best_information"] = torch.full((n_replicas,), -math.inf)
        return (memory["failures"] < self.patience).tolist()

    def step(self, state, batch) -> Terms:
        """Catch up with the encoder where it lags, then one step on the batch."""
        aggressive = self.aggressive(state)
        if any(aggressive):
            self.catch_up(state, batch, aggressive)
        terms = self.terms(state, batch, state.model.posterior(batch.x, batch.u))
        loss = batch_loss(batch, terms.loss).sum()
        _, generative = state.model.parameter_groups()
        state.optimizer.differentiate(loss, generative if all(aggressive) else None)
        chosen = [[not lagging, True] for lagging in aggressive]
        state.optimizer.step(state.rates(), chosen)
        return terms

    def catch_up(self, state, batch, lagging: list[bool]) -> None:
        """Step the encoders of the `lagging` replicas until their losses stand still.

        Those that have stopped neither move nor draw random numbers, so that each
        replica fares as it would alone.
        """
        inference, _ = state.model.parameter_groups()
        previous = [math.inf] * len(lagging)
        total, rates = 0.0, state.rates()
        for count in range(1, self.max_inner_steps + 1):
            if count > 1:
                batch = state.random_batch(lagging)
            q = state.model.posterior(batch.x, batch.u)
            losses = batch_loss(batch, self.terms(state, batch, q).loss)
            state.optimizer.differentiate(losses.sum(), inference)
            chosen = [[runs, False] for runs in lagging]
            state.optimizer.step(rates, chosen, record=False)
            total = total + losses.detach()
            if count % self.block:
                continue
            current, total = (total / self.block).tolist(), 0.0
            lagging = [
                runs and not mean > before
                for runs, mean, before in zip(lagging, current, previous, strict=True)
            ]
            if not any(lagging):
                return
            previous = current

    def end_epoch(self, state) -> None:
        """Count the replicas whose mutual information is not the best so far."""
        if not any(self.aggressive(state)):
            return
        memory = state.memory
        information = mutual_information(state).cpu()
        best = memory["best_information"]
        running = memory["failures"] < self.patience
        memory["failures"] += running & (information < best)
        memory["best_information"] = torch.fmax(best, information)


@torch.no_grad()
def mutual_information(state) -> Tensor:
    """Estimate of I(x; z) under q from batches of rows, in nats, shape ``(R,)``.

    Per batch of M rows, the mean of log q(z|x) in closed form minus that of
    log (1/M) sum_m q(z|x_m) at one draw z per row; at most log M (He et al. 2019, the
    released program).
    """
    data, model = state.evaluation, state.model
    device, dtype = data.device, data.weight.dtype
    n = data.n_rows
    used = min(n, INFORMATION_ROWS * INFORMATION_BATCHES)
    rows = torch.linspace(0, n - 1, used, dtype=torch.float64).long().to(device)
    noise = [generator(seed.noise, device) for seed in state.seeds]
    total = 0.0
    n_batches = math.ceil(used / INFORMATION_ROWS)
    for start in range(n_batches):
        # Every n-th row: neighbours in the data are often alike.
        part = rows[start::n_batches]
        u = None if data.u is None else data.take(data.u, part)
        q = model.posterior(data.take(data.x, part), u)
        require_gaussian(q, "Lagging inference")
        z = q.sample(standard_normal(noise, len(part), model.n_latents, dtype=dtype))
        conditional = -q.log_volume() - 0.5 * model.n_latents * (LOG_TWO_PI + 1.0)
        aggregate = torch.logsumexp(q.pairwise_log_prob(z), dim=2)
        aggregate = aggregate - math.log(len(part))
        total = total + (conditional - aggregate).sum(1)
    return total / used


INFERENCES = {
    "amortized": Amortized,
    "semi_amortized": SemiAmortized,
    "lagging": Lagging,
}

__all__ = ["Amortized", "Lagging", "SemiAmortized"]
