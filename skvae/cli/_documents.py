"""From lines of text to what a comparison of sequence models trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import skvae
from skvae.cli._data import (
    Prepared,
    Texts,
    cut,
    labels,
    rows_of_both,
    split,
)
from skvae.cli._files import read_documents

ROWS, QUICK_ROWS, TEST_ROWS = 3000, 500, 1000
# Later tokens of a document are left out: time grows with the longest.
LONGEST = 60
MAX_WORDS = 5000
# From so many documents on, words that occur once are unknown ones.
MANY = 200
STEPS, QUICK_STEPS = 1000, 100
DRAWS = 20
# How corpora that are split already write a word they do not know.
UNKNOWNS = ("<unk>", "_UNK")


def check_options(arguments):
    """Refuse the options that are about numbers."""
    for name, meant in (
        ("likelihood", "a document's likelihood is that of its tokens"),
        ("image_shape", "documents are no images"),
        ("target", "labels stand before a tab in each line"),
    ):
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} does not go with a text file: {meant}.")


def typed(texts):
    """Labels as whole numbers or numbers where all of them are, else as text."""
    for kind in (int, float):
        try:
            return np.array([kind(text) for text in texts])
        except ValueError:
            continue
    return np.array(texts)


def prepare_documents(arguments):
    """Everything that is the same for all methods of a comparison of documents."""
    check_options(arguments)
    path = arguments.data
    lines, y = read_documents(path)
    y = None if y is None else labels(typed(y), path)
    notes = []
    documents, y = written(lines, y, notes)
    rng = np.random.RandomState(arguments.seed)
    rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    both = rows_of_both(rows)
    if len(documents) > both:
        notes.append(
            f"{both:,} of {len(documents):,} documents were drawn (--rows {rows})."
        )
    train, test, y, y_test = split(*cut(documents, y, both, rng), rng)
    test, y_test = cut(test, y_test, TEST_ROWS, rng)
    tokenizer, X, X_test = tokenized(list(train), list(test), notes)
    data = Prepared(Path(path).name, X, X_test, y, y_test, "tokens", notes=notes)
    data.texts = Texts(tokenizer, list(train), list(test))
    if y is None:
        notes.append("No labels (label, tab, text), so no probes.")
    if arguments.quick:
        notes.append("--quick: few steps, so no method shows what it can do.")
    return data


def written(lines, y, notes):
    """The lines that hold something, as an array, and their labels."""
    kept = np.array([bool(line.strip()) for line in lines], dtype=bool)
    if not kept.all():
        notes.append(f"{(~kept).sum():,} empty lines were left out.")
    return np.array(lines, dtype=object)[kept], None if y is None else y[kept]


def tokenizer_of(train, notes):
    """A tokenizer fitted to the training documents."""
    min_count = 2 if len(train) >= MANY else 1
    options = {"min_count": min_count, "max_vocabulary": MAX_WORDS}
    unknown = next((u for u in UNKNOWNS if any(u in text for text in train)), None)
    if unknown is not None:
        # The corpus was split by others: its own marks hold.
        options |= {"token_pattern": r"\S+", "unknown_token": unknown}
        notes.append(f"Split at white space, because the text holds {unknown}.")
    tokenizer = skvae.Tokenizer(handle_unknown="keep", dtype="float32", **options)
    X = tokenizer.fit_transform(train)
    if X.shape[1] > LONGEST:
        n = int((X[:, LONGEST] > 0).sum())
        notes.append(
            f"{n:,} training documents are longer than {LONGEST} tokens and lost their "
            "ends."
        )
        tokenizer.set_params(max_length=LONGEST).fit(train)
    is_full = len(tokenizer.vocabulary_) == MAX_WORDS
    notes.append(
        f"{len(tokenizer.vocabulary_):,} words are known, those that occur at least "
        f"{min_count} times in training documents"
        + (f" and are among the {MAX_WORDS:,} most frequent" if is_full else "")
        + "; the others count as one unknown token."
    )
    return tokenizer


def tokenized(train, test, notes):
    """A tokenizer of the training documents, and the token matrices of both parts.

    The matrices are in single precision, in which networks then answer.
    """
    tokenizer = tokenizer_of(train, notes)
    X, X_test = tokenizer.transform(train), tokenizer.transform(test)
    share = (X_test == 1).sum() / (X_test > 0).sum()
    notes.append(f"{100 * share:.1f}% of held-out tokens are unknown.")
    return tokenizer, X.astype(np.float32), X_test.astype(np.float32)


def document_parameters(arguments, data: Prepared):
    """Constructor arguments that all sequence models of a comparison share."""
    n = len(data.X)
    batch_size = int(np.clip(n // 32, 8, 32))
    steps = QUICK_STEPS if arguments.quick else STEPS
    epochs = int(np.clip(round(steps * batch_size / n), 5, 60))
    width = arguments.width or (32 if arguments.quick else 64)
    return {
        "n_components": arguments.n_components,
        "max_iter": arguments.max_iter or epochs,
        "width": width,
        "embedding_size": width,
        "n_tokens": len(data.texts.tokenizer.tokens_),
        "dropout": 0.3,
        "batch_size": min(batch_size, n),
        "learning_rate": 2e-3,
        "n_init": arguments.n_init,
        "n_draws": DRAWS,
        "random_state": arguments.seed,
    }


def word_frequencies(data: Prepared):
    """Log-probabilities ``(n_tokens,)`` of the tokens by their shares in training.

    Each counts once more than it was seen, so that none is impossible. Padding costs
    nothing.
    """
    n_tokens = len(data.texts.tokenizer.tokens_)
    counts = np.bincount(data.X.astype(int).ravel(), minlength=n_tokens)[1:] + 1.0
    return np.concatenate([[0.0], np.log(counts / counts.sum())])
