"""Probes: what a simple model reads from latents. scikit-learn pipelines, no torch.

A probe is an unfitted classifier or regressor. It goes behind an estimator like any
other last step, and behind a fitted one by ``sklearn.frozen.FrozenEstimator``, so that
cross-validation fits the probe alone.
"""

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

__all__ = ["linear_probe", "mlp_probe", "neighbour_probe"]


def linear_probe(*, regression=False, max_iter=1000):
    """Return a linear model on standardised latents.

    .. versionadded:: 0.1

    Parameters
    ----------
    regression : bool, default=False
        Whether the labels are a quantity: ridge regression, its penalty chosen by
        leave-one-out, in place of logistic regression.

    max_iter : int, default=1000
        Largest number of iterations of the logistic regression.

    Returns
    -------
    probe : Pipeline
        `StandardScaler` and `LogisticRegression` or `RidgeCV`, unfitted; `score` is
        the accuracy or R2.

    See Also
    --------
    neighbour_probe : Reads what is near, however curved.
    mlp_probe : Reads what a network can.

    Notes
    -----
    Standardising makes the L2 penalty treat latents alike. It also blows up a
    collapsed latent, whose posterior mean hardly varies: a probe then reads what the
    decoder ignores. ``probe.set_params(standardscaler="passthrough")`` leaves latents
    in the units of their prior, as published probes do.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.pipeline import make_pipeline
    >>> from skvae.probes import linear_probe
    >>> X, y = load_iris(return_X_y=True)
    >>> scores = cross_val_score(make_pipeline(PCA(2), linear_probe()), X, y)
    >>> bool(scores.mean() > 0.9)
    True
    """
    if regression:
        return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-3, 3, 7)))
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iter))


def neighbour_probe(n_neighbors=5, *, regression=False):
    """Return nearest neighbours on standardised latents.

    .. versionadded:: 0.1

    Parameters
    ----------
    n_neighbors : int, default=5
        Number of neighbours that vote, or are averaged.

    regression : bool, default=False
        Whether the labels are a quantity.

    Returns
    -------
    probe : Pipeline
        `StandardScaler` and `KNeighborsClassifier` or `KNeighborsRegressor`,
        unfitted; `score` is the accuracy or R2.

    See Also
    --------
    linear_probe : Reads straight directions.
    mlp_probe : Reads what a network can.

    Notes
    -----
    Distances count all latents alike, so those that tell nothing about the labels
    cost accuracy: a comparison across numbers of latents favours few of them.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae.probes import neighbour_probe
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(neighbour_probe().fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.9)
    True
    """
    kind = KNeighborsRegressor if regression else KNeighborsClassifier
    return make_pipeline(StandardScaler(), kind(n_neighbors))


def mlp_probe(
    hidden_layer_sizes=(1024, 1024),
    *,
    regression=False,
    early_stopping=True,
    max_iter=200,
    random_state=None,
):
    """Return a network of two wide hidden layers on standardised latents.

    .. versionadded:: 0.1

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(1024, 1024)
        Units of the hidden layers.

    regression : bool, default=False
        Whether the labels are a quantity; the network sees them standardised.

    early_stopping : bool, default=True
        Whether a tenth of the rows is held out and training stops when the score
        there stands still for twenty epochs. Of two classes, each must then have rows
        in both parts. Without it the network ends by learning its training rows by
        heart.

    max_iter : int, default=200
        Largest number of epochs.

    random_state : int, RandomState instance or None, default=None
        Decides initial weights, shuffling and the held-out rows. See
        :term:`Glossary <random_state>`.

    Returns
    -------
    probe : Pipeline
        `StandardScaler` and `MLPClassifier` or `MLPRegressor`, unfitted; `score` is
        the accuracy or R2.

    See Also
    --------
    linear_probe : Asks for more of the latents, and is much cheaper.
    neighbour_probe : Has no training at all.

    Notes
    -----
    A network can undo whatever an injective encoder did, so this probe says what the
    latents hold and not how plainly: a latent space that only it can read is no
    better for a linear model behind it.

    References
    ----------
    .. [1] A. B. Dieng, Y. Kim, A. M. Rush, D. M. Blei, "Avoiding Latent Variable
           Collapse with Generative Skip Models", AISTATS 2019, arXiv:1807.04863:
           posterior means of 50 latents, two hidden layers of 1024 units. Their
           program is not published; optimiser and stopping are scikit-learn's here.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae.probes import mlp_probe
    >>> X, y = load_iris(return_X_y=True)
    >>> probe = mlp_probe((64, 64), random_state=0)
    >>> bool(probe.fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.8)
    True
    """
    options = {
        "hidden_layer_sizes": hidden_layer_sizes,
        "early_stopping": early_stopping,
        # With few rows, an epoch is a step or two.
        "n_iter_no_change": 20,
        "max_iter": max_iter,
        "random_state": random_state,
    }
    if not regression:
        return make_pipeline(StandardScaler(), MLPClassifier(**options))
    network = MLPRegressor(**options)
    return make_pipeline(
        StandardScaler(),
        TransformedTargetRegressor(regressor=network, transformer=StandardScaler()),
    )
