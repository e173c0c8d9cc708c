"""Posterior collapse, information and density.

The functions take the mean and the standard deviation of a diagonal Gaussian
posterior q(z | x), one row per observation, as `estimator.posterior(X)` gives them.
"""

import numbers

import numpy as np
from scipy.special import logsumexp
from sklearn.utils import Bunch, check_array, check_random_state, check_scalar

from skvae.metrics._validation import (
    check_gaussian,
    check_matrix,
    check_option,
    check_positive,
)

_CHUNK_ENTRIES = 2**21


def active_units(Z_mean, *, threshold=0.01):
    r"""Count the latent units whose posterior mean varies over the data.

    Unit d is active if the variance of its posterior mean over the rows exceeds
    `threshold`. The posterior's own variance plays no part.

    .. versionadded:: 0.1

    Parameters
    ----------
    Z_mean : array-like of shape (n_samples, n_components)
        Posterior means of held-out data, at least two rows.

    threshold : float, default=0.01
        Variance that an active unit exceeds, in squared units of the latent. A
        variance equal to it up to rounding is not active.

    Returns
    -------
    :class:`~sklearn.utils.Bunch`
        With the attributes

        count : int
            Number of active units.
        fraction : float
            `count` divided by `n_components`.
        variances : ndarray of shape (n_components,)
            Unbiased variances over the rows (divided by `n_samples - 1`).
        mask : ndarray of shape (n_components,), dtype=bool
            Which units are active.

    Raises
    ------
    ValueError
        If there are fewer than two rows, a value is not finite, or `threshold` is
        negative.

    See Also
    --------
    kl_per_unit : How far each unit's posterior is from the prior.
    mutual_information : How much all units together tell about the data.

    Notes
    -----
    .. math:: A_d = \mathrm{Var}_x\bigl(\mathbb{E}_{q(z|x)}[z_d]\bigr) > \delta

    Published programs differ in the threshold (0.01 or 0.02), in dividing by n or
    n - 1, and in the rows used; report all three beside the count.

    *When it misleads.* The threshold is absolute, so a latent on another scale than
    a standard normal prior moves all counts. A unit can be active and useless: a
    variance of 0.02 carries about 0.01 nats when the posterior is as wide as the
    prior. A handful of outlying rows can activate a unit that is flat elsewhere.
    Read the count next to the KL per unit and the mutual information, on the same
    held-out rows.

    References
    ----------
    .. [1] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders",
           ICLR 2016, arXiv:1509.00519, the activity statistic A_u of the section
           on latent space representation.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import active_units
    >>> Z_mean = np.array([[-1.0, 0.01], [0.0, 0.0], [1.0, -0.01]])
    >>> result = active_units(Z_mean)
    >>> result.count, result.fraction
    (1, 0.5)
    """
    Z_mean = check_matrix(Z_mean, "Z_mean")
    check_scalar(threshold, "threshold", numbers.Real, min_val=0)
    variances = Z_mean.var(axis=0, ddof=1)
    at_threshold = np.isclose(variances, threshold, rtol=1e-9, atol=0.0)
    mask = (variances > threshold) & ~at_threshold
    return Bunch(
        count=int(mask.sum()),
        fraction=float(mask.mean()),
        variances=variances,
        mask=mask,
    )


