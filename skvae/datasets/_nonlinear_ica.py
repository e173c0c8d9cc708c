"""Nonlinear independent component analysis with nonstationary sources."""

import numpy as np
from scipy.special import expit
from scipy.stats import hypsecant
from sklearn.utils import Bunch, check_random_state

from skvae.datasets._validation import (
    check_count,
    check_number,
    check_option,
    check_range,
    check_vector,
)

_SOURCES = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(scale=np.sqrt(0.5), size=shape),
    "sech": lambda rng, shape: hypsecant.rvs(
        scale=2.0 / np.pi, size=shape, random_state=rng
    ),
}
_ACTIVATIONS = {
    "xtanh": lambda t, slope: np.tanh(t) + slope * t,
    "leaky_relu": lambda t, slope: np.where(t > 0, t, slope * t),
    "sigmoid": lambda t, slope: expit(t),
    "identity": lambda t, slope: t,
}
_CENTERS = ("zero", "uniform", "staircase", "staircase_uniform")
_N_REFERENCE_MATRICES = 10_000
_N_ATTEMPTS = 100_000

_DESCRIPTION = """\
Nonstationary sources mixed by an injective network
---------------------------------------------------
{sources[0]} independent {sources[1]} sources in {n_segments} segments, {shape[0]} rows
in all; in a segment each source has its own standard deviation and centre ({centers}).
They pass through {layers[0]} linear layers with {layers[1]} between them and give
{shape[1]} features. Generated, after Khemakhem et al. (AISTATS 2020).
"""


