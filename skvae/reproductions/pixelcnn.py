"""VAE against Skip-VAE with PixelCNN decoders of growing depth, on binarised MNIST.

The claim is that of Dieng, Kim, Rush, Blei 2019: a decoder that sees earlier pixels
leaves z unused, and less so where every layer reads z again.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from skvae.estimators import VAE, SkipVAE
from skvae.estimators._fitting import resolve_device
from skvae.networks import PixelCNN
from skvae.objectives import ELBO
from skvae.reproductions._images import image_columns, images
from skvae.reproductions._table import Cell, Options, Table

METHODS = {"VAE": VAE, "SkipVAE": SkipVAE}
# Whether z reaches every layer of the decoder.
SKIPS = {"VAE": False, "SkipVAE": True}


class Setting(NamedTuple):
    """Sizes of a run; the defaults are for one CPU core and minutes."""

    layers: int
    channels: int = 16
    encoder: str = "mlp"
    n_latents: int = 32
    warm_up: float = 0.0
    n_training: int = 5000
    n_test: int = 500
    epochs: int = 8
    batch_size: int = 20
    n_draws: int = 20


SMALL = {"1 layer": Setting(1), "3 layers": Setting(3), "6 layers": Setting(6)}
SMALL["6 layers, warm-up"] = Setting(6, warm_up=0.25)
published_size = partial(
    Setting,
    channels=32,
    encoder="resnet",
    n_latents=50,
    n_training=60_000,
    n_test=10_000,
    epochs=100,
    batch_size=50,
    n_draws=100,
)
LARGE = {f"{n} layers": published_size(n) for n in (8, 3, 6)}


def measure(setting: Setting, method: str, seed: int, options: Options) -> dict:
    """Fit one model; all seeds see the same binary images."""
    X, y, X_test, y_test = images("mnist", options.data_dir, seed=0)
    X, y = X[: setting.n_training], y[: setting.n_training]
    X_test, y_test = X_test[: setting.n_test], y_test[: setting.n_test]
    estimator = METHODS[method](
        setting.n_latents,
        decoder=PixelCNN(
            n_layers=setting.layers, n_channels=setting.channels, skip=SKIPS[method]
        ),
        encoder=setting.encoder,
        likelihood="bernoulli",
        objective=ELBO(warm_up=setting.warm_up),
        batch_size=setting.batch_size,
        max_iter=options.epochs or setting.epochs,
        n_draws=setting.n_draws,
        random_state=seed,
    )
    return {
        "device": resolve_device("auto").type,
        "images": setting.n_training,
        "channels": setting.channels,
        "warm_up": setting.warm_up,
        **image_columns(estimator, X, y, X_test, y_test),
    }


def _cells(settings: dict[str, Setting]):
    def cells(options: Options):
        for seed in options.seed_range(1):
            for name in options.chosen([*settings], options.problems, "problem"):
                for method in options.chosen([*METHODS], options.methods, "method"):
                    yield Cell(
                        {"problem": name, "method": method, "seed": seed},
                        lambda p=settings[name], m=method, s=seed: measure(
                            p, m, s, options
                        ),
                    )

    return cells


PROTOCOL = (
    "MNIST, binarised once for all seeds. Measured on test images: active units, KL, "
    "mutual information (full aggregate) and importance-weighted log-likelihood in "
    "nats; the probe is a logistic regression on posterior means of training images."
)
COLUMNS = {
    "active": "{:.0f}",
    "kl": "{:.2f}",
    "mi": "{:.2f}",
    "bound_train": "{:.1f}",
    "ll": "{:.1f}",
    "probe": "{:.3f}",
    "channels": "{:.0f}",
    "epochs": "{:.0f}",
    "seconds_per_epoch": "{:.1f}",
}

TABLES = {
    "pixelcnn": Table(
        "PixelCNN decoders: a small run",
        f"{PROTOCOL} The first 5000 training and 500 test images, 32 latents, dense "
        "encoder, batch 20, 20 draws; warm-up is of the KL term, over a quarter of "
        "training. It shows which way things go and is no match for published figures.",
        ("problem", "method", "seed"),
        COLUMNS,
        _cells(SMALL),
    ),
    "pixelcnn_published": Table(
        "PixelCNN decoders of the published size",
        f"{PROTOCOL} All images, 50 latents, residual encoder, batch 50, 100 draws on "
        "5000 test images; runs on CUDA where there is a device, for hours.",
        ("problem", "method", "seed"),
        COLUMNS,
        _cells(LARGE),
        published={
            ("8 layers", "VAE"): {"probe": "0.9719"},
            ("8 layers", "SkipVAE"): {"probe": "0.9810"},
        },
        source="Published: Dieng, Kim, Rush, Blei 2019, with a nonlinear probe and 8 "
        "masked layers before the output.",
    ),
}
