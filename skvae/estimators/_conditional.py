"""The scikit-learn surface of estimators that take an auxiliary variable u."""

from __future__ import annotations

import torch
from sklearn.callback import with_callbacks
from sklearn.utils.metadata_routing import UNUSED

from skvae._validation import check_is_fitted, check_sample_weight
from skvae.estimators._auxiliary import AuxiliaryEncoder, check_length
from skvae.estimators._base import BaseVAE
from skvae.estimators._fitting import Auxiliary
from skvae.estimators._theorems import assumptions


class ConditionalVAE(BaseVAE):
    """Adds u to `fit` and `score`, and lets `transform` do without it."""

    __metadata_request__fit = {"u": True}
    __metadata_request__partial_fit = {"u": True, "u_categories": UNUSED}
    __metadata_request__score = {"u": True}
    __metadata_request__transform = {"u": UNUSED}

    _requires_u = True

    def _auxiliary(self, X, y, u, *, reset, categories=None):
        given = y if u is None else u
        if reset:
            self.__dict__.pop("u_categories_", None)
        if given is None:
            if self._requires_u:
                raise ValueError(
                    f"{type(self).__name__} requires y to be passed, but the target y "
                    "is None. Pass the auxiliary variable as u, or as y in its place."
                )
            if reset:
                self._u_encoder = None
            return None
        check_length(X, given)
        if reset:
            encoder = AuxiliaryEncoder.learn(given, self.u_type, categories)
            self._u_encoder = encoder
            if encoder.discrete:
                self.u_categories_ = encoder.categories
        if self._u_encoder is None:
            if u is not None:
                raise ValueError(
                    f"This {type(self).__name__} was fitted without u, so u says "
                    "nothing to it. Leave u out, or pass u to fit."
                )
            return None
        return self._u_encoder.encode(given)

    def _auxiliary_shape(self):
        return Auxiliary() if self._u_encoder is None else self._u_encoder.shape

    def _fitted_state(self, run, best):
        state = super()._fitted_state(run, best)
        state["identifiability_"] = assumptions(state["module_"])
        return state

    @with_callbacks
    def fit(self, X, y=None, *, u=None, sample_weight=None):
        """Train the model on X and u.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,), default=None
            Auxiliary variable where `u` is None.
        u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
            Auxiliary variable.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the objective.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        return self._fit(X, y, u, sample_weight)

    def partial_fit(self, X, y=None, *, u=None, sample_weight=None, u_categories=None):
        """Train one pass over the rows of X, from where the last call stopped.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to train on.
        y : array-like of shape (n_samples,), default=None
            Auxiliary variable where `u` is None.
        u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
            Auxiliary variable.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the objective.
        u_categories : array-like of shape (n_categories,), default=None
            All values a discrete u will ever take; used by the first call. None takes
            those of its rows.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        return self._partial_fit(X, y, u, sample_weight, categories=u_categories)

    def fit_transform(self, X, y=None, *, u=None, sample_weight=None):
        """Fit to X and u and return posterior means that do without u.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,), default=None
            Auxiliary variable where `u` is None.
        u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
            Auxiliary variable.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the objective.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Posterior means of q(z|x), as ``transform(X)`` returns them.
        """
        return self.fit(X, y, u=u, sample_weight=sample_weight).transform(X)

    def transform(self, X, *, u=None):
        """Posterior means of the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
            Auxiliary variable; None leaves it out.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Means of q(z|x,u), or of q(z|x) without u, in the dtype of X.
        """
        return self._posterior(X, u, with_std=False)[0]

    def posterior(self, X, u=None):
        """Mean and standard deviation of the posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
            Auxiliary variable; None leaves it out.

        Returns
        -------
        mean : ndarray of shape (n_samples, n_components)
            Posterior means.
        std : ndarray of shape (n_samples, n_components)
            Posterior standard deviations.
        """
        return self._posterior(X, u)

    def sample(self, n_samples=1, *, u=None, random_state=None):
        """Draw new rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows; ignored when `u` is given.
        u : array-like of shape (n_rows,) or (n_rows, n_columns), default=None
            Auxiliary variable of each row to draw; None draws it from those seen.
        random_state : int, RandomState instance or None, default=None
            Seed of the draws. See :term:`Glossary <random_state>`.

        Returns
        -------
        X : ndarray of shape (n_samples or n_rows, n_features)
            Draws of x from p(x|z), z from p(z|u).
        """
        if u is None:
            return self._sample(n_samples, None, random_state)
        check_is_fitted(self)
        encoded = torch.tensor(self._auxiliary(u, None, u, reset=False)).double()
        return self._sample(len(encoded), encoded.unsqueeze(0), random_state)

    def score_samples(self, X, *, u=None):
        """Importance-weighted estimate of log p(x|u), or of log p(x), of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
            Auxiliary variable. Without it p(z) is the mixture of p(z|u) over the
            training u, and the estimate is of log p(x).

        Returns
        -------
        log_prob : ndarray of shape (n_samples,)
            Estimates in nats from `n_draws` draws shared by all rows.
        """
        check_is_fitted(self)
        X = self._check_X(X)
        U = None if u is None else self._auxiliary(X, None, u, reset=False)
        return self._score_samples(X, U)

    def score(self, X, y=None, *, u=None, sample_weight=None):
        """Weighted mean of :meth:`score_samples`; independent of beta.

        It is computed in single precision, like training, whatever that of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,), default=None
            Auxiliary variable where `u` is None.
        u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
            Auxiliary variable.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        score : float
            Estimate of the mean of log p(x|u) in nats per row, higher is better.
        """
        check_is_fitted(self)
        X = self._check_X(X)
        U = self._auxiliary(X, y, u, reset=False)
        weight = check_sample_weight(sample_weight, X)
        return self._mean_score(X, U, weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self._requires_u
        return tags
