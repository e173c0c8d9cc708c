"""Restarts of an estimator through the replica axis, each a fitted estimator."""

from __future__ import annotations

import copy
import inspect
import warnings

import numpy as np
from sklearn.base import clone

from skvae._collapse import PosteriorCollapseWarning
from skvae.metrics import match_components


def takes_u(method):
    """Whether a method has a parameter u."""
    return "u" in inspect.signature(method).parameters


def fit_restarts(estimator, X, u, n_restarts, seed):
    """Fit `n_restarts` clones, in one batch where the estimator can.

    Returns the fitted clones in the order of their starts, which `seed` decides, and
    the number of the best one.
    """
    model = clone(estimator)
    given = model.get_params(deep=False)
    wanted = {"n_init": n_restarts, "warm_start": False, "random_state": seed}
    model.set_params(**{name: v for name, v in wanted.items() if name in given})
    arguments = {"u": u} if u is not None and takes_u(model.fit) else {}
    with warnings.catch_warnings():
        # The report names collapsed components, and a permuted u is meant to hurt.
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        if "n_init" in given and hasattr(model, "_fitted_state"):
            return _unstacked(model, X, arguments)
        return _one_by_one(model, X, arguments, n_restarts, seed)


def _unstacked(model, X, arguments):
    """Fit with restarts in one batch and make an estimator of each replica."""
    finish, last = model._fitted_state, {}

    def remember(run, best):
        last.update(run=run, best=best)
        return finish(run, best)

    model._fitted_state = remember
    try:
        model.fit(X, **arguments)
    finally:
        del model._fitted_state
    restarts = []
    for replica in range(last["run"].model.n_replicas):
        single = copy.copy(model)
        vars(single).update(finish(last["run"], replica))
        restarts.append(single)
    return restarts, last["best"]


def _one_by_one(model, X, arguments, n_restarts, seed):
    """Fit restarts after each other; the best has the highest score."""
    if "n_init" in model.get_params(deep=False):
        model.set_params(n_init=1)
    restarts = []
    for own in np.random.RandomState(seed).randint(2**31 - 1, size=n_restarts):
        restarts.append(clone(model).set_params(random_state=int(own)))
        restarts[-1].fit(X, **arguments)
    scores = [log_likelihoods(single, X, arguments.get("u")) for single in restarts]
    if scores[0] is None:
        return restarts, 0
    return restarts, int(np.argmax([score.mean() for score in scores]))


def posterior(model, X, u):
    """Posterior means of the rows, and their standard deviations or None."""
    method = getattr(model, "posterior", None) or model.transform
    arguments = {"u": u} if u is not None and takes_u(method) else {}
    found = method(X, **arguments)
    mean, std = found if isinstance(found, tuple) else (found, None)
    return np.asarray(mean, dtype=np.float64), std


def log_likelihoods(model, X, u):
    """Estimates of log p(x|u) in nats per row, or None where the model has none."""
    method = getattr(model, "score_samples", None)
    if method is None:
        return None
    arguments = {"u": u} if u is not None and takes_u(method) else {}
    return np.asarray(method(X, **arguments), dtype=np.float64)


def agreement(reference, means):
    """Matched correlations of each representation with the reference, ``(R, d)``."""
    return np.array([match_components(reference, mean)[1] for mean in means])


def mutual_agreement(means, masks):
    """Mean matched correlation of each restart with the other ones, ``(R,)``.

    Only a restart's own active components, `masks`, are looked for in the others.
    """
    scores = []
    for r, (mean, mask) in enumerate(zip(means, masks, strict=True)):
        others = [other for k, other in enumerate(means) if k != r]
        found = agreement(mean[:, mask], others) if mask.any() else np.zeros(1)
        scores.append(found.mean())
    return np.array(scores)
