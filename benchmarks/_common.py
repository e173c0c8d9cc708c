"""What the benchmark scripts share: versions, resumable CSV files, binarised images."""

import argparse
import csv
import os
import platform
import sys
from pathlib import Path

import numpy as np
import scipy
import sklearn
import torch

import skvae

RESULTS = Path(__file__).parent / "results"


def parser(description, name):
    """Arguments every script takes."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--output", default=RESULTS / f"{name}.csv", type=Path)
    arguments.add_argument("--seeds", type=int, default=None)
    return arguments


def environment():
    """Versions and machine, as columns of each row."""
    return {
        "skvae": skvae.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "command": "python " + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def done(path, keys):
    """Values of `keys` in the rows written so far, so that a run can resume."""
    if not path.exists():
        return set()
    with path.open() as file:
        return {tuple(row[key] for key in keys) for row in csv.DictReader(file)}


def append(path, row):
    """Add one row to a CSV file, with its header when the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {**row, **environment()}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print({k: v for k, v in row.items() if k not in environment()}, flush=True)


def table(path, groups, values, formats):
    """Markdown table of median (minimum to maximum) of `values` by `groups`."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    keys = list(dict.fromkeys(tuple(row[g] for g in groups) for row in rows))
    lines = [
        "| " + " | ".join([*groups, "seeds", *values]) + " |",
        "|" + " --- |" * (len(groups) + 1 + len(values)),
    ]
    for key in keys:
        chosen = [row for row in rows if tuple(row[g] for g in groups) == key]
        cells = [*key, str(len(chosen))]
        for value, pattern in zip(values, formats, strict=True):
            numbers = [float(row[value]) for row in chosen if row[value]]
            if not numbers:
                cells.append("")
                continue
            shown = [pattern.format(f(numbers)) for f in (np.median, np.min, np.max)]
            cells.append(
                f"{shown[0]} ({shown[1]} to {shown[2]})"
                if len(chosen) > 1
                else shown[0]
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(path, text):
    """Write the rendered table beside its CSV file and print it."""
    path.with_suffix(".md").write_text(text + "\n")
    print(text)
