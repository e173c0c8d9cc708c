"""From text to token matrices and back; numpy only, no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from numbers import Integral

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)

from skvae._tokens import END, PADDING, UNKNOWN
from skvae._validation import Interval, StrOptions, check_is_fitted

__all__ = ["Tokenizer"]

N_SPECIAL = END + 1


def check_documents(X):
    """Raise an error with its remedy unless X is an iterable in one dimension."""
    if isinstance(X, str):
        raise ValueError(
            "Tokenizer expects an iterable of documents, and a single string was "
            f"passed: {X[:40]!r}. Put it into a list."
        )
    if not isinstance(X, Iterable):
        raise TypeError(
            f"Tokenizer expects an iterable of documents. Got {X!r}, of type "
            f"{type(X).__name__}; pass a list of texts."
        )
    if getattr(X, "ndim", 1) != 1:
        raise ValueError(
            f"Tokenizer expects documents in 1 dimension. Got {X.ndim}; pass one "
            "column of text."
        )


class Tokenizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Turn documents into a matrix of token numbers, and such a matrix into text.

    A row is a document: 0 is padding on the right, 1 the unknown token, 2 the end
    token after the last word, and 3, 4, ... are the words, the most frequent first.

    Parameters
    ----------
    min_count : int, default=1
        Occurrences in the training documents from which a word gets a number; the
        others are unknown. With 1 no training document holds an unknown token, and a
        model learns nothing about it.
    max_vocabulary : int, default=None
        Largest number of words, the most frequent ones; None keeps all.
    max_length : int, default=None
        Columns of the matrix, end token included; None takes what the longest
        training document needs. Longer documents lose their ends, and with them the
        end token.
    lowercase : bool, default=True
        Whether to fold case.
    token_pattern : str, default=r"\w+(?:['-]\w+)*|[^\w\s]"
        Regular expression of a token: words, and each punctuation mark. ``r"\S+"``
        splits at white space, for text that is tokenised already.
    unknown_token : str, default="<unk>"
        How the unknown token is written. Where it occurs in a document, it is one.
    handle_unknown : {"error", "keep"}, default="error"
        What to do with a document of unknown words alone.
    dtype : {"int64", "float32"}, default="int64"
        Of the matrix. Estimators transform and score whole numbers in double
        precision; "float32" has them take single precision, as training does, which
        is several times as fast.

    Attributes
    ----------
    vocabulary_ : dict of str to int
        Number of each word.
    tokens_ : ndarray of str of shape (n_tokens,)
        How each number is written; empty for padding and the end.
    max_length_ : int
        Columns of the matrix.

    See Also
    --------
    SequenceVAE : Learns from such matrices.

    Examples
    --------
    >>> from skvae import Tokenizer
    >>> tokenizer = Tokenizer().fit(["the cat sat", "the dog"])
    >>> X = tokenizer.transform(["the dog sat", "the bird"])
    >>> X
    array([[3, 5, 6, 2],
           [3, 1, 2, 0]])
    >>> tokenizer.inverse_transform(X)
    ['the dog sat', 'the <unk>']
    """

    _doc_link_module = "skvae"

    _parameter_constraints: dict = {
        "min_count": [Interval(Integral, 1, None, closed="left")],
        "max_vocabulary": [None, Interval(Integral, 1, None, closed="left")],
        "max_length": [None, Interval(Integral, 1, None, closed="left")],
        "lowercase": ["boolean"],
        "token_pattern": [str],
        "unknown_token": [str],
        "handle_unknown": [StrOptions({"error", "keep"})],
        "dtype": [StrOptions({"int64", "float32"})],
    }

    def __init__(
        self,
        *,
        min_count=1,
        max_vocabulary=None,
        max_length=None,
        lowercase=True,
        token_pattern=r"\w+(?:['-]\w+)*|[^\w\s]",
        unknown_token="<unk>",
        handle_unknown="error",
        dtype="int64",
    ):
        self.min_count = min_count
        self.max_vocabulary = max_vocabulary
        self.max_length = max_length
        self.lowercase = lowercase
        self.token_pattern = token_pattern
        self.unknown_token = unknown_token
        self.handle_unknown = handle_unknown
        self.dtype = dtype

    def fit(self, X, y=None):
        """Learn the vocabulary.

        Parameters
        ----------
        X : iterable of str
            Documents.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted tokenizer.
        """
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X, y=None):
        """Learn the vocabulary and return the documents' token matrix.

        Parameters
        ----------
        X : iterable of str
            Documents.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        X : ndarray of shape (n_samples, max_length) and dtype `dtype`
            Token matrix.
        """
        self._validate_params()
        documents = self._split(X)
        counts = Counter(chain.from_iterable(documents))
        counts.pop(self._unknown(), None)
        # Ties in the alphabet's order, so that the order of documents does not matter.
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        kept = [word for word in ranked if counts[word] >= self.min_count]
        kept = kept[: self.max_vocabulary]
        if not kept:
            raise ValueError(
                f"No word of the {len(documents)} documents occurs at least min_count="
                f"{self.min_count} times, so every document would be empty. Lower "
                "min_count."
            )
        self.vocabulary_ = {word: n for n, word in enumerate(kept, start=N_SPECIAL)}
        self.tokens_ = np.array(["", self.unknown_token, "", *kept])
        longest = 1 + max(map(len, documents))
        self.max_length_ = longest if self.max_length is None else self.max_length
        self._n_features_out = self.max_length_
        return self._numbers(documents)

    def transform(self, X):
        """Token matrix of the documents.

        Parameters
        ----------
        X : iterable of str
            Documents.

        Returns
        -------
        X : ndarray of shape (n_samples, max_length) and dtype `dtype`
            Token matrix.
        """
        check_is_fitted(self)
        return self._numbers(self._split(X))

    def inverse_transform(self, X):
        """Text of a token matrix, tokens joined by single spaces.

        Parameters
        ----------
        X : array-like of shape (n_samples, max_length)
            Token matrix.

        Returns
        -------
        documents : list of str
            Each up to its first end token.
        """
        check_is_fitted(self)
        X = np.asarray(X)
        if X.ndim != 2:
            raise ValueError(f"Expected a token matrix, of 2 axes. Got {X.ndim}.")
        n_tokens = len(self.tokens_)
        known = np.isin(X, np.arange(n_tokens))
        if not known.all():
            row, column = np.argwhere(~known)[0]
            raise ValueError(
                f"Row {row} holds {X[row, column]} in column {column}, but this "
                f"tokenizer has the token numbers 0 to {n_tokens - 1}. Pass what a "
                "model trained on its matrices gave."
            )
        documents = []
        for row in X.astype(np.int64):
            ends = np.flatnonzero(row == END)
            row = row[: ends[0]] if len(ends) else row
            documents.append(" ".join(self.tokens_[row[row != PADDING]]))
        return documents

    def _unknown(self):
        return self.unknown_token.lower() if self.lowercase else self.unknown_token

    def _pattern(self):
        """The compiled `token_pattern`; ValueError where it is none."""
        try:
            pattern = re.compile(self.token_pattern)
        except re.error as error:
            raise ValueError(
                f"token_pattern={self.token_pattern!r} is no regular expression: "
                f"{error}."
            ) from error
        if pattern.fullmatch(""):
            raise ValueError(
                f"token_pattern={self.token_pattern!r} matches the empty text, which "
                "is no token. Ask for one character at least, with + in place of *."
            )
        return pattern

    def _split(self, X):
        """The tokens of each document; an error naming one that has none."""
        check_documents(X)
        pattern = self._pattern()
        documents = []
        for row, text in enumerate(X):
            if not isinstance(text, str):
                raise ValueError(
                    f"Tokenizer expects documents of type str, and number {row} is "
                    f"{text!r}, of type {type(text).__name__}. Replace missing values, "
                    "decode bytes, and join lists of words by spaces."
                )
            text = text.lower() if self.lowercase else text
            documents.append([match.group() for match in pattern.finditer(text)])
            if not documents[-1]:
                raise ValueError(
                    f"Document {row} is empty: {text!r} holds no token. Drop such "
                    "documents."
                )
        if not documents:
            raise ValueError("Tokenizer got no documents. Pass one at least.")
        return documents

    def _numbers(self, documents):
        """Token matrix; ValueError naming a document without a known word."""
        matrix = np.full((len(documents), self.max_length_), PADDING, dtype=self.dtype)
        for row, words in enumerate(documents):
            numbers = [self.vocabulary_.get(word, UNKNOWN) for word in words]
            if self.handle_unknown == "error" and max(numbers) == UNKNOWN:
                raise ValueError(
                    f"Document {row} has no word of the vocabulary: "
                    f"{' '.join(words[:5])!r}. Drop it, lower min_count, or use "
                    "handle_unknown='keep'."
                )
            numbers = [*numbers, END][: self.max_length_]
            matrix[row, : len(numbers)] = numbers
        return matrix

    def __sklearn_tags__(self):
        """Say that X is text."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags
