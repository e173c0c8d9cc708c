"""Small generated data sets whose latents and densities are known."""

import numpy as np
from sklearn.utils import Bunch, check_random_state

from skvae.datasets._validation import check_count, check_number, check_vector

_LINEAR_DESCRIPTION = """\
Linear Gaussian latent variables
--------------------------------
{n_samples} rows of {n_features} features: {n_components} standard normal latents times
loadings with orthogonal columns, plus noise of standard deviation {noise_std}. The
posterior and the likelihood are known exactly. Generated (probabilistic PCA).
"""


def make_pinwheel(
    n_samples=1000,
    *,
    n_arms=5,
    radial_std=0.3,
    tangential_std=0.05,
    rate=0.25,
    scale=10.0,
    shuffle=True,
    random_state=None,
):
    r"""Generate a pinwheel of curved clusters in the plane.

    Each arm is an elongated Gaussian, twisted more the further out a point lies.
    The standard picture for mixture VAEs: the clusters are distinct, but no arm is
    Gaussian.

    .. versionadded:: 0.1

    Parameters
    ----------
    n_samples : int, default=1000
        Rows in all. Arms get equally many, up to one.

    n_arms : int, default=5
        Number of arms.

    radial_std : float, default=0.3
        Standard deviation along an arm, whose mean radius is 1 before scaling.

    tangential_std : float, default=0.05
        Standard deviation across an arm.

    rate : float, default=0.25
        Strength of the twist.

    scale : float, default=10.0
        Factor on all coordinates.

    shuffle : bool, default=True
        Permute the rows, which otherwise come arm by arm.

    random_state : int, RandomState instance or None, default=None
        Decides the points and their order. See :term:`Glossary <random_state>`.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        The points.

    y : ndarray of shape (n_samples,), dtype=int64
        The arm of each point.

    Raises
    ------
    ValueError
        If a number is out of its range.

    See Also
    --------
    make_nonlinear_ica : Known sources in place of clusters.

    Notes
    -----
    A point has radius coordinate :math:`r \sim N(1, \mathrm{radial\_std}^2)` and
    :math:`t \sim N(0, \mathrm{tangential\_std}^2)`; :math:`(r, t)` is turned counter-
    clockwise by :math:`2 \pi k / C + \mathrm{rate} \cdot e^r` for arm k of C, then
    scaled. The values are real: use a Gaussian likelihood, and no more than two
    latents where injectivity matters.

    References
    ----------
    .. [1] M. J. Johnson, D. Duvenaud, A. B. Wiltschko, S. R. Datta, R. P. Adams,
           "Composing Graphical Models with Neural Networks for Structured
           Representations and Fast Inference", NIPS 2016, arXiv:1603.06277.
    .. [2] Y. Wang, D. M. Blei, J. P. Cunningham, "Posterior Collapse and Latent
           Variable Non-identifiability", NeurIPS 2021, arXiv:2301.00537.

    Examples
    --------
    >>> from skvae.datasets import make_pinwheel
    >>> X, y = make_pinwheel(100, random_state=0)
    >>> X.shape, sorted(set(y.tolist()))
    ((100, 2), [0, 1, 2, 3, 4])
    """
    check_count("n_arms", n_arms)
    check_count("n_samples", n_samples, n_arms)
    check_number("radial_std", radial_std)
    check_number("tangential_std", tangential_std)
    check_number("rate", rate, minimum=-np.inf)
    check_number("scale", scale, strict=True)
    rng = check_random_state(random_state)
    y = np.arange(n_samples, dtype=np.int64) * n_arms // n_samples
    radius = 1.0 + radial_std * rng.standard_normal(n_samples)
    offset = tangential_std * rng.standard_normal(n_samples)
    angle = 2.0 * np.pi * y / n_arms + rate * np.exp(radius)
    cosine, sine = np.cos(angle), np.sin(angle)
    X = scale * np.column_stack(
        [radius * cosine - offset * sine, radius * sine + offset * cosine]
    )
    if not shuffle:
        return X, y
    order = rng.permutation(n_samples)
    return X[order], y[order]


