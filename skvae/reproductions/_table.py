"""Tables that anyone can rerun: seeded cells, resumable CSV files, Markdown."""

from __future__ import annotations

import csv
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import skvae


@dataclass
class Options:
    """What a user may change about a table; None leaves the table's own choice."""

    seeds: int | None = None
    first_seed: int = 0
    methods: list[str] | None = None
    problems: list[str] | None = None
    epochs: int | None = None
    data_dir: str | None = None
    command: str = ""

    def seed_range(self, default: int) -> range:
        """The seeds to run."""
        return range(self.first_seed, self.first_seed + (self.seeds or default))

    def chosen(self, names: list[str], wanted: list[str] | None, kind: str):
        """Those of `names` that were asked for; ValueError for an unknown one."""
        unknown = sorted(set(wanted or ()) - set(names))
        if unknown:
            raise ValueError(
                f"Unknown {kind} {', '.join(unknown)}. This table has "
                f"{', '.join(names)}."
            )
        return [name for name in names if wanted is None or name in wanted]


@dataclass
class Cell:
    """One run: what identifies it, and how to measure it."""

    key: dict
    measure: Callable[[], dict]


@dataclass
class Table:
    """A protocol: its cells, and how their measurements are summarised.

    Parameters
    ----------
    title, protocol : str
        A line, and a paragraph for the rendered page.
    keys : tuple of str
        Columns that identify a run; the last one is the seed.
    columns : dict of str to str
        Measured columns that the rendered table shows, with their formats.
    cells : callable
        From :class:`Options` to an iterator of :class:`Cell`.
    published : dict of tuple of str to dict
        Published figures by the keys without the seed, per column.
    """

    title: str
    protocol: str
    keys: tuple[str, ...]
    columns: dict[str, str]
    cells: Callable[[Options], Iterator[Cell]]
    published: dict = field(default_factory=dict)
    source: str = ""


def environment() -> dict:
    """Machine and versions, the last columns of each row."""
    import scipy
    import sklearn
    import torch

    return {
        "skvae": skvae.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def read(path: Path) -> list[dict]:
    """The rows written so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict) -> None:
    """Add one row, with the header when the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def run(table: Table, path: Path, options: Options, report: Callable) -> None:
    """Measure the cells that `path` lacks; ``report(done, total, key, row)``."""
    cells = list(table.cells(options))
    finished = {tuple(row[key] for key in table.keys) for row in read(path)}
    for number, cell in enumerate(cells, 1):
        key = tuple(str(cell.key[name]) for name in table.keys)
        if key in finished:
            continue
        report(number - 1, len(cells), cell.key, None)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", skvae.PosteriorCollapseWarning)
            measured = cell.measure()
        measured.setdefault("seconds", round(time.perf_counter() - started, 1))
        row = {**cell.key, **measured, **environment(), "command": options.command}
        append(path, row)
        report(number, len(cells), cell.key, measured)


def summary(values: list[str], pattern: str) -> str:
    """Median (minimum to maximum) of the numbers among `values`."""
    numbers = [float(value) for value in values if value not in ("", None)]
    if not numbers:
        return ""
    low, middle, high = (
        pattern.format(f(numbers)) for f in (np.min, np.median, np.max)
    )
    return middle if len(numbers) == 1 else f"{middle} ({low} to {high})"


def render(table: Table, rows: list[dict]) -> str:
    """The table in Markdown: medians over seeds with their range."""
    groups = table.keys[:-1]
    header = [*groups, "seeds", *table.columns]
    lines = [
        f"# {table.title}",
        "",
        table.protocol,
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
    ]
    for key in dict.fromkeys(tuple(row[name] for name in groups) for row in rows):
        chosen = [row for row in rows if tuple(row[name] for name in groups) == key]
        cells = [*key, str(len(chosen))]
        published = table.published.get(key, {})
        for column, pattern in table.columns.items():
            text = summary([row[column] for row in chosen], pattern)
            known = published.get(column)
            cells.append(f"{text}; published {known}" if known else text)
        lines.append("| " + " | ".join(cells) + " |")
    versions = dict.fromkeys(
        ", ".join(f"{name} {row[name]}" for name in environment()) for row in rows
    )
    commands = dict.fromkeys(row["command"] for row in rows)
    lines += ["", "Median over seeds (smallest to largest).", table.source, ""]
    lines += [f"- `{command}`" for command in commands if command]
    lines += [f"- {version}" for version in versions]
    return "\n".join(lines).rstrip() + "\n"
