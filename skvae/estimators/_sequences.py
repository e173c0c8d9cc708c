"""What the sequence estimators share: token matrices in and out, and LSTMs."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np

from skvae._spec import resolve
from skvae._tokens import MIN_TOKENS, PADDING, UNKNOWN, lengths, n_predicted
from skvae._validation import Interval, check_is_fitted, check_X, column_name, warn
from skvae.estimators._base import BaseVAE
from skvae.estimators._docs import ATTRIBUTES, RATE, TRAINING
from skvae.estimators._fitting import Specifications
from skvae.inference import INFERENCES
from skvae.likelihoods import Tokens
from skvae.networks.recurrent import LSTMDecoder, LSTMEncoder
from skvae.objectives import OBJECTIVES
from skvae.posteriors import EncoderPosterior
from skvae.priors import StandardNormal

# The base's parameters without its networks and likelihood, which are given here.
SHARED = dict(BaseVAE._parameter_constraints)
for chosen in ("depth", "encoder", "decoder", "likelihood"):
    del SHARED[chosen]

PARAMETERS = """\
beta : float, default=1.0
        Weight of the KL term in the objective; never part of :meth:`score`.
    width : int, default=256
        Units of the LSTMs.
    embedding_size : int, default=128
        Length of the word vectors, of which encoder and decoder have their own.
    dropout : float, default=0.0
        Share of the entries of the decoder's word vectors and states that a training
        step sets to zero.
    word_dropout : float, default=0.0
        Share of the words that the decoder is not told in training, where it reads
        the unknown token (1) in their place (Bowman et al. 2016, arXiv:1511.06349).
    n_tokens : int, default=None
        Size of the vocabulary, padding included; None takes the largest number in the
        training data plus one.
    objective : {"elbo", "total_correlation", "iwae"} or specification, \
default="elbo"
        Training objective, for example ``ELBO(warm_up=0.3, free_bits=0.05)``.
