"""Input checks shared by the metrics."""

import numpy as np
from sklearn.utils import check_array, check_consistent_length


def check_option(name, value, allowed):
    """Raise a ValueError unless `value` is one of the strings in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"{name} must be one of {options}; got {value!r}.")


def check_matrix(X, name, *, min_rows=2):
    """Return `X` as a finite float64 matrix with at least `min_rows` rows."""
    return check_array(
        X, dtype=np.float64, ensure_min_samples=min_rows, input_name=name
    )


def check_truth_and_latents(truth, Z, *, name, min_rows=2):
    """Return both matrices in float64 after checking that their rows agree."""
    truth = check_matrix(truth, name, min_rows=min_rows)
    Z = check_matrix(Z, "Z", min_rows=min_rows)
    check_consistent_length(truth, Z)
    return truth, Z


def check_gaussian(Z_mean, Z_std, *, min_rows=1):
    """Return means and standard deviations of equal shape, the latter positive."""
    Z_mean = check_matrix(Z_mean, "Z_mean", min_rows=min_rows)
    Z_std = check_matrix(Z_std, "Z_std", min_rows=min_rows)
    if Z_mean.shape != Z_std.shape:
        raise ValueError(
            "Z_mean and Z_std must have the same shape; got "
            f"{Z_mean.shape} and {Z_std.shape}."
        )
    check_positive(Z_std, "Z_std")
    return Z_mean, Z_std


def check_positive(values, name):
    """Raise a ValueError naming the smallest entry unless all are positive."""
    smallest = np.min(values)
    if not smallest > 0:
        raise ValueError(
            f"{name} must be positive everywhere; its smallest value is {smallest}. "
            "Pass standard deviations, not variances or their logarithms."
        )
