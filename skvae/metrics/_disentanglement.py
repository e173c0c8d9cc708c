"""Whether one latent stands for one factor of variation.

All three scores need the true factors. A factor is either discrete (a label or a
level) or continuous; discrete factors are classified, continuous ones regressed.
"""

import numbers

import numpy as np
from scipy.stats import entropy
from sklearn.utils import Bunch, check_array, check_random_state, check_scalar

from skvae.metrics._validation import check_option, check_truth_and_latents

_MOST_LEVELS = 20


def mutual_information_gap(
    factors, Z, *, n_bins=20, strategy="uniform", discrete_factors="auto"
):
    r"""Compute the mutual information gap (MIG) of latents and factors.

    For each factor, the difference between the two latents that know most about it,
    as a fraction of what there is to know.

    .. versionadded:: 0.1

    Parameters
    ----------
    factors : array-like of shape (n_samples, n_factors)
        True factors as numbers; labels must be encoded. No factor may be constant.

    Z : array-like of shape (n_samples, n_components)
        Latents, usually posterior means.

    n_bins : int, default=20
        Bins per latent and per continuous factor.

    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width, as the published programs use, or of equal count, which
        heavy tails do not spoil.

    discrete_factors : bool, array-like of shape (n_factors,) or "auto", default="auto"
        Which factors are discrete; the others are binned. "auto" takes those with
        at most 20 distinct values.

    Returns
    -------
    float
        Between 0 and 1; higher is better.

    Raises
    ------
    ValueError
        If rows disagree, a value is not finite, a factor is constant, or an option
        is unknown.

    See Also
    --------
    dci_score : Also looks at latents that share a factor.
    sap_score : The same gap with prediction in place of information.

    Notes
    -----
    .. math:: \mathrm{MIG} = \frac1F \sum_k \frac{1}{H(v_k)} \Bigl(
              I(z_{j(k)}; v_k) - \max_{j \ne j(k)} I(z_j; v_k) \Bigr)

    with :math:`j(k)` the latent that knows most about factor k. Information and
    entropy are plug-in values in nats from the histogram; the paper integrates over
    the posterior instead. With a single latent the runner-up knows nothing.

    *When it misleads.* A factor spread over two latents (an angle as sine and
    cosine, or any rotation) scores near 0 however good the representation is, which
    is the usual reason for a tiny value beside convincing traversals. Plug-in
    information of independent variables is about `(bins - 1) * (levels - 1) / (2 n)`
    nats, so few rows raise both terms. The value changes with `n_bins`. Latents that
    encode two factors at once are not penalised.

    References
    ----------
    .. [1] R. T. Q. Chen, X. Li, R. Grosse, D. Duvenaud, "Isolating Sources of
           Disentanglement in Variational Autoencoders", NeurIPS 2018,
           arXiv:1802.04942, section 4.
    .. [2] F. Locatello et al., "Challenging Common Assumptions in the Unsupervised
           Learning of Disentangled Representations", ICML 2019, arXiv:1811.12359
           (the histogram with 20 bins).

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import mutual_information_gap
    >>> factors = np.indices((4, 4)).reshape(2, -1).T
    >>> round(mutual_information_gap(factors, factors[:, ::-1] * [1.0, -2.0]), 6)
    1.0
    >>> round(mutual_information_gap(factors, factors @ [[1, 4], [4, 1]]), 6)
    0.0
    """
    from sklearn.metrics import mutual_info_score

    factors, Z = check_truth_and_latents(factors, Z, name="factors")
    check_scalar(n_bins, "n_bins", numbers.Integral, min_val=2)
    check_option("strategy", strategy, ("uniform", "quantile"))
    discrete = _which_are_discrete(factors, discrete_factors)
    codes = [_bin(column, n_bins, strategy) for column in Z.T]
    gaps = []
    for factor, is_discrete in zip(factors.T, discrete, strict=True):
        levels = _levels(factor) if is_discrete else _bin(factor, n_bins, strategy)
        information = [mutual_info_score(levels, code) for code in codes]
        runner_up, best = np.sort([0.0, *information])[-2:]
        gaps.append((best - runner_up) / mutual_info_score(levels, levels))
    return float(np.clip(np.mean(gaps), 0.0, 1.0))


