"""From a table to what a comparison trains on: likelihood, scale, held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skvae.cli._files import closest, numbers, read_table
from skvae.likelihoods import LIKELIHOODS

ROWS, QUICK_ROWS = 10_000, 1000
TEST_ROWS = 2000
TEST_FRACTION = 0.25
# More different numbers than this are a quantity and not a class.
MAX_CLASSES = 50


@dataclass(frozen=True)
class Texts:
    """The documents behind token matrices, and what turns one into the other."""

    tokenizer: object
    train: list
    test: list


@dataclass
class Prepared:
    """What every method of a comparison gets.

    `notes` say what was chosen and why; `names` are those of the features. Where
    `texts` are given, X holds their tokens.
    """

    title: str
    X: np.ndarray
    X_test: np.ndarray
    y: np.ndarray | None
    y_test: np.ndarray | None
    likelihood: str
    image_shape: tuple | None = None
    names: list | None = None
    notes: list = field(default_factory=list)
    texts: Texts | None = None

    @property
    def labelled(self):
        return self.y is not None

    @property
    def classes(self):
        """Whether the labels are classes rather than a quantity."""
        return self.labelled and is_classes(self.y)

    @property
    def probed(self):
        """Whether a probe trained on `y` can be judged on `y_test`."""
        if not self.labelled or self.y_test is None:
            return False
        return not self.classes or bool(np.isin(self.y_test, self.y).any())

    @property
    def u(self):
        """The labels as an auxiliary variable: numbers of classes, or floats."""
        if not self.labelled:
            return None
        if self.classes:
            return np.unique(self.y, return_inverse=True)[1]
        return self.y.astype(float)

    @property
    def unit(self):
        """What a row of X is called."""
        return "row" if self.texts is None else "document"

    def n_tokens(self, rows):
        """Tokens of held-out documents, their ends included; None for tables."""
        return None if self.texts is None else int((self.X_test[rows] > 0).sum())

    @property
    def comparable_density(self):
        """Whether linear-Gaussian baselines have a density of the same kind."""
        return domain_of(self.likelihood) == "real"


def is_classes(y):
    """Strings and booleans are classes, and so are few different whole numbers."""
    if y.dtype.kind not in "fiu":
        return True
    whole = np.array_equal(y, np.round(y))
    return bool(whole and len(np.unique(y)) <= MAX_CLASSES)


def domain_of(likelihood):
    """What values a likelihood takes; `likelihood` is a name or a specification."""
    if not isinstance(likelihood, str):
        return getattr(likelihood, "domain", "real")
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"Unknown likelihood {likelihood!r}.{closest(likelihood, LIKELIHOODS)}"
        )
    return LIKELIHOODS[likelihood].domain


def is_grey(X, image_shape):
    return X.dtype == np.uint8 and image_shape is not None and X.max() > 1


def choose_likelihood(X, image_shape):
    """Name of the likelihood for X, and the reason in words."""
    if is_grey(X, image_shape):
        kind = "grey levels" if len(image_shape) == 2 else "colours"
        return "bernoulli", f"X holds {kind} 0 to 255"
    low, high = X.min(), X.max()
    if low >= 0 and high <= 1:
        return "bernoulli", "all values lie in [0, 1]"
    if low >= 0 and np.array_equal(X, np.floor(X)):
        return "poisson", "all values are counts 0, 1, 2, ..."
    return "gaussian", "X holds real numbers"


def scaled_to_unit(X, likelihood, image_shape):
    """Grey levels as shares of 255 where the likelihood is not one of counts.

    Returns X and whether it was divided. The same rule serves `fit`, `transform` and
    `score`, so that a saved model sees what it was trained on.
    """
    if is_grey(X, image_shape) and domain_of(likelihood) != "count":
        return X / np.float32(255), True
    return X, False


def check_finite(X, path, names=None):
    """Refuse NaN and infinities with the name of the column."""
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{path} holds values of type {X.dtype}, not numbers.")
    if X.dtype.kind == "f" and not np.isfinite(X).all():
        column = int(np.argwhere(~np.isfinite(X))[0][1])
        name = column if names is None else repr(names[column])
        raise ValueError(
            f"Column {name} of {path} holds NaN or infinite values. Fill them in "
            "(SimpleImputer) or drop the rows first."
        )


def as_array(X, path):
    """A table's rows as numbers, and the names of its columns if it has any."""
    names = [str(name) for name in getattr(X, "columns", [])] or None
    X = np.asarray(numbers(X, path))
    if X.dtype.kind == "b":
        X = X.astype(np.uint8)
    check_finite(X, path, names)
    return X, names


def labels(y, path):
    """Labels as one column without gaps."""
    if y is None:
        return None
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y.ravel()
    if y.ndim != 1:
        raise ValueError(f"The labels of {path} must be one column. Got {y.shape}.")
    if y.dtype.kind == "O":
        y = y.astype(str)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError(f"The labels of {path} hold NaN. Drop those rows first.")
    return y


def _digits():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def rows_of_both(rows):
    """Rows to draw for so many training rows and those held out beside them."""
    return int(rows / (1 - TEST_FRACTION))


