"""How many networks a grid search should train in one batch.

python benchmarks/speed/batches.py
"""

import time

from _measure import Study, timed
from grid_search import GRID
from sklearn.datasets import load_digits

from skvae import VAE, BatchedGridSearchCV

EPOCHS, FOLDS = 6, 5
REPLICAS = {32: (15, 30, 60), 64: (15, 30, 60), 128: (5, 8, 12, 20), 256: (2, 4, 8, 12)}
RULE = "the rule"


def question_of(width):
    """The name of a comparison."""
    return f"60 fits of width {width}"


def search(X, vae, max_replicas, grid, n_folds):
    """A contestant: a search in this process, and the size of its largest batch."""

    def run():
        options = {"cv": n_folds, "refit": False, "max_replicas": max_replicas}
        tuned = BatchedGridSearchCV(vae, grid, **options)
        started = time.perf_counter()
        tuned.fit(X)
        seconds = time.perf_counter() - started
        largest = max(batch["n_replicas"] for batch in tuned.batches_)
        score = tuned.cv_results_["mean_test_score"].max()
        return {"seconds": seconds, "replicas": largest, "log_likelihood": score}

    return run


def measure(configuration, options):
    width, epochs, grid, n_folds = configuration["width"], EPOCHS, GRID, FOLDS
    if options.tiny:
        width, epochs, grid, n_folds = 8, 1, {"beta": [1.0, 2.0]}, 2
    X = load_digits().data / 16.0
    vae = VAE(10, width=width, max_iter=epochs, device="cpu")
    sizes = {f"at most {n}": n for n in REPLICAS[configuration["width"]]}
    contestants = {
        name: search(X, vae, n, grid, n_folds)
        for name, n in {RULE: "auto", **sizes}.items()
    }
    yield from timed(configuration["question"], contestants, options.repetitions)


STUDY = Study(
    name="batches",
    title="How many networks in a batch",
    protocol=(
        "A search of 60 fits (digits, 4 betas, 3 seeds, 5 folds), ten latents, "
        f"{EPOCHS} epochs each, in one process; seconds of all of the search, scoring "
        "included. `replicas` is the largest batch that was trained."
    ),
    unit="a search",
    measure=measure,
    columns={"replicas": "{:.0f}", "log_likelihood": "{:.2f}"},
    configurations=lambda options: [
        {"question": question_of(width), "width": width} for width in REPLICAS
    ],
)

if __name__ == "__main__":
    STUDY.main()
