"""Are the latents reproducible, does u identify them, do they only repeat it."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples, check_is_fitted

from skvae._validation import check_random_state
from skvae.diagnostics._intervals import (
    UNKNOWN,
    chance_agreement,
    difference,
    mean_correlation,
    variance_given_u,
)
from skvae.diagnostics._report import IdentifiabilityReport, PermutedNull
from skvae.diagnostics._restarts import (
    agreement,
    fit_restarts,
    log_likelihoods,
    mutual_agreement,
    posterior,
    takes_u,
)
from skvae.estimators._auxiliary import check_length, is_discrete
from skvae.metrics import active_units

HELD_OUT = 0.25
# More held-out rows than these sharpen no interval that restarts leave wide.
JUDGED_ROWS, SCORED_ROWS = 5000, 500
# A mean correlation below this is no reproduction, however far above chance.
REPRODUCIBLE = 0.9
# Share of a latent's variance, the scale-free form of the usual threshold.
ACTIVE_SHARE = 0.01


def identifiability_report(
    estimator,
    X,
    u=None,
    *,
    n_restarts=8,
    n_permutations=2,
    tolerance=0.5,
    random_state=None,
):
    """Report which latents other restarts find again, and what u has to do with it.

    Clones of the estimator are fitted to three quarters of the rows from several
    random starts, in one batch, and again with u permuted at random. All figures are
    taken on the other quarter.

    Parameters
    ----------
    estimator : estimator of this package
        Fitted or not; it is cloned and never changed. If it is fitted, its own
        components are the ones that restarts must find again.
    X : array-like of shape (n_samples, n_features)
        Data, in the form that `estimator.fit` takes.
    u : array-like of shape (n_samples,) or (n_samples, n_columns), default=None
        Auxiliary variable. An estimator that takes none is still examined for
        latents that only repeat it.
    n_restarts : int, default=8
        Random starts, at least 3. Intervals shorten with more of them.
    n_permutations : int, default=2
        Permutations of u, each fitted with `n_restarts` restarts; 0 leaves the
        comparison out. It is made where u is given and the estimator takes it.
    tolerance : float, default=0.5
        Restarts whose held-out likelihood is further than this below that of the best,
        in nats per row, are set aside: identifiability asks whether models that fit
        equally well agree. Infinity keeps all of them.
    random_state : int, RandomState instance or None, default=None
        Decides the held-out rows, the restarts and the permutations. See
        :term:`Glossary <random_state>`.

    Returns
    -------
    report : IdentifiabilityReport
        Printable, with `verdict` in one sentence and :meth:`to_dict`.

    Raises
    ------
    ValueError
        If there are fewer than 16 rows, too few restarts, a negative number of
        permutations or tolerance, or not one entry of u per row.

    See Also
    --------
    collapse_forecast : Which components will live, before training.
    skvae.metrics.mean_correlation_score : The judge where true sources are known.

    Notes
    -----
    *Consistency* of a component is the mean absolute correlation between its posterior
    means and those of its match in the other restarts (Hungarian matching), with a
    t-interval over the restarts that fit about as well as the best. Matching
    flatters: two components that are rotated at random still correlate 0.90 with
    their matches, so the report gives that level for as many components as are
    active. A component counts as reproducible if its mean is at least 0.9 and beyond
    what 97.5% of random rotations reach, and its interval lies above the chance level.

    *Permuted u*: the same starts fitted with u permuted over the rows keep everything
    but what u says about x. The gaps in log p(x|u) and in consistency are what u
    contributes, with Welch intervals over restarts (and rows). Restarts of one group
    are compared with each other, so the level of the interval for consistency is
    approximate.

    *Given u*: a component that varies over the rows but not among rows of equal u only
    repeats u (conditional collapse, where KL(q(z|x,u) || p(z|u)) is near 0).

    *When it misleads.* Consistency does not prove identifiability: restarts share
    data, architecture and bias, and can agree on a wrong answer; a rotation that
    optimisation never visits looks identified. Inconsistency may be poor optimisation
    instead of lack of identifiability: compare the restarts' `log_likelihoods`. A full
    rank of the L-matrix says little by itself, because a matrix learned from permuted
    u has full rank as well, which the report shows; and the theorems assume infinite
    data and a model that contains the truth. The posterior is given u where u is
    passed, so a component that only repeats u is perfectly consistent. Pearson's
    correlation counts monotonic distortions as disagreement.

    References
    ----------
    Khemakhem, Kingma, Monti, Hyvarinen, "Variational Autoencoders and Nonlinear ICA:
    A Unifying Framework", AISTATS 2020, arXiv:1907.04809 (L-matrix, matching).

    Rice, "Bandwidth Choice for Nonparametric Regression", Annals of Statistics 1984
    (differences of neighbours, for a continuous u).

    Examples
    --------
    >>> import skvae
    >>> from skvae.datasets import make_nonlinear_ica
    >>> X, u = make_nonlinear_ica(400, n_segments=5, random_state=0)
    >>> report = skvae.identifiability_report(
    ...     skvae.iVAE(2, width=16, max_iter=10), X, u, n_restarts=3,
    ...     n_permutations=1, random_state=0)
    >>> report.full_rank, len(report.states)
    (4, 2)
    >>> report.null.log_likelihood_gap.value > 0  # nats per row that u is worth
    True
    """
    n_rows = _num_samples(X)
    _check(n_rows, n_restarts, n_permutations, tolerance)
    rng = check_random_state(random_state)
    discrete = False
    if u is not None:
        check_length(X, u)
        u = np.asarray(u)
        discrete = is_discrete(u, getattr(estimator, "u_type", "auto"))
    train, test = _split(n_rows, u if discrete else None, rng)
    seed = int(rng.randint(2**31 - 1))
    rows = [_safe_indexing(X, train), _safe_indexing(X, test)]
    values = [None, None] if u is None else [u[train], u[test]]
    fits = Fits(estimator, rows, values, n_restarts, seed, tolerance)
    reference, name = fits.models[fits.best], "the best restart"
    others = [k for k in np.flatnonzero(fits.near) if k != fits.best]
    if _is_fitted(estimator):
        reference, name = estimator, "the fitted estimator"
        others = np.flatnonzero(fits.near)
    mean, std = posterior(reference, rows[1], values[1])
    null = None
    if u is not None and takes_u(estimator.fit) and n_permutations:
        null = _null(estimator, rows, values, fits, mean, n_permutations, rng)
    others = [fits.means[k] for k in others]
    judged = _judge(mean, std, others, values[1], discrete, rng)
    found = getattr(reference, "identifiability_", None) or {}
    return IdentifiabilityReport(
        estimator=type(estimator).__name__,
        reference=name,
        n_restarts=n_restarts,
        n_train=len(train),
        n_held_out=len(test),
        theorem=found.get("theorem"),
        assumptions_hold=found.get("holds") if found.get("theorem") else None,
        missing_assumptions=[
            text for text, (fine, _) in found.get("assumptions", {}).items() if not fine
        ],
        rank=fits.figures("l_matrix_rank", "means_rank"),
        full_rank=found.get(
            "l_matrix_full_rank", len(mean.T) if "means_rank" in found else None
        ),
        condition=fits.figures("l_matrix_condition", "means_condition"),
        n_near=int(fits.near.sum()),
        log_likelihoods=(
            None if fits.scores is None else fits.scores.mean(axis=1).tolist()
        ),
        null=null,
        seed=seed,
        **judged,
    )


class Fits:
    """Restarts with their posterior means and log-likelihoods of held-out rows."""

    def __init__(self, estimator, rows, values, n_restarts, seed, tolerance):
        self.models, self.best = fit_restarts(
            estimator, rows[0], values[0], n_restarts, seed
        )
        self.seed, self.tolerance = seed, tolerance
        X, u = rows[1], values[1]
        self.means = [posterior(model, X, u)[0] for model in self.models]
        first = slice(SCORED_ROWS)
        X, u = _safe_indexing(X, first), None if u is None else u[first]
        scores = [log_likelihoods(model, X, u) for model in self.models]
        self.scores = None if scores[0] is None else np.array(scores)
        self.near = np.ones(len(self.models), dtype=bool)
        if self.scores is not None:
            level = self.scores.mean(axis=1)
            self.near = level >= level.max() - tolerance
            self.near[self.best] = True

    def mutual_agreement(self):
        """Agreement of each near-best restart with the others of them."""
        means = [self.means[k] for k in np.flatnonzero(self.near)]
        masks = [active_units(mean).mask for mean in means]
        return mutual_agreement(means, masks) if len(means) > 1 else np.zeros(0)

    def figures(self, *names):
        """A figure of `identifiability_`, one per restart that has it."""
        found = [getattr(m, "identifiability_", None) or {} for m in self.models]
        return [report[n] for report in found for n in names if n in report]


def _null(estimator, rows, values, fits, mean, n_permutations, rng):
    """Fits with u permuted within the training and within the held-out rows."""
    nulls = []
    for _ in range(n_permutations):
        permuted = [value[rng.permutation(len(value))] for value in values]
        # The same starts, so that what differs is u alone.
        found = Fits(
            estimator, rows, permuted, len(fits.models), fits.seed, fits.tolerance
        )
        nulls.append(found)
    own = np.concatenate([null.mutual_agreement() for null in nulls])
    mask = active_units(mean).mask
    means = [null.means[k] for null in nulls for k in np.flatnonzero(null.near)]
    agreements = agreement(mean[:, mask], means) if mask.any() else np.full(1, np.nan)
    gap = None
    if fits.scores is not None:
        with_u = fits.scores[fits.near]
        without = np.concatenate([null.scores[null.near] for null in nulls])
        by_row = with_u.mean(axis=0) - without.mean(axis=0)
        gap = difference(with_u.mean(axis=1), without.mean(axis=1), by_row)
    return PermutedNull(
        n_permutations=n_permutations,
        consistency=mean_correlation(own),
        consistency_gap=difference(fits.mutual_agreement(), own),
        agreement=float(agreements.mean()),
        log_likelihood_gap=gap,
        rank=_joined(nulls, "l_matrix_rank", "means_rank"),
        condition=_joined(nulls, "l_matrix_condition", "means_condition"),
    )


def _joined(nulls, *names):
    return [figure for null in nulls for figure in null.figures(*names)]


def _judge(mean, std, others, u, discrete, rng):
    """What is said about each component of the reference."""
    active = active_units(mean).mask
    n_components = len(active)
    correlations = np.full((len(others), n_components), np.nan)
    consistency = [UNKNOWN] * n_components
    chance, bound = chance_agreement(int(active.sum()), max(len(others), 1), rng)
    reproducible = np.zeros(n_components, dtype=bool)
    if active.any() and others:
        correlations[:, active] = agreement(mean[:, active], others)
    for i in np.flatnonzero(active):
        consistency[i] = mean_correlation(correlations[:, i])
        reproducible[i] = (
            consistency[i].value >= max(REPRODUCIBLE, bound)
            and consistency[i].low > chance
        )
    total = mean.var(axis=0, ddof=1)
    if std is not None:
        total = total + np.square(std).mean(axis=0)
    within = variance_given_u(mean, u, discrete)
    share = within / np.where(total > 0, total, 1.0)
    return {
        "consistency": consistency,
        "correlations": correlations,
        "chance": chance,
        "chance_bound": bound,
        "active": active,
        "active_given_u": active & (share > ACTIVE_SHARE),
        "reproducible": reproducible,
        "variance_given_u": share,
    }


def _check(n_rows, n_restarts, n_permutations, tolerance):
    for name, value, least in (
        ("n_restarts", n_restarts, 3),
        ("n_permutations", n_permutations, 0),
    ):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(
                f"{name} must be an integer, {least} or larger. Got {value!r}."
            )
    if not isinstance(tolerance, Real) or not tolerance >= 0:
        raise ValueError(
            f"tolerance must be a number of nats, 0 or larger. Got {tolerance!r}."
        )
    if n_rows < 16:
        raise ValueError(
            f"{n_rows} rows are too few to hold some out and judge restarts on them; "
            "16 are the least."
        )


def _split(n_rows, categories, rng):
    """Training and held-out row numbers; every category is in the training rows."""
    order = rng.permutation(n_rows)
    n_test = min(round(HELD_OUT * n_rows), JUDGED_ROWS)
    kept = np.zeros(n_rows, dtype=bool)
    if categories is not None:
        first = np.unique(np.ravel(categories)[order], return_index=True)[1]
        kept[first] = True
    test = order[np.flatnonzero(~kept)[:n_test]]
    if len(test) < 4:
        raise ValueError(
            "Nearly every row has a value of u of its own: too few rows share one to "
            "hold some out. Pass a continuous u as floats."
        )
    return np.setdiff1d(np.arange(n_rows), test), test


def _is_fitted(estimator):
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True
