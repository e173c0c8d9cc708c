"""Sequence VAEs on documents: whether they use z, and what it costs.

Short Yelp reviews, the Penn Treebank, Yahoo answers and SNLI sentences. Local form, in
the directory of the data: a gzip file of UTF-8 text per part, a tokenised document a
line, after its label and a tab where the corpus has labels; CORPORA has the names.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skvae.estimators import LIDSVAE, SequenceVAE, SkipSequenceVAE
from skvae.inference import Lagging, SemiAmortized
from skvae.metrics import active_units
from skvae.objectives import ELBO
from skvae.reproductions._measures import linear_accuracy, usage
from skvae.reproductions._table import Cell, Options, Table
from skvae.text import Tokenizer

N_LATENTS, N_TEST = 32, 1000
# Draws and test documents of the importance-weighted likelihood, the costliest
# measurement; as many are watched after each epoch.
N_DRAWS, N_SCORED = 50, 500


class Corpus(NamedTuple):
    """Files, and how much of them is read.

    `max_length` cuts documents, `min_count` bounds the vocabulary, and `unknown` is how
    the corpus writes its rare words.
    """

    training: str
    test: str
    n_rows: int
    max_length: int | None = None
    min_count: int = 3
    unknown: str = "<unk>"
    width: int = 64
    epochs: int = 12


CORPORA = {
    "short_yelp": Corpus("short_yelp_train10k.tsv.gz", "short_yelp_test.tsv.gz", 10000),
    "ptb": Corpus("ptb_train.txt.gz", "ptb_test.txt.gz", 6000, 40, 5),
    "yahoo": Corpus(
        "yahoo_valid.txt.gz", "yahoo_test.txt.gz", 10000, 40, 20, unknown="_UNK"
    ),
    "snli": Corpus("snli_valid.txt.gz", "snli_test.txt.gz", 10000),
}
ANNEALED = {"objective": ELBO(warm_up=0.5)}
REFINED = {"inference": SemiAmortized(n_steps=5)}
METHODS = {
    # Its posterior is its prior, and its likelihood that of an LSTM.
    "language model": (SequenceVAE, {"n_components": 1, "beta": 1000.0}),
    "SequenceVAE": (SequenceVAE, {}),
    "SequenceVAE, annealed": (SequenceVAE, ANNEALED),
    "SequenceVAE, beta 0.4": (SequenceVAE, {"beta": 0.4}),
    # The paper takes up to 99 steps.
    "SequenceVAE, lagging": (
        SequenceVAE,
        {"inference": Lagging(max_inner_steps=20, block=10, patience=1)},
    ),
    "SequenceVAE, semi-amortized": (SequenceVAE, REFINED),
    "SkipSequenceVAE": (SkipSequenceVAE, {}),
    "SkipSequenceVAE, annealed": (SkipSequenceVAE, ANNEALED),
    "SkipSequenceVAE, semi-amortized": (SkipSequenceVAE, REFINED),
    "LIDSVAE": (LIDSVAE, {}),
    "LIDSVAE, slope 1": (LIDSVAE, {"inverse_lipschitz": 1.0}),
}


def read_documents(path: Path, n_rows: int):
    """Up to n_rows documents, evenly spaced in the file, and their labels or None."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = [line.rstrip("\n") for line in file]
    except FileNotFoundError:
        raise OSError(
            f"Data not found: there is no {path}. It is a gzip file with a document a "
            "line. Name its directory by --data-dir."
        ) from None
    rows = np.linspace(0, len(lines) - 1, min(n_rows, len(lines))).astype(int)
    *labels, texts = zip(*(lines[row].split("\t") for row in rows), strict=True)
    return texts, np.array(labels[0], dtype=int) if labels else None


def documents(name: str, data_dir: str | None):
    """Token matrices and labels of both parts, and the size of the vocabulary."""
    corpus, directory = CORPORA[name], Path(data_dir or ".")
    texts, y = read_documents(directory / corpus.training, corpus.n_rows)
    test_texts, y_test = read_documents(directory / corpus.test, N_TEST)
    tokenizer = Tokenizer(
        min_count=corpus.min_count,
        max_length=corpus.max_length,
        token_pattern=r"\S+",
        unknown_token=corpus.unknown,
        handle_unknown="keep",
        dtype="float32",
    )
    X, X_test = tokenizer.fit_transform(texts), tokenizer.transform(test_texts)
    return X, y, X_test, y_test, len(tokenizer.tokens_)


