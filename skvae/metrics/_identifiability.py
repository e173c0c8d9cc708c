"""Agreement of latents with true sources or with each other.

A *strong* score asks for equality up to permutation and scaling of single
components, a *weak* one for equality up to a linear map.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from sklearn.utils import check_random_state

from skvae.metrics._validation import check_option, check_truth_and_latents

_CORRELATIONS = ("pearson", "spearman")


def mean_correlation_score(
    sources, Z, *, method="pearson", mode="strong", random_state=None
):
    r"""Compute the mean correlation coefficient (MCC) of sources and latents.

    Latents are matched one to one with sources so that the sum of absolute
    correlations is largest; the score is their mean over the sources.

    .. versionadded:: 0.1

    Parameters
    ----------
    sources : array-like of shape (n_samples, n_sources)
        True sources.

    Z : array-like of shape (n_samples, n_components)
        Estimated latents, for instance posterior means.

    method : {"pearson", "spearman"}, default="pearson"
        Correlation coefficient. Spearman's is blind to monotonic distortions of
        single components.

    mode : {"strong", "weak"}, default="strong"
        "strong" compares the columns as they are. "weak" first fits the sources by
        least squares on `[Z, 1]` with a random half of the rows and correlates the
        predictions with the sources on the other half.

    random_state : int, RandomState instance or None, default=None
        Decides the halves; used by "weak" only. Pass an int for reproducible
        results. See :term:`Glossary <random_state>`.

    Returns
    -------
    float
        Between 0 and 1; higher is better.

    Raises
    ------
    ValueError
        If rows disagree, a value is not finite, an option is unknown, or "weak" is
        asked with fewer than `2 * (n_components + 2)` rows.

    See Also
    --------
    match_components : The matching itself, to compare two fits.
    linear_r2_score : Explained variance of the linear map.

    Notes
    -----
    .. math:: \mathrm{MCC} = \frac1d \max_\pi \sum_i
              \bigl|\mathrm{corr}(s_i, z_{\pi(i)})\bigr|

    If the numbers of columns differ, `min(n_sources, n_components)` pairs are
    matched and the sum is still divided by the number of sources. A constant
    column correlates with nothing, so its entry is 0. In "weak" mode prediction i
    belongs to source i and no matching is needed.

    Theory decides which mode to look at: "strong" tests identifiability up to
    permutation and componentwise maps, "weak" up to an invertible linear map. Weak
    is at least strong up to sampling error.

    *When it misleads.* The best matching of pure noise is not 0: independent columns
    score 0.15 with 5 columns and 100 rows, 0.09 with 20 and 500. Compare with
    shuffled rows. Correlated sources raise it for any latent that follows one of
    them. Invertible but non-monotonic distortion lowers it although nothing was
    lost. Published values use one posterior *sample* of the *training* data;
    posterior means score higher. Averages over small batches are biased upwards.

    References
    ----------
    .. [1] A. Hyvarinen, H. Morioka, "Unsupervised Feature Extraction by
           Time-Contrastive Learning and Nonlinear ICA", NIPS 2016,
           arXiv:1605.06336 (where the score comes from).
    .. [2] I. Khemakhem, D. P. Kingma, R. P. Monti, A. Hyvarinen, "Variational
           Autoencoders and Nonlinear ICA: A Unifying Framework", AISTATS 2020,
           arXiv:1907.04809, section on experiments.
    .. [3] I. Khemakhem, R. P. Monti, D. P. Kingma, A. Hyvarinen, "ICE-BeeM:
           Identifiable Conditional Energy-Based Deep Models Based on Nonlinear
           ICA", NeurIPS 2020, arXiv:2002.11537 (weak and strong).

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import mean_correlation_score
    >>> sources = np.random.RandomState(0).laplace(size=(500, 2))
    >>> round(mean_correlation_score(sources, sources[:, ::-1] * [-2.0, 3.0]), 6)
    1.0
    >>> Z = sources @ [[1.0, 1.0], [1.0, -1.0]]
    >>> mean_correlation_score(sources, Z) < 0.8
    True
    >>> round(mean_correlation_score(sources, Z, mode="weak", random_state=0), 6)
    1.0
    """
    sources, Z = check_truth_and_latents(sources, Z, name="sources")
    check_option("method", method, _CORRELATIONS)
    check_option("mode", mode, ("strong", "weak"))
    if mode == "weak":
        held_out, predicted = _held_out_linear_fit(sources, Z, random_state)
        matched = np.diagonal(_absolute_correlations(held_out, predicted, method))
    else:
        correlations = _absolute_correlations(sources, Z, method)
        matched = correlations[linear_sum_assignment(correlations, maximize=True)]
    return float(matched.sum() / sources.shape[1])


def match_components(Z_reference, Z, *, method="pearson"):
    """Match the components of two representations of the same rows.

    Restarts of one model order and sign their components freely; this finds the
    order in which the second representation agrees best with the first.

    .. versionadded:: 0.1

    Parameters
    ----------
    Z_reference : array-like of shape (n_samples, n_reference)
        Latents that keep their order.

    Z : array-like of shape (n_samples, n_components)
        Latents to be matched, with at least as many columns.

    method : {"pearson", "spearman"}, default="pearson"
        Correlation coefficient.

    Returns
    -------
    indices : ndarray of shape (n_reference,), dtype=int
        Column of `Z` for each reference column, without repetition, so that
        `Z[:, indices]` is aligned with `Z_reference` up to sign and scale.

    correlations : ndarray of shape (n_reference,)
        Absolute correlation of each matched pair, between 0 and 1.

    Raises
    ------
    ValueError
        If rows disagree, a value is not finite, `method` is unknown, or `Z` has
        fewer columns than `Z_reference`.

    See Also
    --------
    mean_correlation_score : The mean of these correlations against true sources.

    Notes
    -----
    The assignment problem is solved exactly for the sum of absolute correlations.
    Constant columns correlate 0 and take whatever columns are left.

    *When it misleads.* Agreement between restarts shows that something is
    reproducible, not that it is true: restarts that share data, architecture and
    bias can agree on a wrong answer, and collapsed components "agree" by having
    nothing to disagree about (their correlations are then arbitrary or 0).

    References
    ----------
    .. [1] I. Khemakhem, D. P. Kingma, R. P. Monti, A. Hyvarinen, "Variational
           Autoencoders and Nonlinear ICA: A Unifying Framework", AISTATS 2020,
           arXiv:1907.04809, section on experiments (the matching).

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import match_components
    >>> Z = np.random.RandomState(0).normal(size=(100, 3))
    >>> indices, correlations = match_components(Z, -Z[:, [2, 0, 1]])
    >>> indices
    array([1, 2, 0])
    >>> correlations.round(6)
    array([1., 1., 1.])
    """
    Z_reference, Z = check_truth_and_latents(Z_reference, Z, name="Z_reference")
    check_option("method", method, _CORRELATIONS)
    if Z.shape[1] < Z_reference.shape[1]:
        raise ValueError(
            f"Z has {Z.shape[1]} columns, fewer than the {Z_reference.shape[1]} of "
            "Z_reference; swap the arguments."
        )
    correlations = _absolute_correlations(Z_reference, Z, method)
    rows, columns = linear_sum_assignment(correlations, maximize=True)
    return columns, correlations[rows, columns]


def linear_r2_score(sources, Z, *, random_state=None):
    r"""Compute the held-out variance of the sources that is linear in the latents.

    The sources are fitted by least squares on `[Z, 1]` with a random half of the
    rows; the score is the mean coefficient of determination on the other half.

    .. versionadded:: 0.1

    Parameters
    ----------
    sources : array-like of shape (n_samples, n_sources)
        True sources.

    Z : array-like of shape (n_samples, n_components)
        Estimated latents.

    random_state : int, RandomState instance or None, default=None
        Decides the halves. Pass an int for reproducible results.
        See :term:`Glossary <random_state>`.

    Returns
    -------
    float
        At most 1; 0 is as good as the mean, and negative is worse.

    Raises
    ------
    ValueError
        If rows disagree, a value is not finite, or there are fewer than
        `2 * (n_components + 2)` rows.

    See Also
    --------
    mean_correlation_score : With `mode="weak"`, the correlation form.

    Notes
    -----
    .. math:: R^2 = \frac1d \sum_i \Bigl(1 -
              \frac{\sum_n (s_{ni} - \hat s_{ni})^2}
                   {\sum_n (s_{ni} - \bar s_i)^2}\Bigr)

    with :math:`\bar s_i` the mean over the held-out half. A source that is constant
    there scores 0.

    *When it misleads.* More latents than sources raise it without any of them
    being a source: raw features with a linear mixing score 1. It cannot tell an
    identified model from a rotated one; that is what the strong mean correlation
    is for. Variances that change between segments weight the loudest segments most.

    References
    ----------
    .. [1] I. Khemakhem, D. P. Kingma, R. P. Monti, A. Hyvarinen, "Variational
           Autoencoders and Nonlinear ICA: A Unifying Framework", AISTATS 2020,
           arXiv:1907.04809, theorem 1 (equality up to a linear map).

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import linear_r2_score
    >>> sources = np.random.RandomState(0).laplace(size=(500, 2))
    >>> Z = sources @ [[1.0, 1.0], [1.0, -1.0]] + 3.0
    >>> round(linear_r2_score(sources, Z, random_state=0), 6)
    1.0
    >>> linear_r2_score(sources, Z[:, :1], random_state=0) < 0.7
    True
    """
    sources, Z = check_truth_and_latents(sources, Z, name="sources")
    held_out, predicted = _held_out_linear_fit(sources, Z, random_state)
    residual = ((held_out - predicted) ** 2).sum(axis=0)
    total = ((held_out - held_out.mean(axis=0)) ** 2).sum(axis=0)
    varies = ~_is_constant(held_out)
    explained = np.zeros(len(total))
    explained[varies] = 1.0 - residual[varies] / total[varies]
    return float(explained.mean())


def _held_out_linear_fit(sources, Z, random_state):
    """Fit sources on [Z, 1] with one half; return the other half and its fit."""
    n_samples, n_components = Z.shape
    if n_samples < 2 * (n_components + 2):
        raise ValueError(
            f"A linear fit on half of {n_samples} rows cannot be judged for "
            f"{n_components} components; at least {2 * (n_components + 2)} rows "
            "are needed."
        )
    order = check_random_state(random_state).permutation(n_samples)
    fit, test = order[: n_samples // 2], order[n_samples // 2 :]
    center = Z[fit].mean(axis=0)
    scale = np.where(_is_constant(Z[fit]), 1.0, Z[fit].std(axis=0))
    standardised = (Z - center) / scale
    offset = sources[fit].mean(axis=0)
    weights = np.linalg.lstsq(standardised[fit], sources[fit] - offset, rcond=None)[0]
    return sources[test], standardised[test] @ weights + offset


def _absolute_correlations(A, B, method):
    """Return the matrix of absolute correlations of the columns of A and B."""
    if method == "spearman":
        A, B = _ranks(A), _ranks(B)
    correlations = np.abs(_normalise(A).T @ _normalise(B))
    return np.minimum(correlations, 1.0)


def _ranks(A):
    """Rank within columns, with rounding noise on a constant column ignored."""
    return np.where(_is_constant(A), 0.0, rankdata(A, axis=0))


def _normalise(A):
    """Centre the columns and scale them to unit norm; constant ones become zero."""
    constant = _is_constant(A)
    centred = A - A.mean(axis=0)
    centred = centred / np.where(constant, 1.0, np.abs(centred).max(axis=0))
    norms = np.where(constant, 1.0, np.linalg.norm(centred, axis=0))
    return np.where(constant, 0.0, centred / norms)


def _is_constant(A):
    """Tell which columns vary by no more than rounding."""
    return np.ptp(A, axis=0) <= 1e-12 * np.abs(A).max(axis=0)
