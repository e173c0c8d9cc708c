"""Training by two processes of one group against one process, same global batch.

`VAE.fit` on uint8 images of random strokes, Bernoulli likelihood, one thread per
process, gloo over the loopback interface. A step is the mean over all epochs but the
first; `processor` is the first process's time on its core per step, what precedes and
follows the steps included. `reduce` is the time of one all_reduce of the flat gradient
alone, over 30 calls. One process and two take turns; `speedup` compares neighbours. Two
processes should have a core each: where other work runs the figures say little.

    python benchmarks/speed/distributed.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parents[1] / "results"
# Width of the two hidden layers, rows of a step, and steps of an epoch.
MODELS = {
    "784-128, batch 256": (128, 256, 64),
    "784-512, batch 256": (512, 256, 32),
    "784-512, batch 2048": (512, 2048, 10),
}
COLUMNS = {
    "step_ms": "{:.1f}",
    "processor_ms": "{:.1f}",
    "reduce_ms": "{:.2f}",
    "gradient_mb": "{:.2f}",
    "speedup": "{:.2f}",
    "loss": "{:.3f}",
}


def images(n_rows):
    """Bright bars on dark ground, uint8 of shape (n_rows, 784), zeros and ones."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-1, 1, 28), np.linspace(-1, 1, 28))
    angle, shift = rng.uniform(0, np.pi, n_rows), rng.uniform(-0.5, 0.5, n_rows)
    across = np.multiply.outer(np.cos(angle), x) + np.multiply.outer(np.sin(angle), y)
    bars = np.abs(across - shift[:, None, None]) < 0.2
    return bars.reshape(n_rows, -1).astype(np.uint8)


def work(name, rank, size, folder, n_epochs):
    """The program of one process; the first one prints what it measured."""
    import torch
    from torch import distributed

    from skvae import VAE

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    width, batch_size, n_steps = MODELS[name]
    if size > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
        )
    vae = VAE(16, width=width, likelihood="bernoulli", batch_size=batch_size)
    vae.set_params(max_iter=n_epochs, random_state=0)
    X = images(n_steps * batch_size)
    processor = time.process_time()
    vae.fit(X)
    processor = (time.process_time() - processor) / (n_steps * n_epochs)
    n_parameters = sum(p.numel() for p in vae.module_.parameters())
    gradient = torch.ones(n_parameters)
    started = time.perf_counter()
    for _ in range(30 * (size > 1)):
        distributed.all_reduce(gradient)
    reduced = (time.perf_counter() - started) / 30
    if rank == 0:
        seconds = np.mean(vae.history_["seconds"][1:]) / n_steps
        measured = {
            "step_ms": 1e3 * seconds,
            "processor_ms": 1e3 * processor,
            "reduce_ms": 1e3 * reduced if size > 1 else "",
            "gradient_mb": 4e-6 * n_parameters,
            "loss": vae.history_["loss"][-1],
        }
        print(json.dumps(measured))
    if size > 1:
        distributed.destroy_process_group()


def measure(name, size, n_epochs):
    """One fit by so many processes."""
    command = [sys.executable, __file__, "--epochs", str(n_epochs), "--one"]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [*command, name, str(rank), str(size), folder],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{name}: a process of {size} failed.")
    return json.loads(answers[0].splitlines()[-1])


