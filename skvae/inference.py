"""Inference procedures: how q is found, and the optimisation step that trains it."""

from __future__ import annotations

from skvae._gaussian import DiagonalGaussian
from skvae._model import Terms
from skvae._spec import Specification


class Amortized(Specification):
    """The encoder's answer is the posterior; both networks take one joint step."""

    family = "inference"

    def build(self):
        """An amortised posterior has no options: it is its own procedure."""
        return self

    def posterior(self, model, x, u=None) -> DiagonalGaussian:
        """q(z|x,u), shape ``(R, B, d)``."""
        return model.posterior(x, u)

    def step(self, state, batch) -> Terms:
        """One gradient step on the batch, for every replica at once."""
        q = self.posterior(state.model, batch.x, batch.u)
        terms = state.objective.terms(
            state.model, batch.x, batch.u, q, batch.noise, state.progress
        )
        weighted = (batch.weight * terms.loss).sum(-1) / batch.weight.sum(-1)
        state.optimizer.differentiate(weighted.sum())
        state.optimizer.step(state.rates())
        return terms


INFERENCES = {"amortized": Amortized}

__all__ = ["Amortized"]
