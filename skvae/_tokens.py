"""Token matrices: what the numbers in them mean.

A row is a document: numbers of tokens, then zeros to its right up to the common
length. The zeros are padding and no part of the document.
"""

from __future__ import annotations

import numpy as np

PADDING, UNKNOWN, END = 0, 1, 2
# The smallest vocabulary: the three special numbers and one word.
MIN_TOKENS = 4


def lengths(X):
    """Tokens of each row up to the last one that is no padding, ``(n,)``."""
    backwards = (X != PADDING)[:, ::-1]
    return np.where(backwards.any(1), X.shape[1] - backwards.argmax(1), 0)


def n_predicted(X):
    """Number of tokens that a model predicts: all but the padding."""
    return int((X != PADDING).sum())
