"""How long a training step takes, beside loops that others write and pythae's.

python benchmarks/speed/train.py
"""

import time
from itertools import pairwise

import _peers
import torch
from _measure import Study, Target, timed

from skvae import VAE
from skvae._products import KERNEL, product

BATCHES = 128, 512
ROWS, HELD_OUT, EPOCHS = 12_800, 1280, 2
OURS = "skvae.VAE"
LOADER = "DataLoader, default Adam"
INDEXED = "indexed batches, fused Adam"
PRODUCTS = "matrix products alone"
ONEDNN_PRODUCTS = "matrix products alone, by oneDNN"


def by_onednn(x, weight, out):
    """As skvae multiplies, into memory of its own."""
    return product(x, weight)


def products(sizes, n_steps, repeats=1, multiply=torch.mm):
    """A contestant: all matrix products of a step, their memory at hand.

    Forward, the gradients of all weights, and of all activations; nothing needs the
    gradient of x.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    batch, layers = sizes.batch_size, []
    widths = [
        [sizes.n_features, sizes.width, sizes.width, 2 * sizes.n_latents],
        [sizes.n_latents, sizes.width, sizes.width, sizes.n_features],
    ]
    for network in widths:
        for n_in, n_out in pairwise(network):
            layers.append(
                {
                    "x": draw(batch, n_in),
                    "weight": draw(n_in, n_out) / n_in**0.5,
                    "y": torch.empty(batch, n_out),
                    "slope": draw(batch, n_out),
                    "weight_slope": torch.empty(n_in, n_out),
                    "x_slope": torch.empty(batch, n_in),
                }
            )

    def step():
        for layer in layers:
            multiply(layer["x"], layer["weight"], out=layer["y"])
        for number, layer in enumerate(reversed(layers), 1):
            multiply(layer["x"].t(), layer["slope"], out=layer["weight_slope"])
            if number < len(layers):
                multiply(layer["slope"], layer["weight"].t(), out=layer["x_slope"])

    def run():
        started = time.perf_counter()
        for _ in range(n_steps):
            step()
        return {"seconds": (time.perf_counter() - started) * repeats}

    return run


def measure(configuration, options):
    rows, width, n_features = ROWS, 512, 784
    if options.tiny:
        rows, width, n_features = 256, 16, 64
    sizes = _peers.Sizes(n_features, width, batch_size=configuration["batch"])
    epochs, n_held_out = options.epochs, max(64, rows // 10)
    data = _peers.images(rows + n_held_out, n_features)
    X, held_out = data[:rows], data[rows:]
    n_steps = epochs * -(-rows // sizes.batch_size)
    vae = VAE(
        sizes.n_latents,
        width=sizes.width,
        likelihood="bernoulli",
        batch_size=sizes.batch_size,
        learning_rate=sizes.learning_rate,
        schedule="constant",
        max_iter=epochs,
        device="cpu",
        random_state=0,
    )
    contestants = {
        OURS: _peers.ours(vae, X, held_out),
        LOADER: _peers.plain(X, held_out, sizes, epochs),
        INDEXED: _peers.plain(X, held_out, sizes, epochs, indexed=True, fused=True),
        PRODUCTS: products(sizes, n_steps),
    }
    if KERNEL is not None:
        contestants[ONEDNN_PRODUCTS] = products(sizes, n_steps, multiply=by_onednn)
    if _peers.has_pythae():
        contestants["pythae"] = _peers.pythae(X, held_out, sizes, epochs)
    question = f"batch {sizes.batch_size}"
    for row in timed(question, contestants, options.repetitions):
        whole = row.pop("whole", None)
        yield {**row, "seconds": row["seconds"] / n_steps}
        if whole is not None:
            name = f"{OURS}, all of fit"
            yield {**row, "contestant": name, "seconds": whole / n_steps}


def arguments(parser):
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--epochs", type=int, default=EPOCHS)


STUDY = Study(
    name="train",
    title="A training step",
    protocol=(
        "784-512-512-32-512-512-784, Bernoulli likelihood, Adam at 0.001, "
        f"{ROWS:,} binarised images of ellipses, {EPOCHS} epochs from fresh weights in "
        "every repetition. Seconds are those of the epochs, set-up not counted on "
        'either side; "all of fit" counts validation, the summaries after training and '
        "everything else. The bound is taken on 1280 held-out rows after equal epochs; "
        "it differs because skvae centres its inputs and starts at the data's mean."
    ),
    unit="a step",
    measure=measure,
    columns={"bound": "{:.1f}"},
    configurations=lambda options: [{"batch": batch} for batch in options.batches],
    targets=tuple(
        Target(f"batch {batch}", OURS, peer, at_least=ratio)
        for batch in BATCHES
        for peer, ratio in (
            ("pythae", 2.0),
            (LOADER, 1.65),
            (INDEXED, None),
            (PRODUCTS, 0.7),
            (ONEDNN_PRODUCTS, None),
        )
    ),
    threads=(1, 2),
    arguments=arguments,
)

if __name__ == "__main__":
    STUDY.main()
