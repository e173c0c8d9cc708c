"""Binary observations: linear mixing, then coin flips (Khemakhem et al. 2020).

Ten sources, one linear mixing into 100 features; x is Bernoulli with these as logits,
and, for comparison, x is the logits themselves.
"""

from __future__ import annotations

from skvae.datasets import make_nonlinear_ica
from skvae.estimators import VAE, iVAE
from skvae.inference import Amortized
from skvae.metrics import mean_correlation_score
from skvae.networks import MLP
from skvae.reproductions._measures import held_out_rows
from skvae.reproductions._table import Cell, Options, Table

N_SEGMENTS, N_TRAINING, N_HELD_OUT = 20, 3000, 300
N_SOURCES, N_FEATURES = 10, 100

SHARED = {
    "decoder": MLP(depth=0),
    "encoder": MLP(width=100, activation="tanh", depth=1),
    "batch_size": 256,
    "n_init": 3,
    "device": "cpu",
}
METHODS = {
    "iVAE": lambda **o: iVAE(N_SOURCES, learning_rate=5e-3, **SHARED, **o),
    "iVAE, full covariance": lambda **o: iVAE(
        N_SOURCES, covariance="full", learning_rate=5e-3, **SHARED, **o
    ),
    "iVAE, not unmixed": lambda **o: iVAE(
        N_SOURCES,
        inference=Amortized(unmix=False),
        learning_rate=5e-3,
        **SHARED,
        **o,
    ),
    "VAE": lambda **o: VAE(N_SOURCES, learning_rate=5e-3, **SHARED, **o),
}
WITH_U = {"iVAE", "iVAE, full covariance", "iVAE, not unmixed"}
OBSERVATIONS = {"continuous": "gaussian", "binary": "bernoulli"}


def draw(binarize: bool, seed: int):
    """Data of one seed, and which rows are held out: 300 of each segment."""
    data = make_nonlinear_ica(
        N_SEGMENTS * (N_TRAINING + N_HELD_OUT),
        n_segments=N_SEGMENTS,
        n_sources=N_SOURCES,
        n_features=N_FEATURES,
        n_layers=1,
        max_condition=25.0,
        noise_std=0.0 if binarize else 0.1,
        binarize=binarize,
        random_state=seed,
        return_X_y=False,
    )
    return data, held_out_rows(data.u, N_HELD_OUT, seed)


def measure(observations: str, method: str, seed: int, epochs: int | None) -> dict:
    """Fit one method on one draw and compare held-out codes with the sources."""
    data, held_out = draw(observations == "binary", seed)
    estimator = METHODS[method](
        likelihood=OBSERVATIONS[observations],
        max_iter=epochs or 30,
        random_state=seed,
    )
    X, u, sources = data.data, data.u, data.sources[held_out]
    estimator.fit(X[~held_out], u[~held_out])
    options = {"u": u[held_out]} if method in WITH_U else {}
    Z = estimator.transform(X[held_out], **options)
    return {
        "mcc": round(mean_correlation_score(sources, Z), 4),
        "mcc_weak": round(
            mean_correlation_score(sources, Z, mode="weak", random_state=0), 4
        ),
        "active": int(estimator.active_components_.sum()),
        "bound": round(estimator.best_bound_, 3),
    }


def cells(options: Options):
    """Every kind of observation with every method."""
    for seed in options.seed_range(3):
        for observations in options.chosen(
            [*OBSERVATIONS], options.problems, "problem"
        ):
            for method in options.chosen([*METHODS], options.methods, "method"):
                yield Cell(
                    {"observations": observations, "method": method, "seed": seed},
                    lambda o=observations, m=method, s=seed: measure(
                        o, m, s, options.epochs
                    ),
                )


TABLES = {
    "discrete": Table(
        "Recovery from binary observations",
        "Ten centred sources, 100 features, 20 segments of 3000 training and 300 "
        "held-out rows, one linear mixing (condition number at most 25). Continuous "
        "observations have noise of standard deviation 0.1. Affine decoders; three "
        "restarts in one batch. Codes are posterior means of held-out rows.",
        ("observations", "method", "seed"),
        {
            "mcc": "{:.3f}",
            "mcc_weak": "{:.3f}",
            "active": "{:.0f}",
            "bound": "{:.2f}",
            "seconds": "{:.0f}",
        },
        cells,
        source="Khemakhem et al. 2020 give this experiment as a figure only.",
    ),
}
