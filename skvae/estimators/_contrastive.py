"""Time-contrastive learning for the engine: model, objective, procedure, read-out."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skvae._batches import EVALUATION_ROWS
from skvae._model import LatentVariableModel, Terms
from skvae._optimizer import FlatAdam
from skvae._validation import warn
from skvae.networks._layers import Linear
from skvae.networks._maxout import MaxoutNetwork


class SegmentClassifier(nn.Module):
    """R feature networks on whitened data, each with a logistic regression on top.

    Shapes: x ``(R or 1, B, p)``, features ``(R, B, d)``, logits ``(R, B, C)``.
    """

    def __init__(self, n_in, n_latents, n_classes, generators, **network):
        super().__init__()
        self.n_latents, self.n_replicas = n_latents, len(generators)
        self.register_buffer("centre", torch.zeros(n_in))
        self.register_buffer("whitening", torch.eye(n_in))
        self.extractor = MaxoutNetwork(n_in, n_latents, generators, **network)
        self.head = Linear(n_latents, n_classes, generators)

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        """Take centre and principal components of the rows of x, all of them."""
        x = x.double()
        mean = x.mean(0)
        centred = x - mean
        values, vectors = torch.linalg.eigh(centred.mT @ centred / len(x))
        values = values.clamp_min(1e-8 * values[-1])
        self.centre.copy_(mean)
        self.whitening.copy_(vectors * values.rsqrt())

    def features(self, x: Tensor) -> Tensor:
        """Feature values; up to a linear map, estimates of squared sources."""
        return self.extractor((x - self.centre) @ self.whitening)

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Log p(u|x) of every class, ``(R, B, C)``."""
        return torch.log_softmax(self.head(self.features(x)), dim=-1)

    def weights(self) -> list[Tensor]:
        """The matrices, to which weight decay applies."""
        return [p for name, p in self.named_parameters() if name.endswith("weight")]

    select = LatentVariableModel.select


class CrossEntropy:
    """``-log p(u|x) + decay/2 |W|^2`` per row, u one-hot."""

    n_draws = 1

    def __init__(self, decay: float):
        self.decay = decay

    def weight(self, progress: float) -> float:
        """Nothing is warmed up."""
        return 1.0

    def terms(self, model, x: Tensor, u: Tensor, q, noise, progress) -> Terms:
        log_probability = (model.log_probabilities(x) * u).sum(-1)
        squares = [w.square().flatten(1).sum(1) for w in model.weights()]
        penalty = 0.5 * self.decay * torch.stack(squares).sum(0).unsqueeze(-1)
        nothing = torch.zeros_like(log_probability)
        return Terms(penalty - log_probability, log_probability, nothing)


class HeadFirst:
    """Train the regression alone for a while, then everything; average the weights.

    `average` ``(R, P)`` is the exponential moving average of all parameters, with a
    memory that grows to its full length as training goes on.
    """

    replayable = False

    def __init__(self, head_start: float, decay: float):
        self.head_start, self.decay = head_start, decay
        self.n_steps, self.head_only = 0, head_start > 0
        self.average = None

    def optimizer(self, model) -> FlatAdam:
        optimizer = FlatAdam(model, model.n_replicas)
        self.average = optimizer.values.clone()
        self.values = optimizer.values
        return optimizer

    def step(self, state, batch) -> Terms:
        """One gradient step on the batch, for every replica at once."""
        terms = state.objective.terms(
            state.model, batch.x, batch.u, None, batch.noise, state.progress
        )
        weighted = (batch.weight * terms.loss).sum(-1) / batch.weight.sum(-1)
        if self.head_only and state.progress >= self.head_start:
            self.head_only = False
            for moment in (state.optimizer.first, state.optimizer.second):
                moment.zero_()
            state.optimizer.count.zero_()
        chosen = list(state.model.head.parameters()) if self.head_only else None
        state.optimizer.differentiate(weighted.sum(), chosen)
        state.optimizer.step(state.rates())
        self.remember(state.optimizer.values)
        return terms

    @torch.no_grad()
    def remember(self, values: Tensor) -> None:
        self.n_steps += 1
        decay = min(self.decay, (1.0 + self.n_steps) / (10.0 + self.n_steps))
        # What turns non-finite is undone by the loop and must not stay here.
        usable = torch.where(torch.isfinite(values), values, self.average)
        self.average.lerp_(usable, 1.0 - decay)

    def end_epoch(self, state) -> None:
        """Called by the loop after the last step of each epoch."""

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averages into the model."""
        self.values.copy_(self.average)


@torch.no_grad()
def evaluate(model: SegmentClassifier, method: str, X) -> np.ndarray:
    """A method of the model on rows of X, in chunks, shape ``(R, n, ...)``."""
    chunks = [
        getattr(model, method)(
            torch.tensor(X[start : start + EVALUATION_ROWS]).to(model.centre)[None]
        )
        for start in range(0, len(X), EVALUATION_ROWS)
    ]
    return torch.cat(chunks, dim=1).cpu().numpy()


@torch.no_grad()
def mean_log_probability(model: SegmentClassifier, data) -> np.ndarray:
    """Mean log p(u|x) over the rows, per replica, shape ``(R,)``."""
    total = 0.0
    for x, u in zip(
        data.x.split(EVALUATION_ROWS), data.u.split(EVALUATION_ROWS), strict=True
    ):
        log_probabilities = model.log_probabilities(x.to(u.dtype).unsqueeze(0))
        total = total + (log_probabilities * u).sum((1, 2)).double()
    return (total / len(data.x)).cpu().numpy()


def _independent(features, seed):
    """Mean and unmixing matrix of linear ICA, components skewed to the right."""
    # At the top, every worker process of any estimator would wait for it.
    from sklearn.decomposition import FastICA

    ica = FastICA(
        whiten="unit-variance", whiten_solver="eigh", max_iter=1000, random_state=seed
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        components = ica.fit_transform(features)
    if caught:
        warn(
            "The linear ICA after time-contrastive learning did not settle: "
            f"{caught[0].message} The features may be fewer than n_components; "
            "readout='none' returns them as they are.",
            ConvergenceWarning,
        )
    sign = np.where((components**3).mean(axis=0) < 0, -1.0, 1.0)
    return ica.mean_, sign[:, None] * ica.components_


def _as_they_are(features, seed):
    n = features.shape[1]
    return np.zeros(n), np.eye(n)


READOUTS = {"ica": _independent, "none": _as_they_are}
