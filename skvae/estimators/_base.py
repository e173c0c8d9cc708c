"""The scikit-learn surface that every estimator of the package shares."""

from __future__ import annotations

import copy
import math
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils import check_array

from skvae._batches import EVALUATION_ROWS
from skvae._random import generator, shared_noise
from skvae._spec import resolve
from skvae._training import SCHEDULES
from skvae._validation import (
    HasMethods,
    Interval,
    StrOptions,
    check_domain,
    check_is_fitted,
    check_random_state,
    check_sample_weight,
    check_X,
)
from skvae.estimators._fitting import (
    Auxiliary,
    Specifications,
    as_tensor,
    lifted,
)
from skvae.estimators._training_steps import TrainingSteps
from skvae.estimators._versioned import Versioned
from skvae.inference import INFERENCES
from skvae.likelihoods import LIKELIHOODS
from skvae.networks import DECODERS, ENCODERS
from skvae.objectives import OBJECTIVES
from skvae.posteriors import EncoderPosterior
from skvae.priors import StandardNormal

# Elements of the largest temporary array of scoring.
SCORE_ELEMENTS = 1 << 19


def _part(table):
    return [StrOptions(set(table)), HasMethods(["build", "get_params"])]


class BaseVAE(
    TrainingSteps,
    Versioned,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """Likelihood, prior, two networks, inference and objective behind one surface.

    A method overrides :meth:`_parts` and says only what its paper changes.
    """

    _doc_link_module = "skvae"

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "width": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 0, None, closed="left")],
        "encoder": _part(ENCODERS),
        "decoder": _part(DECODERS),
        "likelihood": _part(LIKELIHOODS),
        "objective": _part(OBJECTIVES),
        "inference": _part(INFERENCES),
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "schedule": [StrOptions(set(SCHEDULES))],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components=2,
        *,
        beta=1.0,
        width=256,
        depth=2,
        encoder="mlp",
        decoder="mlp",
        likelihood="gaussian",
        objective="elbo",
        inference="amortized",
        max_iter=100,
        batch_size="auto",
        learning_rate=1e-3,
        schedule="cosine",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        n_init=1,
        warm_start=False,
        n_draws=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.beta = beta
        self.width = width
        self.depth = depth
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.objective = objective
        self.inference = inference
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_init = n_init
        self.warm_start = warm_start
        self.n_draws = n_draws
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # ------------------------------------------------------------------ parts

    def _network(self, part, table=DECODERS, **options):
        return resolve(part, table, width=self.width, depth=self.depth, **options)

    def _networks(self, conditional):
        """Encoder and decoder, as names or specifications."""
        return self.encoder, self.decoder

    def _parts(self, conditional):
        """The specifications of this estimator; `conditional` where u is given."""
        encoder, decoder = self._networks(conditional)
        return Specifications(
            encoder=self._network(encoder, table=ENCODERS),
            decoder=self._network(decoder),
            prior=StandardNormal(),
            likelihood=resolve(self.likelihood, LIKELIHOODS),
            posterior=EncoderPosterior(),
            inference=resolve(self.inference, INFERENCES),
            objective=resolve(self.objective, OBJECTIVES),
        )

    def _auxiliary(self, X, y, u, *, reset, **options):
        """Encoded u ``(n, m)`` or None; estimators without u ignore y."""
        return None

    def _auxiliary_shape(self):
        """Columns and kind of the encoded u."""
        return Auxiliary()

    # ------------------------------------------------------------------ input

    def _check_X(self, X, *, reset=False):
        X = check_X(self, X, reset=reset)
        likelihood = resolve(self.likelihood, LIKELIHOODS)
        check_domain(self, X, likelihood.domain, repr(self.likelihood))
        return X

    # --------------------------------------------------------------- training

    @with_callbacks
    def fit(self, X, y=None, *, sample_weight=None):
        """Train the model on X.

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
        self : object
            The fitted estimator.
        """
        return self._fit(X, y, None, sample_weight)

    def partial_fit(self, X, y=None, *, sample_weight=None):
        """Train one pass over the rows of X, from where the last call stopped.

        The origin and unit in which the networks see the data are those of the first
        call's rows. There is no warm-up and no PosteriorCollapseWarning.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to train on.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the objective.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        return self._partial_fit(X, y, None, sample_weight)

    def fit_transform(self, X, y=None, *, sample_weight=None):
        """Fit to X and return the posterior means of its rows.

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
        Z : ndarray of shape (n_samples, n_components)
            Posterior means.
        """
        return self.fit(X, y, sample_weight=sample_weight).transform(X)

    # -------------------------------------------------------------- inference

    def _lifted_model(self, dtype):
        return lifted(self, dtype)

    def _chunks(self, model, X, U, rows):
        like = model.frame.centre
        for start in range(0, X.shape[0], rows):
            part = slice(start, start + rows)
            x = as_tensor(X[part], like.dtype, like.device).unsqueeze(0)
            u = None if U is None else torch.tensor(U[part]).to(like).unsqueeze(0)
            yield part, x, u

    def _posterior(self, X, u=None, *, with_std=True):
        check_is_fitted(self)
        X = self._check_X(X)
        U = None if u is None else self._auxiliary(X, None, u, reset=False)
        model = self._lifted_model(X.dtype)
        dtype = np.float64 if X.dtype == np.float64 else np.float32
        mean = np.empty((X.shape[0], model.n_latents), dtype=dtype)
        std = np.empty_like(mean) if with_std else None
        chunk = model.rows_at_once(EVALUATION_ROWS)
        with torch.no_grad():
            for part, x, u_part in self._chunks(model, X, U, chunk):
                q = self._inference.posterior(model, x, u_part)
                mean[part] = q.loc[0].cpu().numpy()[:, self._order]
                if with_std:
                    std[part] = q.scale[0].cpu().numpy()[:, self._order]
        return mean, std

    def transform(self, X):
        """Posterior means of the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Posterior means, components in order of their KL, in the dtype of X.
        """
        return self._posterior(X, with_std=False)[0]

    def posterior(self, X):
        """Mean and standard deviation of the posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        mean : ndarray of shape (n_samples, n_components)
            Posterior means, as :meth:`transform` returns them.
        std : ndarray of shape (n_samples, n_components)
            Posterior standard deviations.
        """
        return self._posterior(X)

    def inverse_transform(self, Z):
        """Mean of the likelihood for codes Z.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes, components ordered as :meth:`transform` returns them.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected rows, in the units of the training data.
        """
        check_is_fitted(self)
        Z = check_array(Z, dtype=(np.float64, np.float32))
        if Z.shape[1] != self._n_features_out:
            raise ValueError(
                f"Z has {Z.shape[1]} columns, but {type(self).__name__} has "
                f"{self._n_features_out} components."
            )
        model = self._lifted_model(Z.dtype)
        chunk = model.rows_at_once(EVALUATION_ROWS)
        order, X = np.argsort(self._order), None
        with torch.no_grad():
            for part, z, _ in self._chunks(model, Z, None, chunk):
                rows = model.generate(z[..., order].contiguous())[0].cpu().numpy()
                if X is None:
                    X = np.empty((len(Z), *rows.shape[1:]), dtype=rows.dtype)
                X[part] = rows
        return X

    def _sample(self, n_samples, u, random_state):
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 0:
            raise ValueError(
                f"n_samples must be an integer, 0 or larger. Got {n_samples!r}."
            )
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        draws = generator(seed)
        model = copy.deepcopy(self.module_).double()
        with torch.no_grad():
            z = model.prior.sample(n_samples, u, draws).double()
            return model.generate(z, draws)[0].numpy()

    def sample(self, n_samples=1, *, random_state=None):
        """Draw new rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Seed of the draws. See :term:`Glossary <random_state>`.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws of x from p(x|z), z from the prior.
        """
        return self._sample(n_samples, None, random_state)

    def _score_samples(self, X, U=None, *, dtype=None):
        model = self._lifted_model(dtype or X.dtype)
        noise = shared_noise(
            self._score_seed, self.n_draws, model.n_latents, model.frame.centre
        )
        pairs = model.rows_at_once(SCORE_ELEMENTS // max(X.shape[1], self.width))
        rows = max(1, pairs // self.n_draws)
        scores = np.empty(X.shape[0])
        for part, x, u in self._chunks(model, X, U, rows):
            with torch.no_grad():
                q = self._inference.posterior(model, x, u)
            log_weights = model.importance_log_weights(x, u, noise, q)
            estimate = torch.logsumexp(log_weights, dim=1) - math.log(self.n_draws)
            scores[part] = estimate[0].cpu().numpy()
        return scores

    def score_samples(self, X):
        """Importance-weighted estimate of log p(x) of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        log_prob : ndarray of shape (n_samples,)
            Estimates in nats from `n_draws` draws; a lower bound in expectation. The
            draws' noise is fixed at fit and shared by all rows, so equal rows get
            equal values. Log-densities for a Gaussian likelihood, log-probabilities
            for a discrete one: the two do not compare.
        """
        check_is_fitted(self)
        return self._score_samples(self._check_X(X))

    def score(self, X, y=None, *, sample_weight=None):
        """Weighted mean of :meth:`score_samples`; independent of beta.

        It is computed in single precision, like training, whatever that of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        score : float
            Estimated log-likelihood in nats per row, higher is better.
        """
        check_is_fitted(self)
        X = self._check_X(X)
        weight = check_sample_weight(sample_weight, X)
        return self._mean_score(X, None, weight)

    def _mean_score(self, X, U, weight):
        scores = self._score_samples(X, U, dtype=np.float32)
        return float(np.average(scores, weights=weight))

    # ------------------------------------------------------------------ state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        domain = getattr(
            LIKELIHOODS.get(self.likelihood, self.likelihood)
            if isinstance(self.likelihood, str)
            else self.likelihood,
            "domain",
            "real",
        )
        tags.input_tags.positive_only = domain != "real"
        return tags
