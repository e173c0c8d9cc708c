"""Peak memory of fitting and of reading a model, for data of four kinds.

One million rows x 64 features lie in a file. A process of its own for each case warms
up on small data, notes how much memory it holds, loads the file (into memory, or maps
it) and calls one method. `peak` is the largest resident size since, the data
included; for maps this counts the file's pages that happen to be in memory, which the
system takes back at will, and `anonymous` is what remains without them. `ratio` is peak
over data, model and output together; a model counts as parameters, gradients, Adam's
two moments and the last good copy.

    python benchmarks/speed/memory.py
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parents[1] / "results"
INPUTS = {
    "float32": ("float32", None),
    "float32 map": ("float32", "r"),
    "uint8": ("uint8", None),
    "uint8 map": ("uint8", "r"),
    "float64": ("float64", None),
}
METHODS = ["fit", "fit, early stopping", "transform", "score_samples", "round trip"]
BUFFERS = 5
MEGABYTE = 1e6
COLUMNS = {
    "data_mb": "{:.0f}",
    "model_mb": "{:.1f}",
    "output_mb": "{:.0f}",
    "peak_mb": "{:.0f}",
    "anonymous_mb": "{:.0f}",
    "ratio": "{:.2f}",
    "seconds": "{:.1f}",
}


def write_data(folder, n_rows, n_features):
    """Files of a low-rank signal, written in pieces; paths by dtype."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((4, n_features))
    paths = {kind: folder / f"{kind}.npy" for kind in ("float32", "float64", "uint8")}
    files = {
        kind: np.lib.format.open_memmap(path, "w+", kind, (n_rows, n_features))
        for kind, path in paths.items()
    }
    for start in range(0, n_rows, 50_000):
        rows = slice(start, min(start + 50_000, n_rows))
        z = rng.standard_normal((rows.stop - start, 4))
        x = z @ loadings + 0.3 * rng.standard_normal((len(z), n_features))
        for kind, file in files.items():
            file[rows] = np.clip(128 + 20 * x, 0, 255) if kind == "uint8" else x
    return paths


def held(field="VmRSS"):
    """A figure of this process in bytes, from the kernel."""
    text = Path("/proc/self/status").read_text()
    return next(
        1024 * int(line.split()[1])
        for line in text.splitlines()
        if line.startswith(field)
    )


class Sampler(threading.Thread):
    """Largest anonymous memory seen, every few milliseconds."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.running = 0, True

    def run(self):
        while self.running:
            self.peak = max(self.peak, held("RssAnon"))
            time.sleep(0.004)

    def stop(self):
        self.running = False
        self.join()
        return self.peak


def measure(path, mode, method):
    """What one method takes, in this process."""
    from skvae import VAE

    warnings.simplefilter("ignore")

    def new():
        early = {"early_stopping": True} if "early" in method else {}
        options = {"width": 64, "max_iter": 1, "batch_size": 1024, "n_draws": 4}
        return VAE(8, random_state=0, **options, **early)

    def call(vae, X):
        if method.startswith("fit"):
            return np.empty(0), vae.fit(X)
        if method == "round trip":
            Z = vae.transform(X)
            # Codes and reconstruction: all that is new in memory.
            return np.broadcast_to(Z[:1, :1], (len(Z), 8 + X.shape[1])), (
                Z,
                vae.inverse_transform(Z),
            )
        return getattr(vae, method)(X), None

    small = np.array(np.load(path, mmap_mode="r")[:5000])
    vae = new().fit(small)
    call(vae, small)
    # The kernel forgets the largest size so far.
    Path("/proc/self/clear_refs").write_text("5")
    before, anonymous = held(), held("RssAnon")
    X = np.load(path, mmap_mode=mode)
    sampler = Sampler()
    sampler.start()
    started = time.perf_counter()
    output, kept = call(vae, X)
    seconds = time.perf_counter() - started
    sampled = sampler.stop()
    peak = held("VmHWM") - before
    del kept
    n_parameters = sum(p.numel() for p in vae.module_.parameters())
    model = 4 * BUFFERS * n_parameters
    produced = output.itemsize * output.size
    return {
        "data_mb": X.nbytes / MEGABYTE,
        "model_mb": model / MEGABYTE,
        "output_mb": produced / MEGABYTE,
        "peak_mb": peak / MEGABYTE,
        "anonymous_mb": (sampled - anonymous) / MEGABYTE,
        "ratio": peak / (X.nbytes + model + produced),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.csv")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        path, kind, method = arguments.one
        print(json.dumps(measure(path, INPUTS[kind][1], method)))
        return
    from skvae.reproductions._table import append, environment

    arguments.output.unlink(missing_ok=True)
    command = shlex.join(["python", "benchmarks/speed/memory.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        paths = write_data(Path(folder), arguments.rows, arguments.features)
        for method in arguments.methods:
            for kind, (dtype, _) in INPUTS.items():
                one = [sys.executable, __file__, "--one", paths[dtype], kind, method]
                answer = subprocess.run(one, check=True, capture_output=True, text=True)
                row = {"input": kind, "method": method}
                row |= {"rows": arguments.rows, "features": arguments.features}
                row |= json.loads(answer.stdout.splitlines()[-1])
                print(row, flush=True)
                append(arguments.output, {**row, **environment(), "command": command})
    render(arguments.output)


def render(path):
    """The Markdown page of the rows in the CSV file."""
    from skvae.reproductions._table import environment, read, summary

    header = ["method", "input", *COLUMNS]
    lines = ["# Peak memory", "", " ".join(__doc__.split("\n\n")[1].split()), ""]
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    rows = read(path)
    for row in rows:
        cells = [summary([row[name]], pattern) for name, pattern in COLUMNS.items()]
        lines.append("| " + " | ".join([row["method"], row["input"], *cells]) + " |")
    versions = ", ".join(f"{name} {rows[0][name]}" for name in environment())
    commands = dict.fromkeys(row["command"].strip() for row in rows)
    lines += ["", *(f"- `{command}`" for command in commands), f"- {versions}"]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
