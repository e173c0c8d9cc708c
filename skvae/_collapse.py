"""Posterior collapse foreseen from the spectrum of X, and named after training.

For a linear decoder, Gaussian noise of variance s2 and KL weight beta, component i
with covariance eigenvalue l_i is active iff l_i > beta s2, and then
KL_i = 1/2 ln(l_i / (beta s2)). With s2 learned and a components active,
s2 = sum_{i > a} l_i / (D - a beta). Related results: Lucas et al. 2019
(arXiv:1911.02469), Wang and Ziyin 2022 (arXiv:2205.04009).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_array
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_params,
)


class PosteriorCollapseWarning(UserWarning):
    """Some latent components carry no information about the data.

    The message names them, the likely cause and what to try next.

    Examples
    --------
    >>> import warnings
    >>> from skvae import PosteriorCollapseWarning
    >>> warnings.simplefilter("error", PosteriorCollapseWarning)  # collapse is fatal
    >>> warnings.simplefilter("default", PosteriorCollapseWarning)
    """


@dataclass(frozen=True)
class CollapseForecast:
    """What :func:`collapse_forecast` returns.

    Attributes
    ----------
    eigenvalues : ndarray of shape (n_features,)
        Eigenvalues of the covariance of X, largest first, in squared units of X.
    kl_per_component : ndarray of shape (n_components,)
        Predicted KL in nats; 0 for a component that will collapse.
    n_active : int
        Number of components predicted to live.
    noise_variance : float
        Noise variance of the forecast, in squared units of X.
    beta : float
        KL weight of the forecast.
    learned_noise : bool
        Whether the noise was assumed to be learned.
    """

    eigenvalues: np.ndarray
    kl_per_component: np.ndarray
    n_active: int
    noise_variance: float
    beta: float
    learned_noise: bool

    def max_beta(self, n_active):
        """Beta below which `n_active` components live.

        Parameters
        ----------
        n_active : int
            Number of components to keep, between 1 and n_features.

        Returns
        -------
        beta : float
            Every smaller beta keeps them (supremum; 0 where none does).
        """
        values, k = self.eigenvalues, int(n_active)
        if not 1 <= k <= len(values):
            raise ValueError(
                f"n_active must be between 1 and n_features={len(values)}. "
                f"Got {n_active!r}."
            )
        kept = values[k - 1]
        if not self.learned_noise:
            return float(kept / self.noise_variance)
        rest = values[k:].sum() + k * kept
        return float(len(values) * kept / rest) if rest > 0 else 0.0


def _cost(values, n_active, noise_variance, beta):
    """Optimal negative bound up to constants, for `n_active` components and noise."""
    active, inactive = values[:n_active], values[n_active:]
    return 0.5 * (
        len(values) * np.log(noise_variance)
        + inactive.sum() / noise_variance
        + beta * (1.0 + np.log(active / (beta * noise_variance))).sum()
    )


def _learned_noise(values, beta, n_components):
    """Number of active components and noise variance at the optimum."""
    n_features = len(values)
    best = (np.inf, 0, values.mean())
    for a in range(n_components + 1):
        if a * beta >= n_features:
            break
        noise = values[a:].sum() / (n_features - a * beta)
        if noise <= values[0] * 1e-12:
            # The components explain X entirely: the bound grows without limit.
            return a, 0.0
        if a and values[a - 1] <= beta * noise:
            break
        cost = _cost(values, a, noise, beta)
        if cost < best[0]:
            best = (cost, a, noise)
    return best[1], float(best[2])


@validate_params(
    {
        "X": ["array-like"],
        "beta": [Interval(Real, 0, None, closed="neither")],
        "noise_variance": [
            StrOptions({"learned"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "n_components": [None, Interval(Integral, 1, None, closed="left")],
    },
    prefer_skip_nested_validation=True,
)
def collapse_forecast(X, *, beta=1.0, noise_variance="learned", n_components=None):
    """Predict, before any training, which latent components will collapse.

    Exact for a linear decoder with Gaussian likelihood and shared noise; for
    non-linear decoders a forecast, to be compared with the realised
    ``kl_per_component_``.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Training data, in the units the model will see.
    beta : float, default=1.0
        Weight of the KL term.
    noise_variance : "learned" or float, default="learned"
        Noise variance of the likelihood, in squared units of X.
    n_components : int, default=None
        Number of latents; None means n_features.

    Returns
    -------
    forecast : CollapseForecast
        Predicted KL per component in nats, the number alive, and the largest beta
        that keeps k alive (``forecast.max_beta(k)``).

    Raises
    ------
    ValueError
        If X holds NaN or infinities, or no variance at all.

    Notes
    -----
    One eigendecomposition of the covariance of X (maximum likelihood, divided by n).
    The number misleads where the data lie on a strongly curved manifold: a
    non-linear decoder explains more variance with fewer latents.

    References
    ----------
    Lucas, Tucker, Grosse, Norouzi, "Don't Blame the ELBO! A Linear VAE Perspective on
    Posterior Collapse", NeurIPS 2019, arXiv:1911.02469.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import collapse_forecast
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(2000, 6)) * [4, 3, 2, 1, 1, 1]
    >>> forecast = collapse_forecast(X, n_components=4)
    >>> forecast.n_active
    4
    >>> collapse_forecast(X, beta=2.0, n_components=4).n_active
    2
    """
    X = check_array(X, dtype=(np.float64, np.float32), ensure_min_samples=2)
    n_samples, n_features = X.shape
    centred = X - X.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2 / n_samples
    values = np.concatenate([values, np.zeros(max(0, n_features - len(values)))])
    values = values[:n_features].astype(np.float64)
    if values[0] <= 0:
        raise ValueError("X has no variance: every column is constant.")
    n_components = n_features if n_components is None else n_components
    limit = min(n_components, n_features)
    learned = noise_variance == "learned"
    if learned:
        n_active, noise = _learned_noise(values, beta, limit)
    else:
        noise = float(noise_variance)
        n_active = int((values[:limit] > beta * noise).sum())
    kl = np.zeros(n_components)
    with np.errstate(divide="ignore"):
        kl[:n_active] = 0.5 * np.log(values[:n_active] / (beta * noise))
    return CollapseForecast(values, kl, n_active, noise, float(beta), learned)


def collapse_message(
    name, active, beta, noise_variance, largest_variance, settled, slope
):
    """Text of a PosteriorCollapseWarning: which, why, and what to try.

    Parameters
    ----------
    name : str
        Class of the estimator.
    active : ndarray of bool of shape (n_components,)
        Which components vary over the data.
    beta : float
        KL weight.
    noise_variance : float or None
        Noise variance for a Gaussian likelihood.
    largest_variance : float
        Largest eigenvalue of the covariance of X, used with `noise_variance`.
    settled : bool
        Whether training ended by a stopping rule rather than by ``max_iter``.
    slope : float or None
        For a decoder with a slope that is enforced, its certificate.

    Returns
    -------
    message : str
    """
    dead = np.flatnonzero(~active)
    shown = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
    text = [
        f"{len(dead)} of {len(active)} components of {name} are inactive "
        f"(components {shown}): their posterior means do not vary with X."
    ]
    if noise_variance is not None and largest_variance <= beta * noise_variance:
        text.append(
            f"Likely cause: the largest eigenvalue of the covariance of X is "
            f"{largest_variance:.3g}, below beta * noise variance = "
            f"{beta * noise_variance:.3g}, so no component pays for itself. Learn the "
            f"noise, or use beta < {largest_variance / noise_variance:.3g}."
        )
    elif slope is not None:
        text.append(
            f"Likely cause: the decoder is injective, but its certified slope of "
            f"{slope:.3g} is small beside the noise"
            + ("" if settled else ", or max_iter ended training too early")
            + ". Raise inverse_lipschitz or max_iter."
        )
    elif beta > 1:
        text.append(
            f"Likely cause: beta={beta:g} asks more nats than these components earn. "
            "Lower beta; collapse_forecast(X).max_beta(k) tells which keeps k alive."
        )
    else:
        text.append(
            "Likely cause: the decoder explains X without them"
            + ("" if settled else ", or max_iter ended training too early")
            + ". Use fewer components (collapse_forecast(X) suggests how many), a "
            "decoder that keeps them (SkipVAE, LIDVAE), a KL warm-up "
            "(objective=ELBO(warm_up=0.3)) or more epochs."
        )
    return " ".join(text)