def make_linear_gaussian(
    n_samples=1000,
    *,
    n_features=10,
    n_components=3,
    loading_scales=None,
    noise_std=0.5,
    mean=0.0,
    random_state=None,
    return_X_y=True,
):
    r"""Generate linear Gaussian data whose posterior and likelihood are exact.

    Probabilistic PCA as a generator: the oracle for estimates of the likelihood,
    of the KL per unit and of which latents collapse.

    .. versionadded:: 0.1

    Parameters
    ----------
    n_samples : int, default=1000
        Rows.

    n_features : int, default=10
        Features, at least `n_components`.

    n_components : int, default=3
        Latents.

    loading_scales : array-like of shape (n_components,), default=None
        Norms of the loading columns, which are orthogonal. A zero makes a latent
        that no data can reveal. None takes `n_components`, ..., 2, 1.

    noise_std : float, default=0.5
        Standard deviation of the noise, positive.

    mean : float or array-like of shape (n_features,), default=0.0
        Mean of the features.

    random_state : int, RandomState instance or None, default=None
        Decides loadings, latents and noise. The loadings of an int do not change
        with `n_samples`. See :term:`Glossary <random_state>`.

    return_X_y : bool, default=True
        Return `(X, Z)` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch` if `return_X_y` is False
        With the attributes

        data : ndarray of shape (n_samples, n_features)
            The features.
        latents : ndarray of shape (n_samples, n_components)
            True latents.
        loadings : ndarray of shape (n_features, n_components)
            The matrix W.
        mean : ndarray of shape (n_features,)
            Mean of the features.
        noise_variance : float
            Variance of the noise.
        log_likelihood : ndarray of shape (n_samples,)
            Exact log p(x) of each row in nats.
        posterior_mean : ndarray of shape (n_samples, n_components)
            Exact posterior means.
        posterior_std : ndarray of shape (n_samples, n_components)
            Exact posterior standard deviations, equal in all rows.
        kl_per_component : ndarray of shape (n_components,)
            Expected KL divergence of the posterior from the prior in nats, which
            is also the mutual information of x and the latent.
        DESCR : str
            Description.

    (X, Z) : tuple if `return_X_y` is True
        The features and the latents.

    Raises
    ------
    ValueError
        If a number is out of its range or a shape is wrong.

    See Also
    --------
    make_nonlinear_ica : Nonlinear mixing, identifiable sources.

    Notes
    -----
    .. math:: z \sim N(0, I), \qquad x | z \sim N(W z + m, \sigma^2 I), \qquad
              x \sim N(m, W W^\top + \sigma^2 I)

    As the columns of W are orthogonal with norms d_i, the posterior is diagonal with
    variances :math:`\sigma^2 / (d_i^2 + \sigma^2)`, and component i carries
    :math:`\frac12 \log(1 + d_i^2 / \sigma^2)` nats: the sharpest test of a
    mean-field Gaussian encoder. Equal norms leave their latents free to rotate.

    References
    ----------
    .. [1] M. E. Tipping, C. M. Bishop, "Probabilistic Principal Component Analysis",
           Journal of the Royal Statistical Society B 61, 1999, 611-622.
    .. [2] J. Lucas, G. Tucker, R. Grosse, M. Norouzi, "Don't Blame the ELBO! A
           Linear VAE Perspective on Posterior Collapse", NeurIPS 2019,
           arXiv:1911.02469.

    Examples
    --------
    >>> from skvae.datasets import make_linear_gaussian
    >>> data = make_linear_gaussian(
    ...     200, loading_scales=[2.0, 1.0, 0.0], noise_std=1.0, return_X_y=False
    ... )
    >>> data.kl_per_component.round(3)
    array([0.805, 0.347, 0.   ])
    >>> data.log_likelihood.shape
    (200,)
    """
    check_count("n_samples", n_samples)
    check_count("n_components", n_components)
    check_count("n_features", n_features, n_components)
    check_number("noise_std", noise_std, strict=True)
    if loading_scales is None:
        loading_scales = np.arange(n_components, 0, -1)
    scales = check_vector("loading_scales", loading_scales)
    if scales.shape != (n_components,) or np.any(scales < 0):
        raise ValueError(
            f"loading_scales must hold n_components={n_components} numbers, none of "
            f"them negative; got {loading_scales!r}."
        )
    center = check_vector("mean", mean)
    if center.shape not in {(1,), (n_features,)}:
        raise ValueError(
            f"mean must be a float or of shape ({n_features},); got {center.shape}."
        )
    center = np.broadcast_to(center, (n_features,)).copy()

    rng = check_random_state(random_state)
    axes, triangle = np.linalg.qr(rng.standard_normal((n_features, n_components)))
    axes = axes * np.sign(np.diagonal(triangle))
    latents = rng.standard_normal((n_samples, n_components))
    noise = noise_std * rng.standard_normal((n_samples, n_features))
    X = latents @ (axes * scales).T + center + noise
    if return_X_y:
        return X, latents
    return Bunch(
        data=X,
        latents=latents,
        loadings=axes * scales,
        mean=center,
        noise_variance=float(noise_std**2),
        **_linear_gaussian_truth(X - center, axes, scales, noise_std),
        DESCR=_LINEAR_DESCRIPTION.format(
            n_samples=n_samples,
            n_features=n_features,
            n_components=n_components,
            noise_std=noise_std,
        ),
    )


def _linear_gaussian_truth(centred, axes, scales, noise_std):
    """Return likelihood, posterior and information from the axes of the loadings."""
    n_features, n_components = axes.shape
    projected = centred @ axes
    residual = centred - projected @ axes.T
    variances = scales**2 + noise_std**2
    distance = (projected**2 / variances).sum(axis=1)
    distance += (residual**2).sum(axis=1) / noise_std**2
    log_volume = np.log(variances).sum()
    log_volume += 2.0 * (n_features - n_components) * np.log(noise_std)
    constant = n_features * np.log(2.0 * np.pi) + log_volume
    return {
        "log_likelihood": -0.5 * (constant + distance),
        "posterior_mean": projected * (scales / variances),
        "posterior_std": np.tile(noise_std / np.sqrt(variances), (len(centred), 1)),
        "kl_per_component": 0.5 * np.log1p((scales / noise_std) ** 2),
    }
