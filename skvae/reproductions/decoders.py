"""VAE, SkipVAE and both forms of LIDVAE with equal networks and epochs, on images.

Images are binarised once, 784-512-512-32 and back. The claim is that of Wang, Blei,
Cunningham 2021: an injective decoder keeps every latent, at no loss of likelihood.
"""

from __future__ import annotations

from skvae.estimators import LIDVAE, VAE, SkipVAE
from skvae.networks import Skip
from skvae.reproductions._images import (
    LOADERS,
    N_PROBED,
    N_SCORED,
    image_columns,
    images,
)
from skvae.reproductions._table import Cell, Options, Table

N_LATENTS, EPOCHS = 32, 20

METHODS = {
    "VAE": (VAE, {}),
    "SkipVAE": (SkipVAE, {}),
    "SkipVAE, hidden layers": (SkipVAE, {"decoder": Skip(512, 2, output=False)}),
    "LIDVAE, anchored": (LIDVAE, {"inverse_lipschitz": 1.0}),
    "LIDVAE, brenier": (
        LIDVAE,
        {"inverse_lipschitz": 1.0, "decoder": "brenier", "depth": 1},
    ),
}
SHARED = {
    "width": 512,
    "depth": 2,
    "likelihood": "bernoulli",
    "batch_size": 128,
    "device": "cpu",
}


def measure(name: str, method: str, seed: int, options: Options) -> dict:
    """Fit one model; all seeds see the same binary images."""
    parts = images(name, options.data_dir, seed=0)
    cls, own = METHODS[method]
    estimator = cls(
        N_LATENTS,
        max_iter=options.epochs or EPOCHS,
        random_state=seed,
        **{**SHARED, **own},
    )
    result = image_columns(estimator, *parts)
    slope = getattr(estimator, "inverse_lipschitz_", 0.0)
    return {**result, "inverse_lipschitz": round(slope, 3)}


def cells(options: Options):
    """Data set by data set, seeds outside methods."""
    methods = options.chosen([*METHODS], options.methods, "method")
    for name in options.chosen([*LOADERS], options.problems, "problem"):
        for seed in options.seed_range(10):
            for method in methods:
                yield Cell(
                    {"data": name, "method": method, "seed": seed},
                    lambda d=name, m=method, s=seed: measure(d, m, s, options),
                )


TABLES = {
    "decoders": Table(
        "Decoders that keep latents, on images",
        f"All training images, binarised once for all seeds; {N_LATENTS} latents, "
        "networks 512-512 (one hidden layer of 512 in each potential of the published "
        "decoder, brenier), batch 128. Measured on test images: units whose posterior "
        "mean varies by more than 0.01, and the smallest such variance; KL; mutual "
        "information (full aggregate) with its ceiling and the log-likelihood by 100 "
        f"importance-weighted draws, on the first {N_SCORED}; all in nats. The probe "
        "is a logistic regression on posterior means, fitted to those of the first "
        f"{N_PROBED} training images.",
        ("data", "method", "seed"),
        {
            "active": "{:.0f}",
            "least_variance": "{:.3f}",
            "kl": "{:.1f}",
            "mi": "{:.2f}",
            "ll": "{:.2f}",
            "probe": "{:.4f}",
            "inverse_lipschitz": "{:.2f}",
            "epochs": "{:.0f}",
            "seconds_per_epoch": "{:.1f}",
        },
        cells,
    ),
}
