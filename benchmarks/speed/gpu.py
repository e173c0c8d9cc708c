"""On a GPU: training, a small iVAE, a batched grid search, and bfloat16.

    python benchmarks/speed/gpu.py

Without a CUDA device the same code runs on the CPU at a tiny size, to see that it does.
"""

import sys
import warnings

import _peers
import ivae
import numpy as np
import torch
from _measure import Study, timed
from sklearn.model_selection import GridSearchCV

from skvae import VAE, BatchedGridSearchCV
from skvae.inference import Amortized

TRAIN, SMALL, SEARCH = (
    "training, batch 512",
    "small iVAE, batch 64",
    "60 fits, width 64",
)
OURS, LOADER = "skvae.VAE", "DataLoader, default Adam"
INDEXED = "indexed batches, fused Adam"
BFLOAT16 = "skvae.VAE, bfloat16"
ROWS, EPOCHS = 51_200, 5


def training(options):
    """Contestants that train the network of `train.py`, and steps per epoch."""
    n_rows, sizes = ROWS, _peers.Sizes(batch_size=512)
    if options.tiny:
        n_rows, sizes = 256, _peers.Sizes(64, 16, 4, 64)
    data = _peers.images(n_rows + n_rows // 10, sizes.n_features)
    X, held_out = data[:n_rows], data[n_rows:]
    shared = {
        "n_components": sizes.n_latents,
        "width": sizes.width,
        "likelihood": "bernoulli",
        "batch_size": sizes.batch_size,
        "learning_rate": sizes.learning_rate,
        "schedule": "constant",
        "max_iter": options.epochs,
        "device": options.device,
        "random_state": 0,
    }
    place = {"device": options.device}
    peer = X, held_out, sizes, options.epochs
    contestants = {
        OURS: _peers.ours(VAE(**shared), X, held_out),
        LOADER: _peers.plain(*peer, **place),
        INDEXED: _peers.plain(*peer, indexed=True, fused=True, **place),
    }
    if "precision" in Amortized().get_params():
        half = VAE(**shared, inference=Amortized(precision="bfloat16"))
        contestants[BFLOAT16] = _peers.ours(half, X, held_out)
    return contestants, options.epochs * -(-n_rows // sizes.batch_size)


def small(options):
    """An iVAE of five sources beside the script of the published program."""
    sizes = (4, 128, 10) if options.tiny else (40, 1000, 200)
    problem = ivae.Problem.draw(1, 5, 5, *sizes)
    known = ivae.estimators(5, 1, options.device)
    return {
        ivae.EQUAL: ivae.ours(known[ivae.EQUAL], problem),
        ivae.SCRIPT: ivae.script(problem, ivae.PUBLISHED, 1, device=options.device),
    }, len(problem.X) // ivae.BATCH


def search(options):
    """A batched grid search beside one fit after the other, on the same device."""
    n_rows, grid, folds = 1797, {"beta": [0.5, 1.0, 2.0, 4.0]}, 5
    grid["random_state"] = [0, 1, 2]
    if options.tiny:
        n_rows, grid, folds = 128, {"beta": [1.0, 2.0]}, 2
    X = np.random.default_rng(0).standard_normal((n_rows, 64)).astype(np.float32)
    shared = {"max_iter": options.epochs, "device": options.device}
    vae = VAE(10, width=64, random_state=0, **shared)

    def contestant(cls):
        tuned = cls(vae, grid, cv=folds, refit=False)
        return lambda: {"bound": tuned.fit(X).cv_results_["mean_test_score"].max()}

    return {
        cls.__name__: contestant(cls) for cls in (BatchedGridSearchCV, GridSearchCV)
    }


def measure(configuration, options):
    warnings.simplefilter("ignore")
    question, device = configuration["question"], torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if question == SEARCH:
        contestants, n_steps = search(options), 1
    else:
        contestants, n_steps = (training if question == TRAIN else small)(options)
    for row in timed(f"{question}, {name}", contestants, options.repetitions):
        row["bound"] = row.get("bound", row.get("log_likelihood"))
        yield {**row, "seconds": row["seconds"] / n_steps}


def arguments(parser):
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=EPOCHS)


STUDY = Study(
    name="gpu",
    title="On a GPU",
    protocol=(
        f"Training: the network of the CPU table on {ROWS:,} images, {EPOCHS} epochs "
        "(the loader's batches go to the device one by one; the indexed ones lie "
        "there), the bound of held-out rows. Small iVAE: the step of the iVAE "
        "table, held-out log-likelihood. Grid search: 4 betas, 3 seeds, 5 folds on "
        "1797 rows of noise with 64 features; whole searches, and the best score. "
        "bfloat16 is training only: the bound tells what it costs."
    ),
    unit="a step or a search",
    measure=measure,
    columns={"bound": "{:.2f}"},
    configurations=lambda options: [{"question": q} for q in (TRAIN, SMALL, SEARCH)],
    arguments=arguments,
)

if __name__ == "__main__":
    if torch.cuda.is_available() or "--device" in sys.argv:
        STUDY.main()
    else:
        print("No CUDA device here: the same code, tiny, on the CPU. No figures.")
        STUDY.main(["--tiny", "--device", "cpu", "--repetitions", "1", *sys.argv[1:]])
