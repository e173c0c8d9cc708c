"""Skip-VAE against VAE with fully connected networks (Dieng, Kim, Rush, Blei 2019).

MNIST, Fashion-MNIST and Omniglot, grey and binarised, once or afresh; the published
latent sizes at two hidden layers of the decoder, and depths at 20 latents. Probes read
posterior means.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from skvae.estimators import VAE, SkipVAE
from skvae.likelihoods import Bernoulli
from skvae.networks import MLP, Skip
from skvae.objectives import ELBO
from skvae.probes import linear_probe, mlp_probe, neighbour_probe
from skvae.reproductions._images import LOADERS, images
from skvae.reproductions._measures import usage
from skvae.reproductions._table import Cell, Options, Table

EPOCHS, WIDTH, BATCH = 20, 512, 128
# Test rows of the importance-weighted likelihood, the costliest measurement.
N_SCORED = 2000

# What training and classifiers read: whether pixels are grey levels, and the parts.
PIXELS = {
    "grey": (True, Bernoulli(), ELBO()),
    "afresh": (True, Bernoulli(resample=True), ELBO()),
    "afresh, warm-up": (True, Bernoulli(resample=True), ELBO(warm_up=0.5)),
    "binarised": (False, Bernoulli(), ELBO()),
}
# Latents and hidden layers of the decoder; the published probe has 50 latents.
SIZES = [(50, 2), (2, 2), (10, 2), (20, 2), (100, 2), (20, 1), (20, 4)]
PROBLEMS = {
    f"{data}, {pixels}, {latents} latents, {depth} layers": (
        data,
        pixels,
        latents,
        depth,
    )
    for data in LOADERS
    for latents, depth in SIZES
    for pixels in PIXELS
}
METHODS = {
    "VAE": (VAE, MLP),
    "Skip-VAE": (SkipVAE, Skip),
    "Skip-VAE, hidden layers": (SkipVAE, partial(Skip, output=False)),
}


def probes(seed: int) -> dict:
    """The published classifier of posterior means, a linear and a local one.

    They read them as they are: to standardise blows up what the decoder ignores.
    """
    # The falling rate is worth half a point over Adam's constant one.
    network = mlp_probe(early_stopping=False, max_iter=15, random_state=seed)
    network.set_params(
        mlpclassifier__solver="sgd",
        mlpclassifier__learning_rate="adaptive",
        mlpclassifier__learning_rate_init=0.1,
        mlpclassifier__batch_size=128,
        mlpclassifier__n_iter_no_change=1,
        mlpclassifier__tol=1e-3,
    )
    readers = {
        "probe": network,
        "linear": linear_probe(max_iter=300),
        "neighbours": neighbour_probe(),
    }
    return {
        name: reader.set_params(standardscaler="passthrough")
        for name, reader in readers.items()
    }


def measure(problem: str, method: str, seed: int, options: Options) -> dict:
    """Fit one model and measure it on the test images."""
    name, pixels, n_latents, depth = PROBLEMS[problem]
    grey, likelihood, objective = PIXELS[pixels]
    X, y, X_test, y_test = images(name, options.data_dir, seed, grey=grey)
    scored = X_test
    if likelihood.resample:
        scored = images(name, options.data_dir, seed)[2]
    cls, decoder = METHODS[method]
    estimator = cls(
        n_latents,
        encoder=MLP(width=WIDTH, depth=2),
        decoder=decoder(width=WIDTH, depth=depth),
        likelihood=likelihood,
        objective=objective,
        max_iter=options.epochs or EPOCHS,
        batch_size=BATCH,
        schedule="cosine",
        random_state=seed,
        device="cpu",
    )
    started = time.perf_counter()
    estimator.fit(X)
    seconds = time.perf_counter() - started
    mean, std = (part.astype(np.float32) for part in estimator.posterior(scored))
    result = {
        "epochs": options.epochs or EPOCHS,
        "bound_train": round(estimator.history_["bound"][-1], 3),
        "ll": round(float(estimator.score(scored[:N_SCORED])), 3),
        **usage(mean, std),
        "fit_seconds": round(seconds, 1),
    }
    codes, codes_test = (
        estimator.transform(part).astype(np.float32) for part in (X, X_test)
    )
    # Omniglot's test images are of alphabets that training has not seen.
    known = np.isin(y_test, y).all()
    for column, probe in probes(seed).items():
        accuracy = probe.fit(codes, y).score(codes_test, y_test) if known else ""
        result[column] = round(accuracy, 4) if known else ""
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
        "All training images, as grey levels in [0, 1], binarised once per seed, or "
        "binarised afresh in every training step, where classifiers read the codes of "
        "grey levels and the rest is measured on images binarised once; with a "
        "warm-up, the KL term gains its weight over half of training; "
        f"Bernoulli likelihood, networks of width {WIDTH}, two hidden layers in the "
        f"encoder, batch {BATCH}, a rate that falls after half of training. Measured "
        "on test images: log-likelihood by 100 importance-weighted draws on "
        f"{N_SCORED} of them (of grey levels, a cross-entropy that compares with "
        "itself alone), KL, mutual information (full aggregate, at most 9.2), active "
        "units, all in nats; accuracy of classifiers that read posterior means as they "
        "are: probe (two hidden layers of 1024 units, 15 epochs), linear, five "
        "neighbours. "
        "Omniglot's test characters do not occur in training, so that no classifier "
        "is fitted there. Bound is that of the last training epoch.",
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
            (f"mnist, {levels}, 50 latents, 2 layers", method): {"probe": figure}
            for levels in PIXELS
            for method, figure in (("VAE", "0.9770"), ("Skip-VAE", "0.9825"))
        },
        source="Published: Dieng, Kim, Rush, Blei 2019, binarised MNIST, width 1024, "
        "100 epochs.",
    ),
}
