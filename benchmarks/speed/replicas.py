"""What restarts cost: n_init models trained in one batch, beside one model.

python benchmarks/speed/replicas.py
"""

import numpy as np
from _measure import Study, Target, timed

from skvae import VAE

ROWS, HELD_OUT, FEATURES, LATENTS = 4000, 1000, 20, 4
EPOCHS, CURVE_EPOCHS = 10, 2
COUNTS, WIDTHS = (1, 2, 4, 8, 16), (50, 100, 256)
EIGHT, ONE, LOOP = "n_init=8", "n_init=1", "eight fits"
MAIN = "width 100"


def rows(n_rows, seed=0):
    """A curved signal of few dimensions with noise."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_rows, LATENTS))
    hidden = np.tanh(z @ np.random.default_rng(1).standard_normal((LATENTS, 30)))
    loadings = np.random.default_rng(2).standard_normal((30, FEATURES)) / 30**0.5
    noise = 0.2 * rng.standard_normal((n_rows, FEATURES))
    return (hidden @ loadings + noise).astype(np.float32)


def contestant(X, seeds=(0,), **options):
    """All of `fit`, for each seed; keeps the best by its bound, as n_init does."""

    def run():
        shared = {"batch_size": 128, "device": "cpu", **options}
        fitted = [VAE(LATENTS, random_state=seed, **shared).fit(X) for seed in seeds]
        return {"fitted": max(fitted, key=lambda vae: vae.best_bound_)}

    return run


def measure(configuration, options):
    n_rows, epochs, widths, counts = ROWS, options.epochs, WIDTHS, COUNTS
    if options.tiny:
        n_rows, epochs, widths, counts = 256, 1, (16,), (1, 2)
    X, held_out = rows(n_rows), rows(HELD_OUT, seed=9)

    def scored(question, contestants):
        for row in timed(question, contestants, options.repetitions):
            # Here, because scoring does not count as fitting.
            yield {**row, "log_likelihood": row.pop("fitted").score(held_out)}

    if configuration["question"] == MAIN:
        shared = {"width": widths[0] if options.tiny else 100, "max_iter": epochs}
        yield from scored(
            MAIN,
            {
                ONE: contestant(X, **shared),
                EIGHT: contestant(X, n_init=8, **shared),
                LOOP: contestant(X, seeds=range(8), **shared),
            },
        )
        return
    for width in widths:
        shared = {"width": width, "max_iter": CURVE_EPOCHS}
        yield from scored(
            f"curve, width {width}",
            {
                f"n_init={count}": contestant(X, n_init=count, **shared)
                for count in counts
            },
        )


STUDY = Study(
    name="replicas",
    title="What restarts cost",
    protocol=(
        f"VAE with two hidden layers, {LATENTS} latents, {ROWS} rows of {FEATURES} "
        f"features, batch 128, {EPOCHS} epochs (the curves: {CURVE_EPOCHS}). Times are "
        "those of all of `fit`, choice of the best restart and summaries included; the "
        "log-likelihood is that of 1000 held-out rows, of the best model."
    ),
    unit="a fit",
    measure=measure,
    columns={"log_likelihood": "{:.2f}"},
    configurations=lambda options: [{"question": MAIN}, {"question": "curves"}],
    threads=(1, 2),
    targets=(
        Target(MAIN, EIGHT, ONE, at_most=2.5),
        Target(MAIN, EIGHT, LOOP),
    ),
    arguments=lambda parser: parser.add_argument("--epochs", type=int, default=EPOCHS),
)

if __name__ == "__main__":
    STUDY.main()