def kl_per_unit(Z_mean, Z_std, prior_mean=0.0, prior_std=1.0):
    r"""Compute the mean Gaussian KL divergence to the prior, unit by unit.

    The divergence is exact for diagonal Gaussians and averaged over the rows; the
    units add up to the KL term of the evidence lower bound.

    .. versionadded:: 0.1

    Parameters
    ----------
    Z_mean : array-like of shape (n_samples, n_components)
        Posterior means.

    Z_std : array-like of shape (n_samples, n_components)
        Posterior standard deviations, positive.

    prior_mean : float or array-like, default=0.0
        Prior means, broadcast against `Z_mean`. Pass shape
        `(n_samples, n_components)` for a prior that depends on the row.

    prior_std : float or array-like, default=1.0
        Prior standard deviations, positive, broadcast likewise.

    Returns
    -------
    ndarray of shape (n_components,)
        Mean divergence of each unit in nats, not negative.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite, or a standard deviation is not
        positive.

    See Also
    --------
    active_units : Counts units by the variance of their means.
    mutual_information : The part of the KL that tells rows apart.

    Notes
    -----
    .. math::

        \mathrm{KL}_d = \mathbb{E}_x \Bigl[ \log\frac{\sigma_d}{s_d(x)}
            + \frac{s_d^2(x) + (\mu_d(x) - m_d)^2}{2 \sigma_d^2} - \frac12 \Bigr]

    *When it misleads.* A posterior that is the same for every row but differs from
    the prior has a large KL and carries no information: the KL bounds the mutual
    information from above, never from below. Units are compared in the basis the
    network chose; a rotation that leaves the model unchanged moves KL between
    units. For a mixture posterior or a flow the number is not the divergence.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
           arXiv:1312.6114, appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import kl_per_unit
    >>> Z_mean = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> kl_per_unit(Z_mean, np.ones((2, 2)))
    array([0.5, 0. ])
    """
    Z_mean, Z_std = check_gaussian(Z_mean, Z_std)
    prior_mean = _broadcast_prior(prior_mean, Z_mean.shape, "prior_mean")
    prior_std = _broadcast_prior(prior_std, Z_mean.shape, "prior_std")
    check_positive(prior_std, "prior_std")
    ratio = Z_std / prior_std
    excess = (ratio - 1.0) * (ratio + 1.0)
    # near ratio 1 the plain logarithm cancels and the divergence turns negative
    log_square = np.where(
        np.abs(excess) < 0.5,
        np.log1p(np.maximum(excess, -0.5)),
        2.0 * (np.log(Z_std) - np.log(prior_std)),
    )
    shift = (Z_mean - prior_mean) / prior_std
    divergence = 0.5 * (np.maximum(excess - log_square, 0.0) + shift**2)
    return divergence.mean(axis=0)


