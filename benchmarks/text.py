"""Likelihood, collapse and a sentiment probe of sequence models on short texts.

Short Yelp sentences (label, sentence) or the Penn Treebank; equal networks and epochs.
Negative log-likelihood and perplexity are importance-weighted (`draws` samples) on test
documents, end tokens included; KL, mutual information and active units are those of
the encoder there; the probe is a logistic regression on posterior means. The "language
model" is a SequenceVAE whose KL term weighs 1000: its posterior is its prior, and its
likelihood that of an LSTM.

    python benchmarks/text.py --data-dir DIRECTORY   # holds short_yelp_*.tsv.gz, ptb_*

Defaults are an indication of minutes on a CPU. The published settings for long texts
(He et al. 2019) are near --rows 100000 --epochs 100 --width 1024 --embedding 512
--components 32 --draws 500 --dropout 0.5 --device cuda.
"""

import gzip
import time
import warnings
from pathlib import Path

import numpy as np
from _common import append, done, parser, table, write_table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import (
    LIDSVAE,
    PosteriorCollapseWarning,
    SequenceVAE,
    SkipSequenceVAE,
    Tokenizer,
)
from skvae.inference import Lagging
from skvae.metrics import active_units, kl_per_unit, mutual_information
from skvae.objectives import ELBO

FILES = {
    "short_yelp": ("short_yelp_train10k.tsv.gz", "short_yelp_test.tsv.gz"),
    "ptb": ("ptb_train.txt.gz", "ptb_test.txt.gz"),
}
SIZES = ("rows", "epochs", "width", "embedding", "components", "draws", "dropout")


def methods(options):
    shared = {
        "n_components": options.components,
        "width": options.width,
        "embedding_size": options.embedding,
        "dropout": options.dropout,
        "max_iter": options.epochs,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "n_draws": options.draws,
        "device": options.device,
    }
    annealed = {**shared, "objective": ELBO(warm_up=0.5)}
    return {
        "language model": SequenceVAE(**shared).set_params(n_components=1, beta=1e3),
        "SequenceVAE": SequenceVAE(**shared),
        "SequenceVAE, annealed": SequenceVAE(**annealed),
        "SequenceVAE, beta 0.4": SequenceVAE(beta=0.4, **shared),
        "SkipSequenceVAE": SkipSequenceVAE(**shared),
        "SkipSequenceVAE, annealed": SkipSequenceVAE(**annealed),
        "LIDSVAE": LIDSVAE(**shared),
        "LIDSVAE, slope 1": LIDSVAE(inverse_lipschitz=1.0, **shared),
        # The paper takes up to 99 steps.
        "SequenceVAE, lagging": SequenceVAE(
            inference=Lagging(max_inner_steps=30, block=15, patience=1), **shared
        ),
    }


def documents(path, n_rows):
    """Texts, and labels where the file has any; every k-th line."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    n_rows = min(n_rows, len(lines))
    rows = np.linspace(0, len(lines) - 1, n_rows).astype(int)
    parts = [lines[row].split("\t") for row in rows]
    labels = None if len(parts[0]) == 1 else np.array([int(part[0]) for part in parts])
    return [part[-1] for part in parts], labels


def measure(estimator, X, y, X_test, y_test):
    mean, std = estimator.posterior(X_test)
    scores = estimator.score_samples(X_test)
    result = {
        "nll": round(float(-scores.mean()), 3),
        "ppl": round(float(np.exp(-scores.sum() / (X_test > 0).sum())), 2),
        "kl": round(float(kl_per_unit(mean, std).sum()), 3),
        "mi": round(mutual_information(mean, std, random_state=0).value, 3),
        "active": active_units(mean).count,
        "inverse_lipschitz": round(getattr(estimator, "inverse_lipschitz_", 0.0), 3),
        "probe": "",
    }
    if y is not None:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(estimator.transform(X), y)
        result["probe"] = round(float(probe.score(mean, y_test)), 4)
    return result


def arguments():
    options = parser(__doc__.splitlines()[0], "text")
    options.add_argument("--data-dir", required=True, type=Path)
    options.add_argument("--data", default="short_yelp", choices=sorted(FILES))
    options.add_argument("--rows", type=int, default=3000)
    options.add_argument("--test-rows", type=int, default=1000)
    options.add_argument("--epochs", type=int, default=12)
    options.add_argument("--width", type=int, default=64)
    options.add_argument("--embedding", type=int, default=64)
    options.add_argument("--components", type=int, default=16)
    options.add_argument("--draws", type=int, default=50)
    options.add_argument("--dropout", type=float, default=0.3)
    options.add_argument("--device", default="auto")
    return options.parse_args()


def main():
    options = arguments()
    train, test = (options.data_dir / name for name in FILES[options.data])
    texts, y = documents(train, options.rows)
    test_texts, y_test = documents(test, options.test_rows)
    tokenizer = Tokenizer(min_count=2, token_pattern=r"\S+", handle_unknown="keep")
    X, X_test = tokenizer.fit_transform(texts), tokenizer.transform(test_texts)
    sizes = {name: getattr(options, name) for name in SIZES}
    keys = ("data", "method", "seed", *SIZES)
    for seed in range(options.seeds or 1):
        for name, estimator in methods(options).items():
            key = {"data": options.data, "method": name, "seed": seed, **sizes}
            if tuple(map(str, key.values())) in done(options.output, keys):
                continue
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PosteriorCollapseWarning)
                estimator.set_params(random_state=seed).fit(X)
            seconds = round(time.perf_counter() - started, 1)
            measured = measure(estimator, X, y, X_test, y_test)
            vocabulary = len(tokenizer.tokens_)
            row = {**key, "tokens": vocabulary, **measured, "seconds": seconds}
            append(options.output, row)
    values = ["nll", "ppl", "kl", "mi", "active", "probe", "seconds"]
    formats = ["{:.2f}", "{:.2f}", "{:.2f}", "{:.2f}", "{:.0f}", "{:.3f}", "{:.0f}"]
    groups = ["data", "rows", "epochs", "method"]
    write_table(options.output, table(options.output, groups, values, formats))


if __name__ == "__main__":
    main()
