"""Do the estimators recover known sources? Mean correlation on held-out rows.

Problem of Khemakhem et al. 2020: sources whose variance depends on the segment (40
segments of 1000 training rows), mixed by a network of 3 layers. For each seed a new
problem and four restarts trained in one batch, the best bound being kept; 200 further
rows per segment are held out and represented by their posterior means.

    python benchmarks/recovery.py            # ten seeds, n = 2, d = 4
    python benchmarks/recovery.py --methods IdentifiableVAE
"""

import time
import warnings

import numpy as np
from _common import append, done, parser, table, write_table

from skvae import VAE, IdentifiableVAE, PosteriorCollapseWarning, iVAE
from skvae.datasets import make_nonlinear_ica
from skvae.metrics import linear_r2_score, mean_correlation_score
from skvae.networks import MLP

N_SEGMENTS, N_TRAINING, N_HELD_OUT = 40, 1000, 200

TANH = MLP(width=100, activation="tanh")
OPTIONS = {
    "max_iter": 20,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "n_init": 4,
    "device": "cpu",
}


def methods(n_sources):
    """Name, estimator and whether u is passed; equal networks and schedules."""
    same = {**OPTIONS, "encoder": TANH, "decoder": TANH}
    return {
        "iVAE": (iVAE(n_sources, **OPTIONS), True),
        "iVAE, full covariance": (
            iVAE(n_sources, covariance="full", **OPTIONS),
            True,
        ),
        "IdentifiableVAE": (
            IdentifiableVAE(n_sources, **{**OPTIONS, "width": 100, "encoder": TANH}),
            True,
        ),
        "VAE": (VAE(n_sources, **same), False),
    }


def problem(seed, n_sources, n_features, centers):
    """Training and held-out rows of one problem, and the held-out sources."""
    n = N_SEGMENTS * (N_TRAINING + N_HELD_OUT)
    data = make_nonlinear_ica(
        n,
        n_segments=N_SEGMENTS,
        n_sources=n_sources,
        n_features=n_features,
        n_layers=3,
        centers=centers,
        random_state=seed,
        return_X_y=False,
    )
    held_out = np.zeros(n, dtype=bool)
    rng = np.random.default_rng(seed)
    for segment in range(N_SEGMENTS):
        rows = np.flatnonzero(data.u == segment)
        held_out[rng.choice(rows, N_HELD_OUT, replace=False)] = True
    return data, ~held_out, held_out


def run(path, seed, n_sources, n_features, centers, chosen):
    data, training, held_out = problem(seed, n_sources, n_features, centers)
    X, u, S = data.data, data.u, data.sources[held_out]
    available = methods(n_sources)
    for name in chosen:
        estimator, uses_u = available[name]
        label = f"n={n_sources}, d={n_features}, centers={centers}"
        if (label, name, str(seed)) in done(path, ("problem", "method", "seed")):
            continue
        estimator.set_params(random_state=seed)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PosteriorCollapseWarning)
            options = {"u": u[training]} if uses_u else {}
            estimator.fit(X[training], **options)
        seconds = time.perf_counter() - started
        options = {"u": u[held_out]} if uses_u else {}
        Z = estimator.transform(X[held_out], **options)
        append(
            path,
            {
                "problem": label,
                "method": name,
                "seed": seed,
                "mcc": round(mean_correlation_score(S, Z), 4),
                "mcc_without_u": round(
                    mean_correlation_score(S, estimator.transform(X[held_out])), 4
                ),
                "spearman": round(mean_correlation_score(S, Z, method="spearman"), 4),
                "weak_mcc": round(
                    mean_correlation_score(S, Z, mode="weak", random_state=0), 4
                ),
                "r2": round(linear_r2_score(S, Z, random_state=0), 4),
                "bound": round(estimator.best_bound_, 3),
                "noise_std": round(float(np.sqrt(estimator.noise_variance_)), 5),
                "consistency": round(float(estimator.consistency_.mean()), 3),
                "seconds": round(seconds, 1),
            },
        )


def main():
    arguments = parser(__doc__.splitlines()[0], "recovery")
    arguments.add_argument("--n-sources", type=int, default=2)
    arguments.add_argument("--n-features", type=int, default=4)
    arguments.add_argument("--centers", default="zero")
    default = ["iVAE, full covariance", "VAE"]
    arguments.add_argument("--first-seed", type=int, default=0)
    arguments.add_argument("--methods", nargs="+", default=default)
    options = arguments.parse_args()
    first = options.first_seed
    for seed in range(first, first + (options.seeds or 10)):
        run(
            options.output,
            seed,
            options.n_sources,
            options.n_features,
            options.centers,
            options.methods,
        )
    values = ["mcc", "mcc_without_u", "spearman", "weak_mcc", "bound", "seconds"]
    formats = ["{:.3f}"] * 4 + ["{:.2f}", "{:.0f}"]
    write_table(
        options.output, table(options.output, ["problem", "method"], values, formats)
    )


if __name__ == "__main__":
    main()
