"""Reading a fitted model, and importing the package.

python benchmarks/speed/transform.py
"""

import sys
import time

import numpy as np
import torch
from _measure import Study, Target, seconds_of, timed

from skvae import VAE

ROWS, CHUNK = 100_000, 4096
SHAPES = (64, 256), (784, 512)
LATENTS = 10
OURS, PRODUCTS = "skvae.VAE.transform", "matrix products of the encoder"
QUESTION = "{} features, width {}"
IMPORTS = "importing, fresh process"
PACKAGE, NAME, PEERS = "import skvae", "from skvae import VAE", "import torch, sklearn"
PCA = "import torch; from sklearn.decomposition import PCA"


def products(X, weights):
    """A contestant: the matrix products alone, chunk by chunk, memory at hand."""
    x = torch.tensor(X)
    chunk = min(CHUNK, len(x))
    outputs = [torch.empty(chunk, weight.shape[1]) for weight in weights]

    def run():
        started = time.perf_counter()
        for rows in x.split(chunk):
            for weight, out in zip(weights, outputs, strict=True):
                rows = torch.mm(rows, weight, out=out[: len(rows)])
        return {"seconds": time.perf_counter() - started}

    return run


def exact_difference(vae, X):
    """Largest difference of codes from those in double precision, over their scale."""
    exact = vae.transform(X.astype(np.float64))
    return float(np.abs(vae.transform(X) - exact).max() / np.abs(exact).max())


def reading(n_features, width, options):
    """Rows on one network."""
    n_rows = 2000 if options.tiny else options.rows
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((LATENTS, n_features)).astype(np.float32)
    X = rng.standard_normal((n_rows, LATENTS)).astype(np.float32) @ loadings
    X += 0.1 * rng.standard_normal(X.shape, dtype=np.float32)
    vae = VAE(LATENTS, width=width, max_iter=1, device="cpu", random_state=0)
    vae.fit(X[:5000])
    weights = [
        parameter[0]
        for name, parameter in vae.module_.encoder.named_parameters()
        if name.endswith("weight")
    ]
    difference = exact_difference(vae, X[:1000])

    def transform():
        vae.transform(X)

    contestants = {OURS: transform, PRODUCTS: products(X, weights)}
    question = QUESTION.format(n_features, width)
    for row in timed(question, contestants, options.repetitions):
        yield {**row, "difference": difference if row["contestant"] == OURS else ""}


def measure(configuration, options):
    if configuration["question"] == IMPORTS:

        def imports(line):
            command = [sys.executable, "-c", line]
            return lambda: {"seconds": seconds_of(command)[0]}

        lines = (NAME,) if options.tiny else (PACKAGE, NAME, PEERS, PCA)
        contestants = {line: imports(line) for line in lines}
        yield from timed(IMPORTS, contestants, options.repetitions, not options.tiny)
        return
    yield from reading(*configuration["shape"], options)


def arguments(parser):
    parser.add_argument("--rows", type=int, default=ROWS)


STUDY = Study(
    name="transform",
    title="Reading a model, and importing the package",
    protocol=(
        f"`transform` of {ROWS:,} rows in float32, {LATENTS} latents, two hidden "
        "layers, beside the matrix products of the same encoder in chunks of "
        f"{CHUNK} rows and nothing else: no validation, bias or activation. "
        "`difference` is how far codes are from those computed in double precision, "
        "relative to the largest. Imports are whole processes, start of the "
        "interpreter included; `import skvae` alone loads no torch."
    ),
    unit="a call or a process",
    measure=measure,
    columns={"difference": "{:.0e}"},
    configurations=lambda options: [
        *({"question": QUESTION.format(*shape), "shape": shape} for shape in SHAPES),
        {"question": IMPORTS},
    ],
    targets=(
        *(
            Target(QUESTION.format(*shape), OURS, PRODUCTS, at_least=0.9)
            for shape in SHAPES
        ),
        Target(IMPORTS, PACKAGE, PEERS, at_most=1.1),
        Target(IMPORTS, NAME, PEERS, at_most=1.1),
    ),
    arguments=arguments,
)

if __name__ == "__main__":
    STUDY.main()