def dci_score(
    factors,
    Z,
    *,
    predictor="gradient_boosting",
    discrete_factors="auto",
    random_state=None,
):
    r"""Compute disentanglement, completeness and informativeness (DCI).

    Each factor is predicted from all latents; the importances of the latents say
    whether a latent serves one factor and whether a factor needs one latent.

    .. versionadded:: 0.1

    Parameters
    ----------
    factors : array-like of shape (n_samples, n_factors)
        True factors as numbers; labels must be encoded. No factor may be constant.

    Z : array-like of shape (n_samples, n_components)
        Latents, usually posterior means.

    predictor : {"gradient_boosting", "lasso"}, default="gradient_boosting"
        Boosted trees with their impurity importances, or linear models with an L1
        penalty and the absolute weights of standardised latents: cross-validated
        lasso for continuous, a linear support vector machine for discrete factors.

    discrete_factors : bool, array-like of shape (n_factors,) or "auto", default="auto"
        Which factors are discrete. "auto" takes those with at most 20 distinct
        values.

    random_state : int, RandomState instance or None, default=None
        Decides the halves and the predictors. Pass an int for reproducible
        results. See :term:`Glossary <random_state>`.

    Returns
    -------
    :class:`~sklearn.utils.Bunch`
        With the attributes

        disentanglement : float
            Between 0 and 1; 1 if each used latent serves a single factor.
        completeness : float
            Between 0 and 1; 1 if each factor is served by a single latent.
        informativeness : float
            Mean score on held-out rows, at most 1: R2 for continuous, accuracy for
            discrete factors.
        importance : ndarray of shape (n_components, n_factors)
            Relative importances; each column sums to 1, or to 0 if unused.

    Raises
    ------
    ValueError
        If rows disagree, a value is not finite, a factor is constant in the half
        used for fitting, an option is unknown, or there are fewer than 20 rows.

    See Also
    --------
    mutual_information_gap : Needs no predictor.
    mean_correlation_score : For continuous sources.

    Notes
    -----
    With importances :math:`R_{ij}` of latent i for factor j, normalised over each
    column, and F factors and K latents,

    .. math::

        D = \sum_i \rho_i \Bigl(1 - H_F(R_{i\cdot} / \textstyle\sum_j R_{ij})\Bigr),
        \quad \rho_i = \frac{\sum_j R_{ij}}{\sum_{ij} R_{ij}}, \qquad
        C = \frac1F \sum_j \bigl(1 - H_K(R_{\cdot j})\bigr)

    with entropies in base F and K. The paper reports a prediction error as
    informativeness; here it is a score, so that higher is better throughout. Half
    the rows, chosen at random, fit the predictors; the other half judges them.

    *When it misleads.* Disentanglement and completeness of factors that cannot be
    predicted are the structure of noise: look at informativeness first, and compare
    accuracy with the share of the commonest level. Redundant latents share
    importance arbitrarily. The two predictors answer differently, and trees favour
    latents with many distinct values, so scores compare within one predictor only.

    References
    ----------
    .. [1] C. Eastwood, C. K. I. Williams, "A Framework for the Quantitative
           Evaluation of Disentangled Representations", ICLR 2018,
           https://openreview.net/forum?id=By-7dz-AZ, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import dci_score
    >>> factors = np.random.RandomState(0).uniform(size=(400, 2))
    >>> result = dci_score(factors, 3.0 * factors, predictor="lasso", random_state=0)
    >>> round(result.disentanglement, 1), round(result.completeness, 1)
    (1.0, 1.0)
    >>> round(result.informativeness, 1)
    1.0
    """
    factors, Z = check_truth_and_latents(factors, Z, name="factors", min_rows=20)
    check_option("predictor", predictor, ("gradient_boosting", "lasso"))
    discrete = _which_are_discrete(factors, discrete_factors)
    generator = check_random_state(random_state)
    fit, test = _halves(len(Z), generator)
    Z = _standardise(Z, fit)
    importance = np.zeros((Z.shape[1], factors.shape[1]))
    scores = []
    for j, is_discrete in enumerate(discrete):
        target = _target(factors[:, j], fit, is_discrete, j)
        model = _dci_model(predictor, is_discrete, generator).fit(Z[fit], target[fit])
        importance[:, j] = _importance(model)
        scores.append(model.score(Z[test], target[test]))
    totals = importance.sum(axis=0)
    importance /= np.where(totals > 0, totals, 1.0)
    weight = importance.sum(axis=1) / max(importance.sum(), np.finfo(float).tiny)
    return Bunch(
        disentanglement=float(weight @ _concentration(importance)),
        completeness=float(_concentration(importance.T).mean()),
        informativeness=float(np.mean(scores)),
        importance=importance,
    )