def cut(X, y, rows, rng):
    """At most `rows` random rows."""
    if len(X) <= rows:
        return X, y
    kept = rng.choice(len(X), rows, replace=False)
    return X[kept], None if y is None else y[kept]


def split(X, y, rng):
    """Training and held-out rows with equal shares of the classes where possible."""
    if len(X) < 4:
        raise ValueError(f"{len(X)} rows are too few to hold some out.")
    stratify = None
    if y is not None and is_classes(y):
        counts = np.unique(y, return_counts=True)[1]
        if counts.min() >= 2 and len(counts) <= TEST_FRACTION * len(X):
            stratify = y
    train, test = train_test_split(
        np.arange(len(X)), test_size=TEST_FRACTION, stratify=stratify, random_state=rng
    )
    if y is None:
        return X[train], X[test], None, None
    return X[train], X[test], y[train], y[test]


def _source(arguments):
    """Arrays, title and notes before any choice about them."""
    if arguments.data is None:
        X, y = _digits()
        note = "scikit-learn's digits, divided by 16."
        return (X, y, None, None), (8, 8), "digits", None, [note]
    table = read_table(arguments.data, arguments.target)
    X, names = as_array(table.X, arguments.data)
    X_test = None
    if table.X_test is not None:
        X_test, _ = as_array(table.X_test, arguments.data)
    y, y_test = (labels(y, arguments.data) for y in (table.y, table.y_test))
    arrays = X, y, X_test, y_test
    return arrays, table.image_shape, Path(arguments.data).name, names, []


def _varying(X, X_test, names, notes):
    """Leave out columns that hold one value in all training rows."""
    varies = (X[0] != X).any(axis=0)
    if varies.all() or not varies.any():
        return X, X_test, names
    shown = [str(i) if names is None else names[i] for i in np.flatnonzero(~varies)]
    more = ", ..." if len(shown) > 8 else ""
    notes.append(f"Constant columns were left out: {', '.join(shown[:8])}{more}.")
    if names is not None:
        names = [name for name, kept in zip(names, varies, strict=True) if kept]
    return X[:, varies], X_test[:, varies], names


def _transformed(X, X_test, likelihood, reason, image_shape, notes):
    X, divided = scaled_to_unit(X, likelihood, image_shape)
    X_test, _ = scaled_to_unit(X_test, likelihood, image_shape)
    notes.append(f"Likelihood {likelihood}: {reason}.")
    if divided:
        notes.append("Grey levels were divided by 255.")
    if domain_of(likelihood) == "real":
        # Pixels keep their proportions: rare ones would be blown up.
        scaler = StandardScaler(with_std=image_shape is None).fit(X)
        X, X_test = scaler.transform(X), scaler.transform(X_test)
        scale = X.std() if image_shape else 1.0
        X, X_test = X / scale, X_test / scale
        how = "centred and divided by one deviation" if image_shape else "standardised"
        notes.append(
            f"Columns were {how} (training rows'); log p(x) is in these units."
        )
    if domain_of(likelihood) == "count":
        variance, mean = X.var(axis=0).mean(), X.mean()
        if variance > 3 * mean:
            notes.append(
                f"The counts vary {variance / mean:.0f} times as much as Poisson "
                "counts would: try --likelihood negative_binomial."
            )
    return X.astype(np.float32), X_test.astype(np.float32)


def prepare(arguments):
    """Everything that is the same for all methods of a comparison."""
    (X, y, X_test, y_test), image_shape, title, names, notes = _source(arguments)
    if arguments.image_shape is not None:
        image_shape = arguments.image_shape
        size = math.prod(image_shape)
        if size != X.shape[1]:
            raise ValueError(
                f"--image-shape {','.join(map(str, image_shape))} makes {size} numbers "
                f"and does not make {X.shape[1]} features. Give the height and width "
                "of the images that the rows were made from, and 3 for colours."
            )
    rng = np.random.RandomState(arguments.seed)
    rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    if X_test is None:
        both = rows_of_both(rows)
        if len(X) > both:
            notes.append(f"{both:,} of {len(X):,} rows were drawn (--rows {rows}).")
        X, X_test, y, y_test = split(*cut(X, y, both, rng), rng)
    elif len(X) > rows:
        notes.append(f"{rows:,} of {len(X):,} training rows were drawn (--rows).")
        X, y = cut(X, y, rows, rng)
    X_test, y_test = cut(X_test, y_test, TEST_ROWS, rng)
    if arguments.likelihood is None:
        likelihood, reason = choose_likelihood(X, image_shape)
        reason += "; --likelihood overrides"
    else:
        likelihood, reason = arguments.likelihood, "as asked"
    if image_shape is None:
        X, X_test, names = _varying(X, X_test, names, notes)
    X, X_test = _transformed(X, X_test, likelihood, reason, image_shape, notes)
    data = Prepared(title, X, X_test, y, y_test, likelihood, image_shape, names, notes)
    if arguments.quick:
        notes.append("--quick: few steps, so no method shows what it can do.")
    if data.labelled and not data.probed:
        notes.append("No probe: held-out rows have none of the training labels.")
    return data