"""
RESTARTS = """\
Number of restarts, trained side by side. The one with the best bound at beta
        1 is kept."""
CHANCE = """\
Decides initial weights, shuffling, noise and dropout. Pass an int for
        reproducible results across calls."""


def check_tokens(estimator, X, n_tokens):
    """Raise ValueError for what is no token, naming value, place and remedy.

    Parameters
    ----------
    estimator : object
        For its name and those of its columns.
    X : ndarray of shape (n_samples, max_length)
        Token matrix.
    n_tokens : int or None
        Size of the vocabulary, padding included, or None while it is not known.
    """
    name = type(estimator).__name__
    outside, need = (X < 0) | (np.floor(X) != X), "token numbers 0, 1, 2, ..."
    remedy = "Tokenizer() turns text into such a matrix."
    negative = "Negative values in data passed to" if X.min() < 0 else "X passed to"
    if not outside.any() and n_tokens is not None:
        outside, need = n_tokens <= X, f"token numbers below {n_tokens}"
        remedy = (
            "Pass n_tokens, the size of the whole vocabulary, or replace what was not "
            f"seen in training by {UNKNOWN}, as Tokenizer does."
        )
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"{negative} {name}: it needs {need}, but "
            f"{column_name(estimator, column)}, row {row} holds {X[row, column]}. "
            + remedy
        )


def text_among(estimator, X):
    """What to say where X holds text, or rows of several lengths; None elsewhere."""
    name = type(estimator).__name__
    remedy = "Tokenizer() turns text into a matrix of them, padded with 0 on the right."
    rows = X if isinstance(X, list | tuple) else np.atleast_1d(np.asarray(X))
    if getattr(rows, "dtype", np.dtype(object)).kind in "biufc":
        return None
    for row, cells in enumerate(rows):
        cells = np.ravel(np.array(cells, object))
        text = [cell for cell in cells if isinstance(cell, str)]
        if text:
            return (
                f"{name} takes token numbers, and row {row} holds the text "
                f"{text[0][:40]!r}. {remedy}"
            )
    sizes = [np.size(cells) for cells in rows]
    row = next((row for row, size in enumerate(sizes) if size != sizes[0]), None)
    if row is not None:
        return (
            f"{name} takes rows of one length: row 0 holds {sizes[0]} token numbers, "
            f"row {row} holds {sizes[row]}. Fill them up with 0 on the right."
        )
    return None


def warn_of_padding(estimator, X):
    """Warn where padding stands before tokens, and of rows without any token."""
    within = (X == PADDING) & (np.arange(X.shape[1]) < lengths(X)[:, None])
    name = type(estimator).__name__
    if within.any():
        row, column = np.argwhere(within)[0]
        warn(
            f"Padding (0) before tokens in X passed to {name}, first in row {row}, "
            f"{column_name(estimator, column)}. It is read but not predicted. Pad on "
            "the right."
        )
    elif not (X != PADDING).any(1).all():
        row = int(np.argmin((X != PADDING).any(1)))
        warn(
            f"Row {row} of X passed to {name} holds no token: its log-likelihood is 0 "
            "and its latents mean nothing. Drop such rows."
        )


def documented(cls):
    """Class decorator that fills the shared sections into the docstring."""
    training = TRAINING.format(learning_rate=RATE, restarts=RESTARTS, chance=CHANCE)
    attributes = "n_tokens_ : int\n        Size of the vocabulary, padding included.\n"
    cls.__doc__ = cls.__doc__.replace(
        "[shared parameters]", PARAMETERS + training
    ).replace("[shared attributes]", attributes + "    " + ATTRIBUTES)
    return cls


class BaseSequenceVAE(BaseVAE):
    """A VAE of token matrices: each row a document, padded with zeros on its right.

    A method says in `_decoder` what z reaches.
    """

    _parameter_constraints: dict = {
        **SHARED,
        "embedding_size": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "word_dropout": [Interval(Real, 0, 1, closed="both")],
        "n_tokens": [None, Interval(Integral, MIN_TOKENS, None, closed="left")],
    }

    def __init__(
        self,
        n_components=32,
        *,
        beta=1.0,
        width=256,
        embedding_size=128,
        dropout=0.0,
        word_dropout=0.0,
        n_tokens=None,
        objective="elbo",
        inference="amortized",
        max_iter=100,
        batch_size="auto",
        learning_rate=1e-3,
        schedule="cosine",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        n_init=1,
        warm_start=False,
        n_draws=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.beta = beta
        self.width = width
        self.embedding_size = embedding_size
        self.dropout = dropout
        self.word_dropout = word_dropout
        self.n_tokens = n_tokens
        self.objective = objective
        self.inference = inference
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_init = n_init
        self.warm_start = warm_start
        self.n_draws = n_draws
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # ------------------------------------------------------------------ parts

    likelihood = Tokens()

    def _decoder(self, **options):
        return LSTMDecoder(
            n_tokens=self.n_tokens_,
            embedding_size=self.embedding_size,
            width=self.width,
            dropout=self.dropout,
            word_dropout=self.word_dropout,
            **options,
        )

    def _parts(self, conditional):
        encoder = LSTMEncoder(
            n_tokens=self.n_tokens_,
            embedding_size=self.embedding_size,
            width=self.width,
        )
        return Specifications(
            encoder=encoder,
            decoder=self._decoder(),
            prior=StandardNormal(),
            likelihood=self.likelihood,
            posterior=EncoderPosterior(),
            inference=resolve(self.inference, INFERENCES),
            objective=resolve(self.objective, OBJECTIVES),
        )

    # ------------------------------------------------------------------ input

    def _check_X(self, X, *, reset=False):
        try:
            X = check_X(self, X, reset=reset)
        except (TypeError, ValueError) as error:
            explained = text_among(self, X)
            if explained is None:
                raise
            raise ValueError(explained) from error
        check_tokens(self, X, self.n_tokens if reset else self.n_tokens_)
        if reset and not X.any():
            raise ValueError(
                f"No row of X passed to {type(self).__name__} holds a token: every "
                f"number is {PADDING}, padding. Pass Tokenizer().fit_transform(texts)."
            )
        if reset:
            self.n_tokens_ = self.n_tokens or max(int(X.max()) + 1, MIN_TOKENS)
        warn_of_padding(self, X)
        return X

    def perplexity(self, X, y=None):
        """Inverse of the geometric mean probability of a token.

        Parameters
        ----------
        X : array-like of shape (n_samples, max_length)
            Token matrix.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        perplexity : float
            ``exp(-sum of score_samples / number of tokens)``; tokens are all that is
            no padding, end tokens included. Its logarithm is the negative
            log-likelihood per token in nats. Documents without tokens count nothing;
            NaN where there is no other.
        """
        check_is_fitted(self)
        X = self._check_X(X)
        n_tokens = n_predicted(X)
        if n_tokens == 0:
            return float("nan")
        return float(np.exp(-self._score_samples(X).sum() / n_tokens))

    def inverse_transform(self, Z):
        """The documents that the decoder writes for codes Z.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes, components ordered as :meth:`transform` returns them.

        Returns
        -------
        X : ndarray of shape (n_samples, max_length) and dtype int64
            Token matrix. Decoding is greedy: each token is the likeliest after those
            before it, up to the end token (2) or the training data's length.
        """
        return super().inverse_transform(Z).astype(np.int64)

    def _sample(self, n_samples, u, random_state):
        return super()._sample(n_samples, u, random_state).astype(np.int64)

    # ------------------------------------------------------------------ state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        return tags