def sap_score(factors, Z, *, discrete_factors="auto", random_state=None):
    r"""Compute the separated attribute predictability (SAP) of the latents.

    Each factor is predicted from each latent alone; the score is the mean gap
    between the best and the second-best latent.

    .. versionadded:: 0.1

    Parameters
    ----------
    factors : array-like of shape (n_samples, n_factors)
        True factors as numbers; labels must be encoded. No factor may be constant.

    Z : array-like of shape (n_samples, n_components)
        Latents, usually posterior means.

    discrete_factors : bool, array-like of shape (n_factors,) or "auto", default="auto"
        Which factors are discrete. "auto" takes those with at most 20 distinct
        values.

    random_state : int, RandomState instance or None, default=None
        Decides the halves of the rows for discrete factors. Pass an int for
        reproducible results. See :term:`Glossary <random_state>`.

    Returns
    -------
    float
        Between 0 and 1; higher is better.

    Raises
    ------
    ValueError
        If rows disagree, a value is not finite, a factor is constant (in the half
        used for fitting), or there are fewer than 20 rows.

    See Also
    --------
    mutual_information_gap : The same gap in information.
    dci_score : Predicts from all latents at once.

    Notes
    -----
    A continuous factor is scored by its squared correlation with the latent, on all
    rows. A discrete one is scored by the balanced accuracy of a linear support
    vector machine (C = 0.01, balanced classes) on the standardised latent, fitted on
    a random half of the rows and judged on the other. With a single latent the
    runner-up is what no latent reaches: 0, or one over the number of levels.

    *When it misleads.* Both scores are linear: a latent that encodes a factor
    perfectly but not monotonically counts as ignorant, and a machine on one
    coordinate can single out only the lowest and the highest of several ordered
    levels, so declare such factors continuous. A factor spread over two latents
    scores 0. Accuracy starts at chance, so even a perfect discrete factor has a gap
    below 1.

    References
    ----------
    .. [1] A. Kumar, P. Sattigeri, A. Balakrishnan, "Variational Inference of
           Disentangled Latent Concepts from Unlabeled Observations", ICLR 2018,
           arXiv:1711.00848, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import sap_score
    >>> factors = np.random.RandomState(0).uniform(size=(400, 2))
    >>> round(sap_score(factors, -2.0 * factors), 1)
    1.0
    """
    factors, Z = check_truth_and_latents(factors, Z, name="factors", min_rows=20)
    discrete = _which_are_discrete(factors, discrete_factors)
    fit, test = _halves(len(Z), check_random_state(random_state))
    gaps = []
    for j, is_discrete in enumerate(discrete):
        if is_discrete:
            levels = _target(factors[:, j], fit, True, j)
            floor = 1.0 / (levels.max() + 1)
            scores = [
                _separability(z, levels, fit, test) for z in _standardise(Z, fit).T
            ]
        else:
            floor = 0.0
            everything = np.arange(len(Z))
            standard = _standardise(factors[:, [j]], everything)
            scores = (
                (standard * _standardise(Z, everything)).mean(axis=0) ** 2
            ).tolist()
        runner_up, best = np.sort([floor, *scores])[-2:]
        gaps.append(best - runner_up)
    return float(np.clip(np.mean(gaps), 0.0, 1.0))


def _which_are_discrete(factors, discrete_factors):
    """Return one bool per factor; refuse constant factors."""
    constant = np.flatnonzero(np.ptp(factors, axis=0) == 0)
    if constant.size:
        raise ValueError(
            f"factors has constant columns {constant.tolist()}; nothing can be said "
            "about them, drop them."
        )
    if isinstance(discrete_factors, str):
        check_option("discrete_factors", discrete_factors, ("auto",))
        return [len(np.unique(column)) <= _MOST_LEVELS for column in factors.T]
    mask = check_array(np.atleast_1d(discrete_factors), dtype=None, ensure_2d=False)
    if mask.dtype != bool or mask.size not in (1, factors.shape[1]):
        raise ValueError(
            "discrete_factors must be 'auto', a bool or one bool per factor; got "
            f"{discrete_factors!r}."
        )
    return np.broadcast_to(mask, factors.shape[1]).tolist()


def _levels(column):
    return np.unique(column, return_inverse=True)[1]


def _bin(column, n_bins, strategy):
    """Give each value the number of its bin."""
    if strategy == "quantile":
        edges = np.quantile(column, np.linspace(0.0, 1.0, n_bins + 1))
    else:
        edges = np.linspace(column.min(), column.max(), n_bins + 1)
    return np.searchsorted(np.unique(edges[1:-1]), column, side="right")


def _halves(n_samples, generator):
    order = generator.permutation(n_samples)
    return order[: n_samples // 2], order[n_samples // 2 :]


def _standardise(A, fit):
    """Scale to zero mean and unit variance over the rows in `fit`."""
    constant = np.ptp(A[fit], axis=0) <= 1e-12 * np.abs(A[fit]).max(axis=0)
    spread = np.where(constant, 1.0, A[fit].std(axis=0))
    return np.where(constant, 0.0, (A - A[fit].mean(axis=0)) / spread)


def _target(column, fit, is_discrete, j):
    """Return levels or the standardised column, if it varies where it is fitted."""
    if np.ptp(column[fit]) == 0:
        raise ValueError(
            f"factors column {j} is constant in the {len(fit)} rows used for fitting; "
            "pass more rows or drop it."
        )
    if is_discrete:
        return _levels(column)
    return _standardise(column[:, np.newaxis], fit)[:, 0]


def _dci_model(predictor, is_discrete, generator):
    # Here and below: every worker process would wait for these imports otherwise.
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
    from sklearn.linear_model import LassoCV
    from sklearn.svm import LinearSVC

    seed = generator.randint(np.iinfo(np.int32).max)
    if predictor == "gradient_boosting":
        boosting = (
            GradientBoostingClassifier if is_discrete else GradientBoostingRegressor
        )
        return boosting(random_state=seed)
    if is_discrete:
        return LinearSVC(penalty="l1", dual=False, max_iter=10_000, random_state=seed)
    return LassoCV(cv=5, max_iter=10_000, random_state=seed)


def _importance(model):
    if hasattr(model, "feature_importances_"):
        return model.feature_importances_
    return np.abs(np.atleast_2d(model.coef_)).sum(axis=0)


def _concentration(importance):
    """Return one minus the normalised entropy of each row; 0 for an unused row."""
    n_columns = importance.shape[1]
    used = importance.sum(axis=1) > 0
    concentration = np.zeros(len(importance))
    concentration[used] = 1.0
    if n_columns > 1:
        concentration[used] -= entropy(importance[used], base=n_columns, axis=1)
    return np.clip(concentration, 0.0, 1.0)


def _separability(z, levels, fit, test):
    """Return the balanced accuracy of a linear machine on one latent."""
    from sklearn.svm import LinearSVC

    machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, random_state=0)
    predicted = machine.fit(z[fit, np.newaxis], levels[fit]).predict(
        z[test, np.newaxis]
    )
    right = predicted == levels[test]
    recalls = [right[levels[test] == level].mean() for level in np.unique(levels[test])]
    return float(np.mean(recalls))
