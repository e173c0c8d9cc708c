"""Measurements and splits that several tables share."""

from __future__ import annotations

import numpy as np

from skvae.metrics import active_units, kl_per_unit, mutual_information
from skvae.probes import linear_probe


def usage(mean, std) -> dict:
    """How much posteriors say: KL to N(0, I) and information in nats, active units."""
    return {
        "kl": round(float(kl_per_unit(mean, std).sum()), 3),
        "mi": round(mutual_information(mean, std, random_state=0).value, 3),
        "active": active_units(mean).count,
    }


def linear_accuracy(codes, y, test_codes, y_test) -> float:
    """Accuracy of a logistic regression on standardised codes."""
    probe = linear_probe().fit(codes, y)
    return round(float(probe.score(test_codes, y_test)), 4)


def held_out_rows(u, n_rows: int, seed: int):
    """Mask of `n_rows` random rows of each segment of u."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(u), dtype=bool)
    for segment in np.unique(u):
        rows = np.flatnonzero(u == segment)
        held_out[rng.choice(rows, n_rows, replace=False)] = True
    return held_out