def mutual_information(
    Z_mean,
    Z_std,
    *,
    method="aggregate",
    entropy="paired",
    batch_size=100,
    n_draws=1,
    random_state=None,
):
    r"""Estimate the mutual information between data and latents, with its ceiling.

    The aggregated posterior is the equal mixture of all rows' posteriors
    (`method="aggregate"`) or of those in one minibatch (`method="minibatch"`). The
    value cannot exceed the logarithm of the number of mixture components, which is
    returned with it: a value near the ceiling measures the ceiling.

    .. versionadded:: 0.1

    Parameters
    ----------
    Z_mean : array-like of shape (n_samples, n_components)
        Posterior means of held-out data.

    Z_std : array-like of shape (n_samples, n_components)
        Posterior standard deviations, positive.

    method : {"aggregate", "minibatch"}, default="aggregate"
        Over which rows the posterior is aggregated. "minibatch" takes consecutive
        rows and averages the batches by their size; it exists to compare with
        published figures.

    entropy : {"paired", "analytic"}, default="paired"
        How the conditional entropy is computed: "paired" evaluates log q(z|x) at
        the same draws as the aggregate, "analytic" uses the closed form, as the
        published programs do. Both have the same expectation.

    batch_size : int, default=100
        Rows in a minibatch. Ignored by "aggregate".

    n_draws : int, default=1
        Latent draws per row.

    random_state : int, RandomState instance or None, default=None
        Decides the latent draws. Pass an int for reproducible results.
        See :term:`Glossary <random_state>`.

    Returns
    -------
    :class:`~sklearn.utils.Bunch`
        With the attributes

        value : float
            The estimate in nats.
        ceiling : float
            The largest value that the estimator can take, in nats: log n_samples,
            or log batch_size (averaged by size if the last batch is shorter). With
            the analytic entropy, sampling noise can carry the value past it.
        method : str
            The method, to keep next to the number.
        n : int
            Number of mixture components: `n_samples`, or the rows in a full batch.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite, a standard deviation is not
        positive, or an option is unknown.

    See Also
    --------
    kl_per_unit : An upper bound, unit by unit.

    Notes
    -----
    With mixture components m and one draw :math:`z_n \sim q(z|x_n)` per row,

    .. math::

        I_q = \frac1N \sum_n \Bigl[ \log q(z_n|x_n)
            - \log \frac1M \sum_m q(z_n|x_m) \Bigr].

    "analytic" replaces the first term by its expectation
    :math:`-\frac12 \sum_d (1 + \log 2\pi s_d^2)`. Measured on linear Gaussian
    encoders, pairing has a half to a fifth of the standard deviation near collapse;
    it is zero at complete collapse and never passes the ceiling. The analytic form
    does neither, which is why published values near collapse can be negative.

    Cost is `n_samples**2 * n_components` operations; memory stays bounded.

    *When it misleads.* The mixture contains the row's own component, so the
    estimate is biased downwards, slightly when it is far below the ceiling and
    completely near it. Values from different ceilings do not compare: a minibatch
    of 50 cannot show more than 3.91 nats whatever the model knows. A high value
    says that rows can be told apart, not that the latents mean anything.

    References
    ----------
    .. [1] M. D. Hoffman, M. J. Johnson, "ELBO surgery: yet another way to carve up
           the variational evidence lower bound", NIPS workshop on Advances in
           Approximate Bayesian Inference, 2016 (the index-code mutual information).
    .. [2] J. He, D. Spokoyny, G. Neubig, T. Berg-Kirkpatrick, "Lagging Inference
           Networks and Posterior Collapse in Variational Autoencoders", ICLR 2019,
           arXiv:1901.05534 (the mutual information that controls training).
    .. [3] A. B. Dieng, Y. Kim, A. M. Rush, D. M. Blei, "Avoiding Latent Variable
           Collapse with Generative Skip Models", AISTATS 2019, arXiv:1807.04863.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import mutual_information
    >>> Z_mean = np.arange(8.0).reshape(-1, 1)
    >>> result = mutual_information(Z_mean, np.full((8, 1), 1e-3), random_state=0)
    >>> round(result.value, 4), round(result.ceiling, 4), result.n
    (2.0794, 2.0794, 8)
    """
    Z_mean, Z_std = check_gaussian(Z_mean, Z_std)
    check_option("method", method, ("aggregate", "minibatch"))
    check_option("entropy", entropy, ("paired", "analytic"))
    check_scalar(batch_size, "batch_size", numbers.Integral, min_val=1)
    check_scalar(n_draws, "n_draws", numbers.Integral, min_val=1)
    generator = check_random_state(random_state)
    n_samples = Z_mean.shape[0]
    size = n_samples if method == "aggregate" else min(batch_size, n_samples)
    value = ceiling = 0.0
    for start in range(0, n_samples, size):
        mean, std = Z_mean[start : start + size], Z_std[start : start + size]
        weight = len(mean) / n_samples
        ceiling += weight * np.log(len(mean))
        for _ in range(n_draws):
            noise = generator.standard_normal(mean.shape)
            own, aggregate = _log_densities(noise, mean, std)
            if entropy == "analytic":
                own = own + 0.5 * (noise**2 - 1.0).sum(axis=1)
            value += weight * np.mean(own - aggregate) / n_draws
    return Bunch(value=float(value), ceiling=float(ceiling), method=method, n=size)


