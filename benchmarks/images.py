"""Active units, likelihood and probe accuracy on MNIST, equal networks and epochs.

Images are binarised once (pixel probability = grey level / 255, fixed seed). 784-512-
512-32 and back; activity, KL, mutual information, importance-weighted likelihood
(100 draws) and linear-probe accuracy are measured on test images.

    python benchmarks/images.py --data-dir DIRECTORY   # holds mnist.npz
"""

import time
import warnings

import numpy as np
from _common import append, done, parser, table, write_table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import LIDVAE, VAE, PosteriorCollapseWarning, SkipVAE
from skvae.datasets import fetch_fashion_mnist, fetch_mnist
from skvae.metrics import active_units, kl_per_unit, mutual_information

LOADERS = {"mnist": fetch_mnist, "fashion_mnist": fetch_fashion_mnist}


def methods(epochs):
    shared = {
        "n_components": 32,
        "width": 512,
        "depth": 2,
        "likelihood": "bernoulli",
        "batch_size": 128,
        "max_iter": epochs,
        "device": "cpu",
    }
    return {
        "VAE": VAE(**shared),
        "SkipVAE": SkipVAE(**shared),
        "LIDVAE, anchored": LIDVAE(inverse_lipschitz=1.0, **shared),
        "LIDVAE, brenier": LIDVAE(
            inverse_lipschitz=1.0, decoder="brenier", **{**shared, "depth": 1}
        ),
    }


def binarised(loader, data_dir):
    rng = np.random.default_rng(0)
    parts = []
    for subset in ("train", "test"):
        X, y = loader(
            data_home=data_dir,
            subset=subset,
            dtype="uint8",
            return_X_y=True,
            download_if_missing=False,
        )
        parts += [(rng.random(X.shape) * 255 < X).astype(np.uint8), y]
    return parts


def measure(estimator, X, y, X_test, y_test):
    mean, std = estimator.posterior(X_test)
    units = active_units(mean)
    rows = slice(0, 5000)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    train_rows = slice(0, 20_000)
    probe.fit(estimator.transform(X[train_rows]), y[train_rows])
    information = mutual_information(mean[rows], std[rows], random_state=0)
    return {
        "active": units.count,
        "least_variance": round(float(units.variances.min()), 4),
        "kl": round(float(kl_per_unit(mean, std).sum()), 3),
        "mi": round(information.value, 3),
        "mi_ceiling": round(information.ceiling, 3),
        "log_likelihood": round(float(estimator.score(X_test[rows])), 3),
        "probe": round(float(probe.score(mean, y_test)), 4),
        "inverse_lipschitz": round(getattr(estimator, "inverse_lipschitz_", 0.0), 3),
        "bound_train": round(estimator.history_["bound"][-1], 3),
    }


def main():
    arguments = parser(__doc__.splitlines()[0], "images")
    arguments.add_argument("--data-dir", default=None)
    arguments.add_argument("--data", default="mnist", choices=sorted(LOADERS))
    arguments.add_argument("--epochs", type=int, default=12)
    options = arguments.parse_args()
    X, y, X_test, y_test = binarised(LOADERS[options.data], options.data_dir)
    for seed in range(options.seeds or 3):
        for name, estimator in methods(options.epochs).items():
            key = (options.data, name, str(seed), str(options.epochs))
            if key in done(options.output, ("data", "method", "seed", "epochs")):
                continue
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PosteriorCollapseWarning)
                estimator.set_params(random_state=seed).fit(X)
            seconds = time.perf_counter() - started
            append(
                options.output,
                {
                    "data": options.data,
                    "method": name,
                    "seed": seed,
                    "epochs": options.epochs,
                    **measure(estimator, X, y, X_test, y_test),
                    "seconds_per_epoch": round(seconds / options.epochs, 2),
                },
            )
    values = [
        "active",
        "kl",
        "mi",
        "log_likelihood",
        "probe",
        "inverse_lipschitz",
        "seconds_per_epoch",
    ]
    formats = ["{:.0f}", "{:.1f}", "{:.2f}", "{:.2f}", "{:.4f}", "{:.2f}", "{:.1f}"]
    text = table(options.output, ["data", "method", "epochs"], values, formats)
    write_table(options.output, text)


if __name__ == "__main__":
    main()