def make_nonlinear_ica(
    n_samples=40_000,
    *,
    n_segments=40,
    n_sources=2,
    n_features=4,
    n_layers=3,
    source="gaussian",
    modulation_range=(0.5, 3.0),
    centers="zero",
    center_range=(-5.0, 5.0),
    activation="xtanh",
    slope=0.1,
    mixing="uniform",
    max_condition=None,
    reuse_mixing=True,
    noise_std=0.0,
    binarize=False,
    shuffle=False,
    random_state=None,
    return_X_y=True,
):
    r"""Generate nonstationary sources and mix them by an injective network.

    In each segment the sources are independent and have their own standard
    deviations, which is what makes them identifiable from the segment number. The
    data of the identifiable VAE's experiments.

    .. versionadded:: 0.1

    Parameters
    ----------
    n_samples : int, default=40_000
        Rows in all. Segments get equally many, up to one.

    n_segments : int, default=40
        Segments, the distinct values of `u`.

    n_sources : int, default=2
        Independent sources.

    n_features : int, default=4
        Observed features, at least `n_sources`.

    n_layers : int, default=3
        Linear layers of the mixing. One is linear mixing.

    source : {"gaussian", "laplace", "sech"}, default="gaussian"
        Distribution of the sources within a segment, before modulation; all have
        unit variance.

    modulation_range : tuple of (float, float), default=(0.5, 3.0)
        Standard deviations of sources in segments are uniform in this interval.

    centers : str or array-like of shape (n_segments, n_sources), default="zero"
        One of "zero", "uniform", "staircase", "staircase_uniform".
        Means of sources in segments. "uniform" draws from `center_range`;
        "staircase" gives the first source the means 0, 3, 6, ... in random order
        and the others 0, or uniform in (-1, 1) with "staircase_uniform".

    center_range : tuple of (float, float), default=(-5.0, 5.0)
        Interval of the centres. Used by `centers="uniform"` only.

    activation : {"xtanh", "leaky_relu", "sigmoid", "identity"}, default="xtanh"
        Applied between layers, not after the last; "xtanh" is
        `tanh(t) + slope * t`.

    slope : float, default=0.1
        Slope of the linear part of "xtanh", or of the negative side of
        "leaky_relu"; positive.

    mixing : {"uniform", "orthogonal"}, default="uniform"
        Matrices with uniform entries and columns of unit norm, or with orthonormal
        rows.

    max_condition : float, default=None
        Uniform matrices are drawn until the condition number is at most this. None
        takes the lower quartile of 10,000 random matrices.

    reuse_mixing : bool, default=True
        Use one square matrix in every layer (after a first rectangular one if
        `n_features` differs from `n_sources`), as in the published data.

    noise_std : float, default=0.0
        Standard deviation of Gaussian noise added to the features.

    binarize : bool, default=False
        Draw 0 or 1 with the features as logits.

    shuffle : bool, default=False
        Permute the rows, which otherwise come segment by segment.

    random_state : int, RandomState instance or None, default=None
        Decides everything that is drawn. The mixing, standard deviations and
        centres of an int do not change with `n_samples`.
        See :term:`Glossary <random_state>`.

    return_X_y : bool, default=True
        Return `(X, u)` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch` if `return_X_y` is False
        With the attributes

        data : ndarray of shape (n_samples, n_features)
            The features.
        u : ndarray of shape (n_samples,), dtype=int64
            Segment number.
        sources : ndarray of shape (n_samples, n_sources)
            True sources.
        mixing : list of ndarray
            One matrix per layer; rows are multiplied from the left.
        modulation : ndarray of shape (n_segments, n_sources)
            Standard deviation of each source in each segment.
        centers : ndarray of shape (n_segments, n_sources)
            Mean of each source in each segment.
        DESCR : str
            Description.

    (X, u) : tuple if `return_X_y` is True
        The features and the segment numbers.

    Raises
    ------
    ValueError
        If an option is unknown, a number is out of its range, there are fewer
        features than sources, or no matrix is well enough conditioned.

    See Also
    --------
    make_linear_gaussian : Linear mixing with an exact likelihood.
    skvae.metrics.mean_correlation_score : Were the sources found.

    Notes
    -----
    .. math:: s_i = \sigma_{u,i}\, \epsilon_i + c_{u,i}, \qquad
              x = h(\cdots h(s A_1) A_2 \cdots) A_L

    The published configurations are `n_sources=5, n_features=5` (and 2 and 4 in
    figures) with the other defaults. The published "sech" noise has standard
    deviation :math:`\pi / 2`; here it is 1, like the others. With centres other
    than zero a prior must learn its mean; with centres alone (a constant
    modulation) the sources are not identifiable beyond a linear map.

    References
    ----------
    .. [1] I. Khemakhem, D. P. Kingma, R. P. Monti, A. Hyvarinen, "Variational
           Autoencoders and Nonlinear ICA: A Unifying Framework", AISTATS 2020,
           arXiv:1907.04809.
    .. [2] A. Hyvarinen, H. Morioka, "Unsupervised Feature Extraction by
           Time-Contrastive Learning and Nonlinear ICA", NIPS 2016,
           arXiv:1605.06336.

    Examples
    --------
    >>> from skvae.datasets import make_nonlinear_ica
    >>> X, u = make_nonlinear_ica(400, n_segments=8, random_state=0)
    >>> X.shape, int(u.max())
    ((400, 4), 7)
    >>> data = make_nonlinear_ica(400, n_segments=8, random_state=0, return_X_y=False)
    >>> [A.shape for A in data.mixing]
    [(2, 4), (4, 4), (4, 4)]
    """
    _check_sizes(n_samples, n_segments, n_sources, n_features, n_layers)
    check_option("source", source, _SOURCES)
    check_option("activation", activation, _ACTIVATIONS)
    check_number("slope", slope, strict=True)
    check_number("noise_std", noise_std)
    modulation_range = check_range("modulation_range", modulation_range)
    check_number("modulation_range[0]", modulation_range[0], strict=True)

    rng = check_random_state(random_state)
    shapes = [(n_sources, n_features)] + [(n_features, n_features)] * (n_layers - 1)
    matrices = _draw_mixing(rng, shapes, mixing, max_condition, reuse_mixing)
    modulation = rng.uniform(*modulation_range, size=(n_segments, n_sources))
    means = _draw_centers(rng, centers, center_range, modulation.shape)

    u = np.arange(n_samples, dtype=np.int64) * n_segments // n_samples
    sources = _SOURCES[source](rng, (n_samples, n_sources)) * modulation[u] + means[u]
    X = _mix(sources, matrices, lambda t: _ACTIVATIONS[activation](t, slope))
    X = _observe(rng, X, noise_std, binarize)
    if shuffle:
        order = rng.permutation(n_samples)
        X, u, sources = X[order], u[order], sources[order]
    if return_X_y:
        return X, u
    return Bunch(
        data=X,
        u=u,
        sources=sources,
        mixing=matrices,
        modulation=modulation,
        centers=means,
        DESCR=_DESCRIPTION.format(
            shape=X.shape,
            sources=(n_sources, source),
            n_segments=n_segments,
            centers=centers if isinstance(centers, str) else "given",
            layers=(n_layers, activation),
        ),
    )