def importance_weighted_log_likelihood(log_weights, axis=0):
    r"""Estimate the log-likelihood of each row from its log importance weights.

    The estimate is the logarithm of the mean weight, taken per row without overflow.

    .. versionadded:: 0.1

    Parameters
    ----------
    log_weights : array-like of shape (n_draws, n_samples)
        Logarithms of p(x|z) p(z) / q(z|x) in nats, at draws z from q(z|x). Any
        number of dimensions is accepted. Minus infinity is a weight of zero.

    axis : int, default=0
        The axis of the draws.

    Returns
    -------
    ndarray of shape (n_samples,) or float
        Estimates of log p(x) in nats: `log_weights` without `axis`; a float if it
        has one dimension.

    Raises
    ------
    ValueError
        If a log weight is NaN or plus infinity, or `axis` does not exist.

    See Also
    --------
    mutual_information : What the latents tell about the data.

    Notes
    -----
    .. math:: \log p(x) \approx \log \frac1S \sum_{s=1}^S
              \frac{p(x|z_s)\, p(z_s)}{q(z_s|x)}, \qquad z_s \sim q(z|x)

    If q is the exact posterior every weight equals p(x), and one draw is exact.
    Otherwise the expectation is a lower bound on log p(x) that does not decrease
    with the number of draws; one draw gives the evidence lower bound.

    *When it misleads.* The bound is loose wherever q misses part of the posterior,
    so a difference between two models may be a difference between their encoders:
    compare at the same, large number of draws. Averaging the weights over rows
    before taking the logarithm is a different and wrong number. For continuous data
    the value is a log density, changes with the units of x and can be positive.

    References
    ----------
    .. [1] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders",
           ICLR 2016, arXiv:1509.00519, the k-sample bound and theorem 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import importance_weighted_log_likelihood
    >>> log_weights = np.log([[0.1, 0.5], [0.3, 0.5]])
    >>> np.exp(importance_weighted_log_likelihood(log_weights)).round(6)
    array([0.2, 0.5])
    """
    log_weights = check_array(
        log_weights,
        dtype=np.float64,
        ensure_2d=False,
        allow_nd=True,
        ensure_all_finite=False,
        input_name="log_weights",
    )
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        raise ValueError(
            "log_weights contains NaN or plus infinity; only finite values and "
            "minus infinity are log weights."
        )
    check_scalar(axis, "axis", numbers.Integral)
    if not -log_weights.ndim <= axis < log_weights.ndim:
        raise ValueError(
            f"axis {axis} does not exist in log_weights of shape {log_weights.shape}."
        )
    n_draws = log_weights.shape[axis]
    result = logsumexp(log_weights, axis=axis) - np.log(n_draws)
    return float(result) if np.ndim(result) == 0 else result


def _broadcast_prior(values, shape, name):
    values = check_array(
        np.atleast_1d(values),
        dtype=np.float64,
        ensure_2d=False,
        input_name=name,
    )
    try:
        return np.broadcast_to(values, shape)
    except ValueError as error:
        raise ValueError(
            f"{name} of shape {values.shape} does not broadcast to {shape}."
        ) from error


def _log_densities(noise, mean, std):
    """Evaluate each row's own density and the equal mixture of all rows' densities.

    Both are logarithms at ``mean + std * noise``, up to the same constant.
    """
    scale = std.max(axis=0)
    center = mean.mean(axis=0)
    mean, std = (mean - center) / scale, std / scale
    draws = mean + std * noise
    log_volume = np.log(std).sum(axis=1)
    own = -0.5 * (noise**2).sum(axis=1) - log_volume
    precision = std**-2.0
    linear = mean * precision
    constant = -0.5 * (mean * linear).sum(axis=1) - log_volume
    n_rows = len(mean)
    aggregate = np.empty(n_rows)
    chunk = max(1, _CHUNK_ENTRIES // n_rows)
    for start in range(0, n_rows, chunk):
        rows = np.arange(start, min(start + chunk, n_rows))
        block = draws[rows] @ linear.T - 0.5 * (draws[rows] ** 2 @ precision.T)
        block += constant
        # the expanded square cancels when posteriors are narrow; own is exact
        block[rows - start, rows] = own[rows]
        aggregate[rows] = logsumexp(block, axis=1)
    return own, aggregate - np.log(n_rows)
