"""Skip-VAE against VAE with fully connected networks (Dieng, Kim, Rush, Blei 2019).

MNIST, Fashion-MNIST and Omniglot, binarised; the published latent sizes at two hidden
layers of the decoder, and depths at 20 latents. Classifiers read posterior means.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae.estimators import VAE, SkipVAE
from skvae.networks import MLP, Skip
from skvae.reproductions._images import LOADERS, images
from skvae.reproductions._measures import usage
from skvae.reproductions._table import Cell, Options, Table

EPOCHS, WIDTH, BATCH = 20, 512, 128
# Test rows of the importance-weighted likelihood, the costliest measurement.
N_SCORED = 2000

# Latents and hidden layers of the decoder; the published probe has 50 latents.
SIZES = [(50, 2), (2, 2), (10, 2), (20, 2), (100, 2), (20, 1), (20, 4)]
PROBLEMS = {
    f"{data}, {latents} latents, {depth} layers": (data, latents, depth)
    for data in LOADERS
    for latents, depth in SIZES
}
METHODS = {"VAE": (VAE, MLP), "Skip-VAE": (SkipVAE, Skip)}


def probes(seed: int):
    """Classifiers of posterior means: the published one, a linear and a local one."""
    network = MLPClassifier(
        (1024, 1024), batch_size=256, max_iter=12, random_state=seed, tol=0.0
    )
    return {
        "probe": make_pipeline(StandardScaler(), network),
        "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        "neighbours": KNeighborsClassifier(5),
    }


def measure(problem: str, method: str, seed: int, options: Options) -> dict:
    """Fit one model and measure it on the test images."""
    name, n_latents, depth = PROBLEMS[problem]
    X, y, X_test, y_test = images(name, options.data_dir, seed)
    cls, decoder = METHODS[method]
    estimator = cls(
        n_latents,
        encoder=MLP(width=WIDTH, depth=2),
        decoder=decoder(width=WIDTH, depth=depth),
        likelihood="bernoulli",
        max_iter=options.epochs or EPOCHS,
        batch_size=BATCH,
        schedule="cosine",
        random_state=seed,
        device="cpu",
    )
    started = time.perf_counter()
    estimator.fit(X)
    seconds = time.perf_counter() - started
    mean, std = (part.astype(np.float32) for part in estimator.posterior(X_test))
    result = {
        "epochs": options.epochs or EPOCHS,
        "bound_train": round(estimator.history_["bound"][-1], 3),
        "ll": round(float(estimator.score(X_test[:N_SCORED])), 3),
        **usage(mean, std),
        "fit_seconds": round(seconds, 1),
    }
    codes = estimator.transform(X).astype(np.float32)
    for column, probe in probes(seed).items():
        # Omniglot's test images are of alphabets that training has not seen.
        known = np.isin(y_test, y)
        result[column] = ""
        if known.all():
            result[column] = round(float(probe.fit(codes, y).score(mean, y_test)), 4)
    return result


def cells(options: Options):
    """Problem by problem, so that the published setting is complete first."""
    methods = options.chosen([*METHODS], options.methods, "method")
    for problem in options.chosen([*PROBLEMS], options.problems, "problem"):
        for seed in options.seed_range(3):
            for method in methods:
                yield Cell(
                    {"problem": problem, "method": method, "seed": seed},
                    lambda p=problem, m=method, s=seed: measure(p, m, s, options),
                )


TABLES = {
    "skip": Table(
        "Skip-VAE and VAE with fully connected networks",
        f"All training images, binarised once per seed; networks of width {WIDTH}, two "
        f"hidden layers in the encoder, batch {BATCH}, a rate that falls after half of "
        "training. Measured on the binarised test images: log-likelihood by 100 "
        f"importance-weighted draws on {N_SCORED} of them, KL, mutual information "
        "(full aggregate), active units, all in nats; accuracy of classifiers that "
        "read posterior means: probe (two hidden layers of 1024 units), linear, five "
        "neighbours. Omniglot's test characters do not occur in training, so that no "
        "classifier is fitted there. Bound is that of the last training epoch.",
        ("problem", "method", "seed"),
        {
            "probe": "{:.4f}",
            "linear": "{:.4f}",
            "neighbours": "{:.4f}",
            "bound_train": "{:.2f}",
            "ll": "{:.2f}",
            "kl": "{:.2f}",
            "mi": "{:.2f}",
            "active": "{:.0f}",
            "epochs": "{:.0f}",
            "fit_seconds": "{:.0f}",
        },
        cells,
        published={
            ("mnist, 50 latents, 2 layers", "VAE"): {"probe": "0.9770"},
            ("mnist, 50 latents, 2 layers", "Skip-VAE"): {"probe": "0.9825"},
        },
        source="Published: Dieng, Kim, Rush, Blei 2019, MNIST, networks of width 1024, "
        "100 epochs.",
    ),
}