def _check_sizes(n_samples, n_segments, n_sources, n_features, n_layers):
    check_count("n_segments", n_segments)
    check_count("n_samples", n_samples, n_segments)
    check_count("n_sources", n_sources)
    check_count("n_features", n_features)
    check_count("n_layers", n_layers)
    if n_features < n_sources:
        raise ValueError(
            f"n_features={n_features} is smaller than n_sources={n_sources}: the "
            "mixing would not be injective and the sources could not be recovered."
        )


def _draw_mixing(rng, shapes, mixing, max_condition, reuse_mixing):
    """Return one matrix per shape, drawing equal shapes once if they are reused."""
    check_option("mixing", mixing, ("uniform", "orthogonal"))
    if max_condition is not None:
        check_number("max_condition", max_condition, minimum=1.0)
    matrices = []
    drawn = {}
    for shape in shapes:
        if reuse_mixing and shape in drawn:
            matrices.append(drawn[shape])
            continue
        if mixing == "orthogonal":
            matrix = _orthonormal_rows(rng, shape)
        else:
            matrix = _well_conditioned(rng, shape, max_condition)
        drawn[shape] = matrix
        matrices.append(matrix)
    return matrices


def _orthonormal_rows(rng, shape):
    basis, triangle = np.linalg.qr(rng.uniform(-1.0, 1.0, size=shape[::-1]))
    return (basis * np.sign(np.diagonal(triangle))).T


def _unit_columns(rng, shape, n_matrices):
    matrices = rng.uniform(-1.0, 1.0, size=(n_matrices, *shape))
    return matrices / np.linalg.norm(matrices, axis=1, keepdims=True)


def _well_conditioned(rng, shape, max_condition):
    """Draw uniform matrices with unit columns until one is well conditioned."""
    if shape[0] == 1:
        return _unit_columns(rng, shape, 1)[0]
    if max_condition is None:
        reference = _unit_columns(rng, shape, _N_REFERENCE_MATRICES)
        max_condition = np.percentile(np.linalg.cond(reference), 25)
    for _ in range(_N_ATTEMPTS):
        matrix = _unit_columns(rng, shape, 1)[0]
        if np.linalg.cond(matrix) <= max_condition:
            return matrix
    raise ValueError(
        f"None of {_N_ATTEMPTS} random {shape[0]} x {shape[1]} matrices has a "
        f"condition number of at most max_condition={max_condition}; raise it, or "
        "use mixing='orthogonal'."
    )


def _draw_centers(rng, centers, center_range, shape):
    if not isinstance(centers, str):
        means = check_vector("centers", centers)
        if means.shape != shape:
            raise ValueError(
                "centers must have shape (n_segments, n_sources) = "
                f"{shape}; got {means.shape}."
            )
        return means
    check_option("centers", centers, _CENTERS)
    means = np.zeros(shape)
    if centers == "uniform":
        return rng.uniform(*check_range("center_range", center_range), size=shape)
    if centers.startswith("staircase"):
        means[:, 0] = 3.0 * rng.permutation(shape[0])
    if centers == "staircase_uniform":
        means[:, 1:] = rng.uniform(-1.0, 1.0, size=(shape[0], shape[1] - 1))
    return means


def _mix(sources, matrices, activation):
    hidden = sources @ matrices[0]
    for matrix in matrices[1:]:
        hidden = activation(hidden) @ matrix
    return hidden


def _observe(rng, X, noise_std, binarize):
    if noise_std > 0:
        X = X + noise_std * rng.standard_normal(X.shape)
    if binarize:
        X = (rng.uniform(size=X.shape) < expit(X)).astype(np.float64)
    return X
