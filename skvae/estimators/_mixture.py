"""The scikit-learn surface of estimators that cluster: a Gaussian-mixture prior."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
from sklearn.base import ClusterMixin

from skvae._batches import chunks
from skvae._random import generator, shared_noise
from skvae._spec import resolve
from skvae._validation import Interval, StrOptions, check_is_fitted
from skvae.estimators._base import BaseVAE
from skvae.estimators._fitting import drawn, subset
from skvae.posteriors import EncoderPosterior, EnumeratedPosterior
from skvae.priors import GaussianMixture

POSTERIOR_TYPES = {"marginal": EncoderPosterior, "enumerated": EnumeratedPosterior}
# Draws of z behind q(y|x), and elements of the largest array they make.
MEMBERSHIP_DRAWS = 64
MEMBERSHIP_ELEMENTS = 1 << 22
# Draws of z per row behind the two parts of the KL.
KL_DRAWS = 16


class BaseMixtureVAE(ClusterMixin, BaseVAE):
    """Adds the component y of the prior: who belongs to it and where it lies."""

    _parameter_constraints: dict = {
        **BaseVAE._parameter_constraints,
        "n_mixtures": [Interval(Integral, 1, None, closed="left")],
        "posterior_type": [StrOptions(set(POSTERIOR_TYPES))],
        "weights": [StrOptions({"uniform", "learned"})],
    }

    def _parts(self, conditional):
        family = resolve(
            self.posterior_type, POSTERIOR_TYPES, n_mixtures=self.n_mixtures
        )
        prior = GaussianMixture(self.n_mixtures, self.weights, start="kmeans")
        return super()._parts(conditional)._replace(prior=prior, posterior=family)

    # --------------------------------------------------------------- training

    def _fit(self, X, y, u, sample_weight):
        super()._fit(X, y, u, sample_weight)
        self.labels_ = self.predict(X)
        return self

    def _partial_fit(self, X, y, u, sample_weight, **options):
        super()._partial_fit(X, y, u, sample_weight, **options)
        self.labels_ = self.predict(X)
        return self

    def _fitted_state(self, run, best):
        state = super()._fitted_state(run, best)
        module, order = state["module_"], state["_order"]
        shares, kl, weight = self._memberships(run, module)
        hard = np.eye(shares.shape[1])[shares.argmax(axis=1)]
        rank = np.lexsort((-(weight @ shares), -(weight @ hard)))
        weights = module.prior.log_weights()[0].exp()
        ratio = np.where(shares > 0, shares, 1.0) / weights.double().numpy()
        discrete = float(weight @ (shares * np.log(ratio)).sum(axis=1))
        components = module.prior.components()
        corner = np.ix_(rank, order)
        state.update(
            _component_order=rank,
            weights_=weights.double().numpy()[rank],
            means_=components.loc[0].double().numpy()[corner].copy(),
            covariances_=components.scale[0].double().square().numpy()[corner].copy(),
            kl_discrete_=discrete,
            kl_continuous_=float(weight @ kl) - discrete,
        )
        return state

    @torch.no_grad()
    def _memberships(self, run, module):
        """q(y|x) of training rows, the KL of (y, z), and weights that sum to one."""
        noise = self._membership_noise(module, run.score_seed)
        # Rows have draws of their own here, so that errors of the KL average out.
        stream = generator(run.score_seed)
        data = drawn(module, subset(run.data).gathered())
        data = data._replace(x=data.x.cpu(), weight=data.weight.cpu())
        shares, kl = [], []
        for x, _, _ in chunks(data, self._membership_rows(module)):
            q = run.inference.posterior(module, x)
            shares.append(module.posterior_family.memberships(module.prior, q, noise))
            own = torch.randn(KL_DRAWS, *q.loc.shape, generator=stream)
            draws = [module.prior.kl(q, q.sample(one)) for one in own.to(q.loc)]
            kl.append(torch.stack(draws).mean(0))
        weight = data.weight.double().numpy()
        shares, kl = (
            torch.cat(part, dim=1)[0].double().numpy() for part in (shares, kl)
        )
        return shares, kl, weight / weight.sum()

    @staticmethod
    def _membership_noise(module, score_seed):
        like = module.frame.centre
        return shared_noise(score_seed, MEMBERSHIP_DRAWS, module.n_latents, like)

    def _membership_rows(self, module):
        per_row = MEMBERSHIP_DRAWS * max(module.n_latents, self.n_mixtures)
        return max(1, MEMBERSHIP_ELEMENTS // per_row)

    # -------------------------------------------------------------- inference

    def predict_proba(self, X):
        """Probability of each mixture component given each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        P : ndarray of shape (n_samples, n_mixtures)
            Probabilities q(y|x), components ordered as `means_`. With
            ``posterior_type="marginal"`` they are the mean of p(y|z) over fixed draws
            of q(z|x), so that equal rows get equal values.
        """
        check_is_fitted(self)
        X = self._check_X(X)
        model = self._lifted_model(X.dtype)
        noise = self._membership_noise(model, self._score_seed)
        dtype = np.float64 if X.dtype == np.float64 else np.float32
        P = np.empty((X.shape[0], len(self._component_order)), dtype=dtype)
        rows = self._membership_rows(model)
        with torch.no_grad():
            for part, x, _ in self._chunks(model, X, None, rows):
                q = self._inference.posterior(model, x)
                shares = model.posterior_family.memberships(model.prior, q, noise)
                P[part] = shares[0].cpu().numpy()[:, self._component_order]
        return P

    def predict(self, X):
        """Most probable mixture component of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        labels : ndarray of int of shape (n_samples,)
            Numbers of the components, ordered as `means_`.
        """
        return self.predict_proba(X).argmax(axis=1)

    def fit_predict(self, X, y=None, *, sample_weight=None):
        """Fit to X and return the most probable component of its rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the objective.

        Returns
        -------
        labels : ndarray of int of shape (n_samples,)
            Numbers of the components, ordered as `means_`.
        """
        return self.fit(X, y, sample_weight=sample_weight).labels_

    def sample(self, n_samples=1, *, component=None, random_state=None):
        """Draw new rows from the model, or from one of its mixture components.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        component : int, default=None
            Component to draw from, numbered as `means_`; None draws it too.
        random_state : int, RandomState instance or None, default=None
            Seed of the draws. See :term:`Glossary <random_state>`.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws of x from p(x|z), z from p(z) or p(z|y).
        """
        if component is None:
            return self._sample(n_samples, None, random_state)
        check_is_fitted(self)
        n_mixtures = len(self._component_order)
        if not isinstance(component, Integral) or not 0 <= component < n_mixtures:
            raise ValueError(
                f"component must be an integer from 0 to {n_mixtures - 1}, or None. "
                f"Got {component!r}."
            )
        # The number of rows is checked where it is used.
        chosen = [int(self._component_order[component])]
        return self._sample(n_samples, torch.tensor(chosen), random_state)
