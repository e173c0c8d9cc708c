"""Argument checks shared by the data sets."""

import numbers

import numpy as np
from sklearn.utils import check_array, check_scalar


def check_option(name, value, allowed):
    """Raise a ValueError unless `value` is one of the strings in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"{name} must be one of {options}; got {value!r}.")


def check_count(name, value, minimum=1):
    """Raise unless `value` is an integer of at least `minimum`."""
    check_scalar(value, name, numbers.Integral, min_val=minimum)


def check_number(name, value, *, minimum=0.0, strict=False):
    """Raise unless `value` is a finite number above `minimum`."""
    boundaries = "neither" if strict else "left"
    check_scalar(
        value, name, numbers.Real, min_val=minimum, include_boundaries=boundaries
    )
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}.")


def check_range(name, value):
    """Return the two ends of an interval as floats."""
    ends = check_vector(name, value)
    if ends.shape != (2,) or ends[0] > ends[1]:
        raise ValueError(f"{name} must be a pair (low, high); got {value!r}.")
    return float(ends[0]), float(ends[1])


def check_vector(name, value):
    """Return `value` as a finite float64 array of one dimension or more."""
    return check_array(
        np.atleast_1d(value),
        dtype=np.float64,
        ensure_2d=False,
        allow_nd=True,
        input_name=name,
    )
