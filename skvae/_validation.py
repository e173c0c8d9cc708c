"""The seam to scikit-learn's validation, and the checks it does not have."""

from __future__ import annotations

import sys
import warnings

import numpy as np
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = [
    "HasMethods",
    "Interval",
    "RealNotInt",
    "StrOptions",
    "check_X",
    "check_constant_columns",
    "check_domain",
    "check_is_fitted",
    "check_random_state",
    "check_sample_weight",
]

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# Elements looked at together, so that checks take no memory of the size of X.
BLOCK = 1 << 18


def check_X(estimator, X, *, reset):
    """Validated X, C-contiguous; floats and uint8 keep their dtype.

    Raises ValueError for NaN, infinities, wrong shapes and, when fitting, for fewer
    than two rows.
    """
    X = validate_data(
        estimator,
        X,
        reset=reset,
        dtype=(np.float64, np.float32, np.uint8),
        order="C",
        ensure_min_samples=2 if reset else 1,
        ensure_all_finite=False,
    )
    check_finite(estimator, X)
    return X


def check_finite(estimator, X):
    """Raise ValueError naming row, column and remedy for NaN and infinities."""
    if X.dtype == np.uint8:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(X.sum()):
            return
    place = first_where(X, lambda rows: ~np.isfinite(rows))
    if place is None:
        return
    row, column = place
    value, remedy = "infinity", "Clip such values or drop their rows."
    if np.isnan(X[row, column]):
        value, remedy = "NaN", "Impute it (SimpleImputer) or drop such rows."
    raise ValueError(
        f"Input X contains {value} in {column_name(estimator, column)}, row {row}. "
        f"{type(estimator).__name__} accepts finite numbers alone. {remedy}"
    )


def warn(message, category=UserWarning):
    """Warn at the line that called into the package, however deep this is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_globals.get(
        "__name__", ""
    ).startswith(("skvae.", "sklearn.", "joblib.")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)


def column_name(estimator, column):
    """How messages refer to a column: its number and, where known, its name."""
    names = getattr(estimator, "feature_names_in_", None)
    return f"column {column}" + ("" if names is None else f" ({names[column]!r})")


def blocks(X):
    """Consecutive rows of X a few at a time, with the number of the first one."""
    size = max(1, BLOCK // max(1, X.shape[1]))
    for start in range(0, X.shape[0], size):
        yield start, X[start : start + size]


def first_where(X, is_bad):
    """Row and column of the first entry for which `is_bad` holds, or None.

    `is_bad` takes some rows of X and gives booleans of their shape.
    """
    for start, rows in blocks(X):
        bad = is_bad(rows)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            return start + int(row), int(column)
    return None


def check_domain(estimator, X, domain, likelihood):
    """Raise ValueError naming value, row, column and remedy for X outside `domain`."""
    place, message = _real(X)
    if place is None:
        place, message = DOMAINS[domain](X)
    if place is None:
        return
    row, column = place
    raise ValueError(
        message.format(
            value=X[row, column],
            where=f"{column_name(estimator, column)}, row {row}",
            likelihood=likelihood,
            name=type(estimator).__name__,
        )
    )


def _real(X):
    if X.dtype == np.uint8 or max(X.max(), -X.min()) < LARGEST_FLOAT32:
        return None, ""
    return first_where(X, lambda rows: np.abs(rows) >= LARGEST_FLOAT32), (
        "X passed to {name} holds {value} in {where}, too large for the single "
        "precision that networks are trained in. Scale X, for example with "
        "StandardScaler."
    )


def _unit_interval(X):
    low, high = X.min(), X.max()
    if low < 0:
        return first_where(X, lambda rows: rows < 0), (
            "Negative values in data passed to {name}: likelihood={likelihood} needs "
            "values in [0, 1], and {where} is {value}. Scale X with "
            "MinMaxScaler(clip=True), or use likelihood='gaussian'."
        )
    # Scalers overshoot 1 by rounding.
    if high > 1 + 1e-6:
        return first_where(X, lambda rows: rows > 1 + 1e-6), (
            "X passed to {name} holds {value} in {where}, but "
            "likelihood={likelihood} needs values in [0, 1]. Scale X with "
            "MinMaxScaler(clip=True) (grey levels: divide by 255), or use "
            "likelihood='gaussian'."
        )
    return None, ""


def _count(X):
    if X.dtype == np.uint8:
        return None, ""
    if X.min() < 0:
        return first_where(X, lambda rows: rows < 0), (
            "Negative values in data passed to {name}: likelihood={likelihood} needs "
            "counts 0, 1, 2, ..., and {where} is {value}. Use likelihood='gaussian' "
            "for real features."
        )
    return first_where(X, lambda rows: np.floor(rows) != rows), (
        "X passed to {name} holds {value} in {where}, but "
        "likelihood={likelihood} needs counts 0, 1, 2, .... Pass the raw counts "
        "without scaling, or use likelihood='gaussian'."
    )


DOMAINS = {"real": _real, "unit interval": _unit_interval, "count": _count}


def constant_columns(X):
    """Numbers of the columns that hold one value only, in single precision."""
    dtype = np.uint8 if X.dtype == np.uint8 else np.float32
    first = X[0].astype(dtype)
    constant = np.ones(X.shape[1], dtype=bool)
    for _, rows in blocks(X):
        constant &= (rows.astype(dtype, copy=False) == first).all(axis=0)
        if not constant.any():
            break
    return np.flatnonzero(constant)


def check_constant_columns(estimator, X):
    """Message on columns without variance, or None; ValueError if all are constant."""
    columns = constant_columns(X)
    if len(columns) == 0:
        return None
    if len(columns) == X.shape[1]:
        raise ValueError(
            f"Every column of X passed to {type(estimator).__name__} is constant in "
            "the single precision that networks are trained in, so there is nothing to "
            "learn. Check how X was made, or centre and scale it (StandardScaler)."
        )
    shown = ", ".join(column_name(estimator, c) for c in columns[:5])
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return (
        f"Constant features in X: {shown}{more}. They tell nothing about the latents "
        "and draw the learned noise towards zero. Remove them, for example with "
        "VarianceThreshold()."
    )


def check_sample_weight(sample_weight, X):
    """Weights as float64 of shape (n_samples,); ones when None.

    Raises ValueError for wrong shapes, negative or non-finite weights, and when all
    of them are zero.
    """
    if sample_weight is None:
        # One number, repeated without being stored.
        return np.broadcast_to(1.0, X.shape[:1])
    sample_weight = check_array(
        sample_weight,
        ensure_2d=False,
        dtype=np.float64,
        input_name="sample_weight",
    )
    if sample_weight.ndim != 1:
        raise ValueError("Sample weights must be 1D array or scalar")
    if len(sample_weight) != X.shape[0]:
        raise ValueError(
            f"sample_weight has {len(sample_weight)} entries, but X has {X.shape[0]} "
            "rows. Pass one weight per row."
        )
    if (sample_weight < 0).any():
        raise ValueError("sample_weight holds negative weights; weights must be >= 0.")
    if not sample_weight.any():
        raise ValueError("Every sample weight is zero; no row is left to learn from.")
    return sample_weight
