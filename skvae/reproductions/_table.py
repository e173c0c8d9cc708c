"""Tables that anyone can rerun: seeded cells, resumable CSV files, Markdown."""

from __future__ import annotations

import csv
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from skvae import __version__
from skvae._collapse import PosteriorCollapseWarning
from skvae.model_selection._batching import run_together


@dataclass
class Options:
    """What a user may change about a table; None leaves the table's own choice.

    Parameters
    ----------
    seeds, first_seed : int
        How many seeds, and the first one.
    methods, problems : list of str
        Names of those to run.
    epochs : int
        Passes over the data.
    data_dir : str
        Where files of images and texts lie.
    command : str
        What was called, for the table's page.
    """

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

    def named(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """These parts of the key, as a CSV file holds them."""
        return tuple(str(self.key[column]) for column in columns)


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
    source : str
        Where they are from, and what must be known to compare.
    picture : callable or None
        Draws the rows of the CSV file into a file.
    together : bool
        Whether the networks of cells that differ by their seed alone train in one
        batch, as small ones do best; each is given its share of the seconds.
    """

    title: str
    protocol: str
    keys: tuple[str, ...]
    columns: dict[str, str]
    cells: Callable[[Options], Iterator[Cell]]
    published: dict = field(default_factory=dict)
    source: str = ""
    picture: Callable[[list[dict], Path], None] | None = None
    together: bool = False

    def draw(self, path: Path) -> None:
        """Draw the picture beside `path`, if the table has one."""
        if self.picture is not None:
            self.picture(read(path), path.with_suffix(".png"))

    def run(self, path: Path, options: Options, report: Callable) -> None:
        """Measure the cells that `path` lacks; ``report(done, total, key, row)``."""
        cells = list(self.cells(options))
        finished = {tuple(row[key] for key in self.keys) for row in read(path)}
        missing = [c for c in cells if c.named(self.keys) not in finished]
        n_done = len(cells) - len(missing)
        for group in self._groups(missing):
            report(n_done, len(cells), group[0].key, None)
            for cell, measured in zip(group, _measured(group), strict=True):
                row = {**cell.key, **measured, **environment()}
                append(path, {**row, "command": options.command})
                n_done += 1
                report(n_done, len(cells), cell.key, measured)

    def _groups(self, cells: list[Cell]) -> list[list[Cell]]:
        """The cells to measure at once."""
        if not self.together:
            return [[cell] for cell in cells]
        groups: dict[tuple, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(cell.named(self.keys[:-1]), []).append(cell)
        return list(groups.values())

    def render(self, path: Path) -> str:
        """The rows of `path` in Markdown: medians over seeds with their range."""
        rows = read(path)
        if not rows:
            raise ValueError(f"{path} has no rows yet.")
        groups = self.keys[:-1]
        header = [*groups, "seeds", *self.columns]
        lines = [f"# {self.title}", "", self.protocol, ""]
        lines.append("| " + " | ".join(header) + " |")
        lines.append("|" + " --- |" * len(header))
        for key in dict.fromkeys(tuple(row[name] for name in groups) for row in rows):
            chosen = [row for row in rows if tuple(row[n] for n in groups) == key]
            cells = [*key, str(len(chosen))]
            published = self.published.get(key, {})
            for column, pattern in self.columns.items():
                text = summary([row[column] for row in chosen], pattern)
                known = published.get(column)
                cells.append(f"{text}; published {known}" if known else text)
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "Median over seeds (smallest to largest).", self.source, ""]
        lines += [
            f"- `{command}`" for command in dict.fromkeys(r["command"] for r in rows)
        ]
        lines += dict.fromkeys(
            "- " + ", ".join(f"{name} {row[name]}" for name in environment())
            for row in rows
        )
        return "\n".join(lines).rstrip() + "\n"


def _timed(cell: Cell) -> list[dict]:
    """What is measured of a cell, and the seconds that it took, as a search has it."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        measured = cell.measure()
    return [{"measured": measured, "fit_time": time.perf_counter() - started}]


def _measured(cells: list[Cell]) -> Iterator[dict]:
    """What is measured of each cell; the networks of several train in one batch."""
    tasks = [partial(_timed, cell) for cell in cells]
    if len(tasks) > 1:
        outcomes, _, _ = run_together(tasks, max_replicas=None)
    else:
        outcomes = [task() for task in tasks]
    for (outcome,) in outcomes:
        yield {**outcome["measured"], "seconds": round(outcome["fit_time"], 1)}


def environment() -> dict:
    """Machine and versions, the last columns of each row."""
    import scipy
    import sklearn
    import torch

    return {
        "skvae": __version__,
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
    """Add one row, with the header when the file is new.

    Raises ValueError if the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="") as file:
        file.seek(0)
        columns = next(csv.reader(file), None)
        writer = csv.DictWriter(file, columns or [*row], lineterminator="\n")
        if columns is None:
            writer.writeheader()
        elif set(columns) != row.keys():
            different = ", ".join(sorted(set(columns) ^ row.keys()))
            raise ValueError(
                f"{path} differs from this version's rows in {different}. Name another "
                "directory by --output."
            )
        writer.writerow(row)


def summary(values: list[str], pattern: str) -> str:
    """Median (minimum to maximum) of the numbers among `values`."""
    numbers = [float(value) for value in values if value not in ("", None)]
    if not numbers:
        return ""
    low, middle, high = (
        pattern.format(f(numbers)) for f in (np.min, np.median, np.max)
    )
    return middle if len(numbers) == 1 else f"{middle} ({low} to {high})"
