"""Binarised images, and what is measured on them."""

from __future__ import annotations

import time

import numpy as np

from skvae.datasets import fetch_fashion_mnist, fetch_mnist, fetch_omniglot
from skvae.metrics import active_units, kl_per_unit, mutual_information
from skvae.reproductions._measures import linear_accuracy

LOADERS = {
    "mnist": fetch_mnist,
    "fashion_mnist": fetch_fashion_mnist,
    "omniglot": fetch_omniglot,
}
# Test images of the likelihood and the mutual information, the costliest measurements,
# and training images of the probe.
N_SCORED, N_PROBED = 5000, 20_000


def images(
    name: str, data_dir: str | None, seed: int, n_rows=(None, None), grey: bool = False
) -> list:
    """Binarised images and their classes, ``[X, y, X_test, y_test]``.

    A pixel is 1 with the probability of its grey level, drawn once with the seed; with
    `grey`, it is the grey level in [0, 1] itself. `n_rows` takes so many random rows of
    the two parts; None takes all, in their order.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for subset, n in zip(("train", "test"), n_rows, strict=True):
        X, y = LOADERS[name](
            data_home=data_dir,
            subset=subset,
            dtype="uint8",
            return_X_y=True,
            download_if_missing=False,
        )
        if n is not None:
            rows = rng.permutation(len(X))[:n]
            X, y = X[rows], y[rows]
        if grey:
            parts += [X.astype(np.float32) / 255.0, y]
        else:
            parts += [(rng.random(X.shape) * 255 < X).astype(np.uint8), y]
    return parts


def image_columns(estimator, X, y, X_test, y_test) -> dict:
    """Fit an estimator: its activity, likelihood and linear probe on test images."""
    started = time.perf_counter()
    estimator.fit(X)
    seconds = time.perf_counter() - started
    mean, std = estimator.posterior(X_test)
    units, scored = active_units(mean), slice(0, N_SCORED)
    information = mutual_information(mean[scored], std[scored], random_state=0)
    codes = estimator.transform(X[:N_PROBED])
    return {
        "epochs": estimator.n_iter_,
        "active": units.count,
        "least_variance": round(float(units.variances.min()), 4),
        "kl": round(float(kl_per_unit(mean, std).sum()), 3),
        "mi": round(information.value, 3),
        "mi_ceiling": round(information.ceiling, 3),
        "ll": round(float(estimator.score(X_test[scored])), 3),
        "probe": linear_accuracy(codes, y[:N_PROBED], mean, y_test),
        "bound_train": round(estimator.history_["bound"][-1], 3),
        "seconds_per_epoch": round(seconds / estimator.n_iter_, 2),
    }