class ActiveUnits:
    """Callback that counts active units on the rows of X after each epoch."""

    def __init__(self, X):
        self.X, self.counts = X, []

    def setup(self, estimator, context):
        """Nothing to prepare."""

    def teardown(self, estimator, context):
        """Nothing to close."""

    def on_fit_task_begin(self, estimator, context):
        """Nothing to note before an epoch."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        """Count where an epoch has ended."""
        if context.task_name == "epoch":
            self.counts.append(active_units(fitted_estimator.transform(self.X)).count)


def measure(name: str, method: str, seed: int, options: Options) -> dict:
    """Fit one model and measure it on test documents."""
    X, y, X_test, y_test, n_tokens = documents(name, options.data_dir)
    corpus, (cls, own) = CORPORA[name], METHODS[method]
    estimator = cls(
        **{"n_components": N_LATENTS, **own},
        width=corpus.width,
        embedding_size=corpus.width,
        dropout=0.3,
        n_tokens=n_tokens,
        max_iter=options.epochs or corpus.epochs,
        batch_size=32,
        learning_rate=2e-3,
        n_draws=N_DRAWS,
        device="cpu",
        random_state=seed,
    )
    scored = X_test[:: -(-len(X_test) // N_SCORED)]
    watched = ActiveUnits(scored)
    estimator.set_callbacks(watched).fit(X)
    mean, std = estimator.posterior(X_test)
    scores = estimator.score_samples(scored)
    result = {
        "documents": len(X),
        "width": corpus.width,
        "tokens": n_tokens,
        "epochs": options.epochs or corpus.epochs,
        "nll": round(float(-scores.mean()), 3),
        "ppl": round(float(np.exp(-scores.sum() / (scored > 0).sum())), 2),
        **usage(mean, std),
        "least_active": min(watched.counts),
        "active_by_epoch": " ".join(map(str, watched.counts)),
        "inverse_lipschitz": round(getattr(estimator, "inverse_lipschitz_", 0.0), 3),
        "probe": "",
        "fit_seconds": round(sum(estimator.history_["seconds"]), 1),
    }
    if y is not None:
        result["probe"] = linear_accuracy(estimator.transform(X), y, mean, y_test)
    return result


def cells(options: Options):
    """Corpus by corpus, seeds outside methods."""
    methods = options.chosen([*METHODS], options.methods, "method")
    for name in options.chosen([*CORPORA], options.problems, "problem"):
        for seed in options.seed_range(3):
            for method in methods:
                yield Cell(
                    {"problem": name, "method": method, "seed": seed},
                    lambda p=name, m=method, s=seed: measure(p, m, s, options),
                )


PROTOCOL = (
    "Training documents, at even spacing in their file: "
    + "; ".join(
        f"{name}, {corpus.n_rows} of {corpus.training}, words of fewer than "
        f"{corpus.min_count} occurrences unknown"
        + (f", cut at {corpus.max_length} tokens" if corpus.max_length else "")
        for name, corpus in CORPORA.items()
    )
    + ". Yahoo and SNLI come without their training parts, so models are fitted to the "
    f"validation part. {N_LATENTS} latents, LSTMs and word vectors of 64 units, "
    "dropout 0.3, batch 32, Adam at 0.002 falling after half of training. The language "
    "model is a SequenceVAE with one latent whose KL term weighs 1000. Lagging takes "
    "up to 20 encoder steps per batch, semi-amortised inference 5, in training and "
    f"after it. Measured on {N_TEST} documents of the test part: KL and mutual "
    "information (full aggregate) in nats, units whose posterior mean varies by more "
    "than 0.01, accuracy of a logistic regression of the sentiment on posterior means. "
    "NLL in nats per document and perplexity per token, end tokens included, are "
    f"importance-weighted with {N_DRAWS} draws on {N_SCORED} of these documents; on "
    "them, too, least_active is the smallest number of active units after any epoch. "
    "fit_seconds are those of the training epochs alone."
)
TABLES = {
    "text": Table(
        "Sequence VAEs on documents",
        PROTOCOL,
        ("problem", "method", "seed"),
        {
            "nll": "{:.2f}",
            "ppl": "{:.2f}",
            "kl": "{:.2f}",
            "mi": "{:.2f}",
            "active": "{:.0f}",
            "least_active": "{:.0f}",
            "inverse_lipschitz": "{:.2f}",
            "probe": "{:.3f}",
            "documents": "{:.0f}",
            "tokens": "{:.0f}",
            "epochs": "{:.0f}",
            "fit_seconds": "{:.0f}",
        },
        cells,
        source="Published figures (He et al. 2019; Wang, Blei, Cunningham 2021) are of "
        "100,000 whole documents, LSTMs of 1024 units and 20,000 words, and do not "
        "compare.",
    ),
}