def render(path):
    """The Markdown page of the rows in the CSV file."""
    from skvae.reproductions._table import environment, read, summary

    rows = read(path)
    header = ["model", "processes", "repetitions", *COLUMNS]
    lines = ["# Two processes against one", ""]
    lines += [" ".join(__doc__.split("\n\n")[1].split()), ""]
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for key in dict.fromkeys((row["model"], row["processes"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["processes"]) == key]
        cells = [*key, str(len(chosen))]
        cells += [summary([row[c] for row in chosen], f) for c, f in COLUMNS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {rows[-1][name]}" for name in environment())
    loads = [float(row["load"]) for row in rows]
    lines += ["", "Median (smallest to largest).", "", f"- `{rows[-1]['command']}`"]
    lines += [f"- {versions}", f"- load of the machine {min(loads)} to {max(loads)}"]
    lines += arithmetic(rows)
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


# Bytes per second in one direction, as makers state them, and seconds per message.
LINKS = {
    "NVLink 4, 450 GB/s": (450e9, 5e-6),
    "PCIe 4 x16, 32 GB/s": (32e9, 1e-5),
    "Ethernet, 100 Gbit/s": (12.5e9, 5e-5),
}
# Useful operations per second of one GPU in single precision: an assumption.
GPU = 2e13
N_ROWS = 1e9


def arithmetic(rows):
    """What the largest model's figures come to elsewhere; nothing here was run."""
    _, batch_size, _ = MODELS[rows[-1]["model"]]

    def median(column, size):
        chosen = [r for r in rows if r["model"] == rows[-1]["model"]]
        return np.median([float(r[column]) for r in chosen if r["processes"] == size])

    step, reduce = median("step_ms", "1") / 1e3, median("reduce_ms", "2") / 1e3
    gradient = 1e6 * median("gradient_mb", "1")
    # A ring sends 2 (n - 1) / n of the gradient from each process: all of it for n = 2.
    ring = 2 * 7 / 8 * gradient
    slow = ring / (gradient / reduce)
    shared = step / 8 + slow
    lines = ["## Arithmetic from these figures, not a measurement", ""]
    lines += [
        f"The model is {rows[-1]['model']}: a gradient of {gradient / 1e6:.2f} MB, "
        f"{1e3 * step:.0f} ms per step on one core, {1e3 * reduce:.1f} ms per "
        f"all_reduce of two processes, {gradient / reduce / 1e9:.2f} GB/s.",
        "",
        f"* Eight cores, same batch, the same GB/s: {1e3 * step / 8:.0f} ms of work "
        f"and {1e3 * slow:.0f} ms of all_reduce, {step / shared:.1f} times one core.",
        f"* A billion rows, {N_ROWS * 784 / 1e9:.0f} GB of uint8: an epoch is "
        f"{N_ROWS / batch_size * step / 3600:.0f} hours on one core and "
        f"{N_ROWS / batch_size * shared / 3600:.0f} on eight. The order of the rows "
        f"takes {4 * N_ROWS / 1e9:.0f} GB in each process; shuffled reads of 4 kB "
        f"pages come to {4096 * N_ROWS / 1e12:.1f} TB, at 3 GB/s "
        f"{4096 * N_ROWS / 3e9 / 60:.0f} minutes, pieces read in sequence to "
        f"{784 * N_ROWS / 3e9 / 60:.0f} minutes.",
    ]
    operations = 6 * gradient / 4 * batch_size
    work = operations / GPU
    lines += [
        f"* Eight GPUs with {batch_size} rows each: 6 operations per parameter and row "
        f"are {operations / 1e9:.0f} Gflop, {1e3 * work:.2f} ms at an assumed "
        f"{GPU / 1e12:.0f} Tflop/s. The ring sends {ring / 1e6:.1f} MB in 14 messages:"
    ]
    for name, (speed, latency) in LINKS.items():
        sent = ring / speed + 14 * latency
        epoch = N_ROWS / (8 * batch_size) * (work + sent)
        lines.append(
            f"  * {name}: {1e3 * sent:.2f} ms, {8 * work / (work + sent):.1f} times "
            f"one GPU, {epoch / 60:.1f} minutes for a billion rows that arrive in time."
        )
    return ["", *lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "distributed.csv")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, rank, size, folder = arguments.one
        work(name, int(rank), int(size), folder, arguments.epochs)
        return
    from skvae.reproductions._table import append, environment

    arguments.output.unlink(missing_ok=True)
    command = " ".join(["python benchmarks/speed/distributed.py", *sys.argv[1:]])
    for repetition in range(arguments.repetitions):
        for name in arguments.models:
            load = os.getloadavg()[0]
            alone, shared = (measure(name, n, arguments.epochs) for n in (1, 2))
            shared["speedup"] = alone["step_ms"] / shared["step_ms"]
            for size, measured in ((1, {**alone, "speedup": ""}), (2, shared)):
                row = {"model": name, "processes": size, "repetition": repetition}
                row |= {name: measured[name] for name in COLUMNS} | {"load": load}
                print(row, flush=True)
                append(arguments.output, {**row, **environment(), "command": command})
    render(arguments.output)


if __name__ == "__main__":
    main()
