"""The auxiliary variable u as numbers: one-hot, or standardised columns."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import _num_samples

from skvae.estimators._fitting import Auxiliary


class AuxiliaryEncoder:
    """Learns the categories or the scale of u, and encodes it as ``(n, m)``."""

    def __init__(self, discrete, categories=None, mean=None, scale=None):
        self.discrete = discrete
        self.categories = categories
        self.mean = mean
        self.scale = scale

    @classmethod
    def learn(cls, u, u_type, categories=None):
        """An encoder for `u`; `categories` are known beforehand in partial fits."""
        if is_discrete(u, u_type):
            column = _one_column(u)
            return cls(True, np.unique(column if categories is None else categories))
        values = _columns(u)
        scale = values.std(axis=0)
        scale[scale == 0] = 1.0
        return cls(False, mean=values.mean(axis=0), scale=scale)

    @property
    def shape(self):
        """Columns and kind, for building a model."""
        n_columns = len(self.categories) if self.discrete else len(self.mean)
        return Auxiliary(n_columns, self.discrete)

    def encode(self, u):
        """Encoded u as float32 or uint8 of shape (n, m); ValueError if unseen."""
        if not self.discrete:
            values = _columns(u)
            if values.shape[1] != len(self.mean):
                raise ValueError(
                    f"u has {values.shape[1]} columns, but {len(self.mean)} were seen "
                    "during fit."
                )
            return ((values - self.mean) / self.scale).astype(np.float32)
        column = _one_column(u)
        place = np.searchsorted(self.categories, column)
        place = np.minimum(place, len(self.categories) - 1)
        unseen = self.categories[place] != column
        if unseen.any():
            shown = ", ".join(repr(v) for v in np.unique(column[unseen])[:5].tolist())
            raise ValueError(
                f"u holds categories that were not seen during fit: {shown}. Leave u "
                "out to use the mixture over the training categories, or shuffle the "
                "folds (StratifiedKFold, KFold(shuffle=True)) so that each holds all."
            )
        encoded = np.zeros((len(column), len(self.categories)), dtype=np.float32)
        encoded[np.arange(len(column)), place] = 1.0
        return encoded


def is_discrete(u, u_type):
    """Whether u is read as categories."""
    if u_type != "auto":
        return u_type == "discrete"
    u = np.asarray(u)
    return u.dtype.kind not in "fc" and (u.ndim == 1 or u.shape[1] == 1)


def check_length(X, u):
    """ValueError unless u has one entry per row of X."""
    n_rows, n_entries = _num_samples(X), _num_samples(u)
    if n_rows != n_entries:
        raise ValueError(
            f"u has {n_entries} entries, but X has {n_rows} rows. Pass one value of u "
            "(or of y in its place) per row."
        )


def _is_missing(value):
    # pandas.NA is equal to nothing and has no truth value.
    return value is None or str(value == value) != "True"


def _one_column(u):
    u = np.asarray(u)
    if u.ndim == 2 and u.shape[1] == 1:
        u = u[:, 0]
    if u.ndim != 1:
        raise ValueError(f"A discrete u must be one column. Got shape {u.shape}.")
    if u.dtype.kind == "O":
        if any(_is_missing(value) for value in u):
            raise ValueError("u holds missing values; give them a category or drop.")
        # Integers and booleans in an object column mean what they mean elsewhere.
        u = np.array(u.tolist())
        if u.dtype.kind == "O":
            u = u.astype(str)
    if u.dtype.kind == "f" and not np.isfinite(u).all():
        raise ValueError("u contains NaN or infinity.")
    return u


def _columns(u):
    u = np.asarray(u)
    u = u.reshape(-1, 1) if u.ndim == 1 else u
    return check_array(u, dtype=np.float64, input_name="u")
