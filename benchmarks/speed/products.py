"""One product of a batch of small matrices, as torch multiplies and as skvae does.

python benchmarks/speed/products.py
"""

import time

import torch
from _measure import Study, Target, timed

from skvae._products import products

CALLS = 300
# Replicas, rows, from, to: layers of searches and restarts, and one that is narrow.
SIZES = (
    (8, 128, 100, 100),
    (8, 128, 100, 8),
    (8, 128, 20, 100),
    (30, 44, 64, 64),
    (8, 128, 256, 256),
)
TORCH, OURS = "torch.bmm", "skvae"


def question_of(size):
    """The name of a product."""
    replicas, rows, n, m = size
    return f"{replicas} x ({rows}, {n}) x ({n}, {m})"


def measure(configuration, options):
    replicas, rows, n, m = configuration["size"]
    x, weight = torch.randn(replicas, rows, n), torch.randn(replicas, n, m)
    calls = 3 if options.tiny else CALLS
    exact = torch.bmm(x.double(), weight.double())

    def contestant(multiply):
        def run():
            started = time.perf_counter()
            for _ in range(calls):
                found = multiply(x, weight)
            seconds = (time.perf_counter() - started) / calls
            error = (found - exact).abs().max() / exact.abs().max()
            return {"seconds": seconds, "error": error.item()}

        return run

    with torch.no_grad():
        yield from timed(
            configuration["question"],
            {TORCH: contestant(torch.bmm), OURS: contestant(products)},
            options.repetitions,
        )


STUDY = Study(
    name="products",
    title="Products of batches of small matrices",
    protocol=(
        "Replicas x (rows, from) x (from, to) in single precision, with memory for the "
        f"result, mean of {CALLS} calls. The error is the largest difference from the "
        "product in double precision, relative to its largest number."
    ),
    unit="a product",
    measure=measure,
    columns={"error": "{:.0e}"},
    configurations=lambda options: [
        {"question": question_of(size), "size": size} for size in SIZES
    ],
    targets=tuple(Target(question_of(size), OURS, TORCH) for size in SIZES),
    threads=(1, 2),
)

if __name__ == "__main__":
    STUDY.main()
