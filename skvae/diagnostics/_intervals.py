"""Intervals over restarts, the chance level of agreement, variance given u."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import ortho_group, t
from sklearn.neighbors import NearestNeighbors

LEVEL = 0.95
ROTATIONS = 400


class Estimate(NamedTuple):
    """A mean with the ends of its 95% interval.

    Attributes
    ----------
    value : float
        The estimate.
    low : float
        Lower end of the interval.
    high : float
        Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def _estimate(value, variances, degrees):
    """A t-interval whose variance is a sum of estimated ones (Satterthwaite)."""
    variances, degrees = np.array(variances), np.array(degrees)
    total = variances.sum()
    if not np.isfinite(total):
        return Estimate(float(value), -np.inf, np.inf)
    if total <= 0:
        return Estimate(float(value), float(value), float(value))
    freedom = total**2 / (variances**2 / degrees).sum()
    half = t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(total)
    return Estimate(float(value), float(value - half), float(value + half))


def _squared_error(values):
    """Estimated variance of the mean; nothing is known of it from one value."""
    return np.var(values, ddof=1) / len(values) if len(values) > 1 else np.inf


def mean_correlation(values):
    """Mean of correlations with restarts, its interval cut to [0, 1]."""
    if len(values) == 0:
        return UNKNOWN
    found = _estimate(np.mean(values), [_squared_error(values)], [len(values) - 1])
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0))


def difference(first, second, rows=None):
    """Difference of the means of two groups of restarts (Welch).

    `rows` are the same difference row by row, where rows were sampled too.
    """
    if len(first) == 0 or len(second) == 0:
        return UNKNOWN
    samples = [first, second] + ([] if rows is None else [rows])
    variances = [_squared_error(sample) for sample in samples]
    degrees = [len(sample) - 1 for sample in samples]
    return _estimate(np.mean(first) - np.mean(second), variances, degrees)


def chance_agreement(n_components, n_restarts, rng):
    """What matching makes of random rotations of equally strong components.

    Returns the mean matched correlation, and the 97.5% quantile of a component's mean
    over `n_restarts`. One component cannot be rotated: (0, 0).
    """
    if n_components < 2:
        return 0.0, 0.0
    matched = np.empty((ROTATIONS, n_components))
    rotations = ortho_group.rvs(n_components, size=ROTATIONS, random_state=rng)
    for k, rotation in enumerate(np.abs(rotations)):
        matched[k] = rotation[linear_sum_assignment(rotation, maximize=True)]
    drawn = rng.randint(ROTATIONS, size=(ROTATIONS, n_restarts))
    means = matched[drawn].mean(axis=1)
    return float(matched.mean()), float(np.quantile(means, 0.5 + LEVEL / 2))


def variance_given_u(means, u, discrete):
    """E[Var(mean | u)] per component, ``(d,)``.

    Pooled variance within the values of a discrete u; half the mean squared
    difference between nearest neighbours in a continuous one (Rice 1984), which is
    too large where u is sparse.
    """
    if u is None:
        return means.var(axis=0, ddof=1)
    if not discrete:
        u = np.asarray(u, dtype=np.float64).reshape(len(means), -1)
        spread = u.std(axis=0)
        u = u / np.where(spread > 0, spread, 1.0)
        nearest = NearestNeighbors(n_neighbors=1).fit(u).kneighbors()[1][:, 0]
        return 0.5 * np.square(means - means[nearest]).mean(axis=0)
    codes = np.unique(np.ravel(u), return_inverse=True)[1]
    counts = np.bincount(codes)
    residuals = means.copy()
    for column in residuals.T:
        column -= (np.bincount(codes, weights=column) / counts)[codes]
    # Values that occur once have no variance to show.
    freedom = max(len(means) - len(counts), 1)
    return np.square(residuals).sum(axis=0) / freedom
