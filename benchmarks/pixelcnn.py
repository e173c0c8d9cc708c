"""VAE against Skip-VAE with PixelCNN decoders of growing depth, on binarised images.

Images are binarised once (pixel probability = grey level / 255, fixed seed); activity,
KL, mutual information, importance-weighted likelihood and linear-probe accuracy are
measured on test images. The defaults are small, for one CPU core and minutes; with
them the figures show which way things go and are no match for published ones.

    python benchmarks/pixelcnn.py --data-dir DIRECTORY   # holds mnist.npz

Published scale, on a GPU (hours):

    python benchmarks/pixelcnn.py --data-dir DIRECTORY --device cuda --images 60000 \
        --test-images 10000 --epochs 100 --layers 1 3 6 9 --channels 32 \
        --encoder resnet --batch 50 --draws 100 --output pixelcnn_published.csv
"""

import time
import warnings

from _common import append, done, parser, table, write_table
from images import LOADERS, binarised, measure

from skvae import VAE, PosteriorCollapseWarning, SkipVAE
from skvae.networks import PixelCNN
from skvae.objectives import ELBO

METHODS = {"VAE": (VAE, False), "SkipVAE": (SkipVAE, True)}
SETTINGS = ("data", "encoder", "inference", "warm_up", "channels", "images", "epochs")
KEYS = (*SETTINGS, "method", "layers", "seed")


def estimator(method, layers, options, seed):
    cls, skip = METHODS[method]
    return cls(
        options.latents,
        decoder=PixelCNN(
            n_layers=layers,
            n_channels=options.channels,
            n_maps=options.maps,
            skip=skip,
        ),
        encoder=options.encoder,
        likelihood="bernoulli",
        objective=ELBO(warm_up=options.warm_up),
        inference=options.inference,
        batch_size=options.batch,
        max_iter=options.epochs,
        n_draws=options.draws,
        device=options.device,
        random_state=seed,
    )


def arguments():
    found = parser(__doc__.splitlines()[0], "pixelcnn")
    found.add_argument("--data-dir", default=None)
    found.add_argument("--data", default="mnist", choices=sorted(LOADERS))
    found.add_argument("--device", default="cpu")
    found.add_argument("--encoder", default="mlp", choices=["mlp", "conv", "resnet"])
    found.add_argument("--inference", default="amortized")
    for name, default in (
        ("images", 2000),
        ("test-images", 300),
        ("epochs", 4),
        ("channels", 16),
        ("maps", 1),
        ("latents", 32),
        ("batch", 20),
        ("draws", 20),
    ):
        found.add_argument(f"--{name}", type=int, default=default)
    found.add_argument("--layers", type=int, nargs="+", default=[1, 3, 6])
    found.add_argument("--warm-up", type=float, default=0.0)
    return found.parse_args()


def main():
    options = arguments()
    X, y, X_test, y_test = binarised(LOADERS[options.data], options.data_dir)
    X, y = X[: options.images], y[: options.images]
    X_test, y_test = X_test[: options.test_images], y_test[: options.test_images]
    cells = [
        (method, layers, seed)
        for seed in range(options.seeds or 1)
        for layers in options.layers
        for method in METHODS
    ]
    for method, layers, seed in cells:
        settings = [getattr(options, name) for name in SETTINGS]
        row = dict(zip(KEYS, (*settings, method, layers, seed), strict=True))
        if tuple(map(str, row.values())) in done(options.output, KEYS):
            continue
        vae = estimator(method, layers, options, seed)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PosteriorCollapseWarning)
            vae.fit(X)
        seconds = (time.perf_counter() - started) / options.epochs
        found = measure(vae, X, y, X_test, y_test)
        del found["inverse_lipschitz"]
        seconds = round(seconds, 1)
        append(options.output, {**row, **found, "seconds_per_epoch": seconds})
    groups = ["warm_up", "channels", "images", "epochs", "method", "layers"]
    values = [
        "active",
        "kl",
        "mi",
        "bound_train",
        "log_likelihood",
        "probe",
        "seconds_per_epoch",
    ]
    formats = ["{:.0f}", "{:.2f}", "{:.2f}", "{:.1f}", "{:.1f}", "{:.3f}", "{:.1f}"]
    write_table(options.output, table(options.output, groups, values, formats))


if __name__ == "__main__":
    main()
