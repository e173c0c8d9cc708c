"""What the speed studies share: fresh processes, interleaving, CSV files, targets.

A study has configurations. Each runs in a process of its own with its number of threads
and measures its contestants in turn, repetition by repetition, so that whatever else
the machine does falls on all of them. Ratios are taken within a repetition.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skvae.reproductions._table import append, environment, read, summary

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results"
KEYS = "question", "contestant", "threads", "repetition", "seconds"


class Target(NamedTuple):
    """A ratio of two contestants' speeds that the library is held to.

    The contestant must be `at_least` this many times as fast as the peer, or its time
    `at_most` this many times the peer's. A peer that never got to its goal counts with
    the seconds that it spent, which makes the ratio a lower bound; a contestant that
    never got there has the ratio zero. With neither number, the ratio of speeds is
    shown and nothing is asked of it.
    """

    question: str
    contestant: str
    peer: str
    at_least: float | None = None
    at_most: float | None = None

    def ratios(self, rows: list[dict], threads: str) -> np.ndarray:
        """One ratio per repetition; none where either side was not measured."""
        own, peers = (
            {
                row["repetition"]: row
                for row in rows
                if (row["question"], row["contestant"], row["threads"])
                == (self.question, name, threads)
            }
            for name in (self.contestant, self.peer)
        )
        ratios = []
        for repetition in own.keys() & peers.keys():
            peer, ours = peers[repetition], own[repetition]["seconds"]
            spent = float(peer["seconds"] or peer["spent"])
            ratios.append(spent / float(ours) if ours else 0.0)
        ratios = np.array(ratios)
        with np.errstate(divide="ignore"):
            return ratios if self.at_most is None else 1.0 / ratios

    def verdict(self, ratio: float) -> str:
        """Whether a ratio is good enough, in words."""
        if self.at_most is not None:
            return "met" if ratio <= self.at_most else "not met"
        if self.at_least is not None:
            return "met" if ratio >= self.at_least else "not met"
        return ""

    def wanted(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g} times the time"
        if self.at_least is not None:
            return f"at least {self.at_least:g} times as fast"
        return "none (times as fast)"


@dataclass
class Study:
    """One script: what it measures and how its results are shown.

    `measure(configuration, options)` yields rows with a question, a contestant, a
    repetition, seconds and the study's own `columns` (name to format; missing values
    stay empty). `unit` says what takes the seconds.
    """

    name: str
    title: str
    protocol: str
    unit: str
    measure: Callable[[dict, argparse.Namespace], Iterator[dict]]
    columns: dict[str, str]
    configurations: Callable[[argparse.Namespace], list[dict]] = lambda options: [{}]
    targets: tuple[Target, ...] = ()
    threads: tuple[int, ...] = (1,)
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    draw: Callable[[list[dict], Path], None] | None = None
    notes: Callable[[list[dict]], list[str]] = field(default=lambda rows: [])

    @property
    def path(self) -> Path:
        """Where the rows go unless the user says otherwise."""
        return RESULTS / f"speed_{self.name}.csv"

    def main(self, arguments: list[str] | None = None) -> None:
        """Run what the command line asks for."""
        options = self.parse(arguments)
        warnings.simplefilter("ignore")
        if options.one is not None:
            threads = options.threads[0]
            for row in self.run(json.loads(options.one), threads, options):
                print(json.dumps(row), flush=True)
            return
        given = sys.argv[1:] if arguments is None else arguments
        command = " ".join([f"python benchmarks/speed/{self.name}.py", *given])
        if not options.render:
            options.output.unlink(missing_ok=True)
            for row in self.collect(options):
                print({k: v for k, v in row.items() if v != ""}, flush=True)
                versions = {k: v for k, v in environment().items() if k not in row}
                append(options.output, {**row, **versions, "command": command})
        rows = read(options.output)
        if self.draw is not None and rows:
            self.draw(rows, options.output.with_suffix(".png"))
        page = self.render(rows)
        options.output.with_suffix(".md").write_text(page)
        print(page)

    def parse(self, arguments: list[str] | None = None) -> argparse.Namespace:
        """The options, which every study has and some add to."""
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--output", type=Path, default=self.path)
        parser.add_argument("--repetitions", type=int, default=5)
        parser.add_argument(
            "--threads", type=int, nargs="+", default=list(self.threads)
        )
        parser.add_argument(
            "--tiny", action="store_true", help="see that it runs: figures mean nothing"
        )
        parser.add_argument(
            "--render", action="store_true", help="only write the table anew"
        )
        parser.add_argument("--one", help=argparse.SUPPRESS)
        self.arguments(parser)
        options = parser.parse_args(arguments)
        if options.tiny and options.output == self.path:
            # Figures that mean nothing do not go where the others are.
            options.output = Path(tempfile.mkdtemp()) / self.path.name
        return options

    def collect(self, options: argparse.Namespace) -> Iterator[dict]:
        """Rows of all configurations, each from a fresh process unless tiny."""
        for threads in options.threads:
            for configuration in self.configurations(options):
                if options.tiny:
                    yield from self.run(configuration, threads, options)
                else:
                    yield from self.fresh(configuration, threads, options)

    def run(self, configuration: dict, threads: int, options) -> Iterator[dict]:
        """Rows of one configuration, measured here."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for row in self.measure(configuration, options):
                known = {key: row.get(key, "") for key in KEYS}
                extra = {name: row.get(name, "") for name in self.columns}
                load = round(os.getloadavg()[0], 2)
                yield {**known, "threads": threads, **extra, "load": load}
        finally:
            torch.set_num_threads(before)

    def fresh(self, configuration: dict, threads: int, options) -> Iterator[dict]:
        """Rows of one configuration, measured in a process of its own."""
        command = [sys.executable, str(FOLDER / f"{self.name}.py")]
        command += ["--one", json.dumps(configuration), "--threads", str(threads)]
        skipped = {"one", "threads", "output", "render"}
        for name, value in vars(options).items():
            if name in skipped or value is None or value is False:
                continue
            command.append("--" + name.replace("_", "-"))
            if value is not True:
                command += map(str, value if isinstance(value, list) else [value])
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            text=True,
        )
        with process:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)

    # ------------------------------------------------------------------- pages

    def render(self, rows: list[dict]) -> str:
        """Markdown: every contestant, then the targets, then how it was made."""
        header = [
            "question",
            "contestant",
            "threads",
            "repetitions",
            f"time of {self.unit}",
            *(name.replace("_", " ") for name in self.columns),
        ]
        lines = [f"# {self.title}", "", self.protocol, ""]
        if not rows:
            return "\n".join([*lines, "Not measured yet."]) + "\n"
        lines += table_head(header)
        for key, chosen in grouped(rows):
            seconds = [float(row["seconds"]) for row in chosen if row["seconds"]]
            cells = [*key, str(len(chosen)), durations(seconds)]
            for name, pattern in self.columns.items():
                cells.append(summary([row[name] for row in chosen], pattern))
            lines.append("| " + " | ".join(cells) + " |")
        spread = "Median over repetitions (smallest to largest)"
        lines += ["", f"{spread}; sizes as said unless the command says otherwise.", ""]
        lines += [*self.notes(rows), *target_table([(self, rows)])]
        return "\n".join([*lines, *made_by(rows)]) + "\n"


def interleaved(
    contestants: dict[str, Callable], repetitions: int, warm_up: bool = True
):
    """Yield ``(repetition, name, seconds, answer)``, after a round that is not counted.

    A contestant is called without arguments and answers a dict; where that has
    "seconds", these count and not the whole call's. Every repetition starts with
    another contestant, so that none always follows the same one.
    """
    names = list(contestants)
    for repetition in range(-1 if warm_up else 0, repetitions):
        shift = max(repetition, 0) % len(names)
        for name in names[shift:] + names[:shift]:
            started = time.perf_counter()
            answer = contestants[name]() or {}
            elapsed = time.perf_counter() - started
            if repetition >= 0:
                yield repetition, name, answer.pop("seconds", elapsed), answer


def timed(
    question: str,
    contestants: dict[str, Callable],
    repetitions: int,
    warm_up: bool = True,
):
    """Rows of a question, one for each contestant and repetition."""
    for repetition, name, seconds, answer in interleaved(
        contestants, repetitions, warm_up
    ):
        row = {"question": question, "contestant": name, "repetition": repetition}
        yield {**row, "seconds": seconds, **answer}


def seconds_of(command: list[str], threads: int = 1) -> tuple[float, str]:
    """Wall time of a fresh process, and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    return time.perf_counter() - started, answer.stdout


def grouped(rows: list[dict]) -> list[tuple[tuple, list[dict]]]:
    """Rows by question, contestant and threads, in the order of their appearance."""
    names = "question", "contestant", "threads"
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def durations(seconds: list[float]) -> str:
    """Median (smallest to largest) in a unit that suits."""
    if not seconds:
        return "never"
    middle = float(np.median(seconds))
    factor, unit = next(
        (factor, unit)
        for limit, factor, unit in (
            (1e-3, 1e6, "us"),
            (1.0, 1e3, "ms"),
            (np.inf, 1.0, "s"),
        )
        if middle < limit
    )

    def shown(value):
        value = factor * value
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"

    text = f"{shown(middle)} {unit}"
    if len(seconds) > 1:
        text += f" ({shown(min(seconds))} to {shown(max(seconds))})"
    return text


def table_head(header: list[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]


def target_table(measured: list[tuple[Study, list[dict]]]) -> list[str]:
    """Targets beside what was measured; those not measured say so."""
    header = ["question", "contestant", "peer", "threads", "target", "measured", ""]
    lines = []
    for study, rows in measured:
        for target in study.targets:
            for threads in dict.fromkeys(row["threads"] for row in rows) or [""]:
                ratios = target.ratios(rows, threads)
                cells = [target.question, target.contestant, target.peer, threads]
                if len(ratios):
                    middle, low, high = (f(ratios) for f in (np.median, min, max))
                    spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
                    verdict = target.verdict(middle)
                else:
                    spread, verdict = "not measured", ""
                lines.append(
                    "| " + " | ".join([*cells, target.wanted(), spread, verdict]) + " |"
                )
    return [*table_head(header), *lines, ""] if lines else []


def made_by(rows: list[dict]) -> list[str]:
    """Commands, versions and how busy the machine was."""
    lines = [f"- `{command}`" for command in dict.fromkeys(r["command"] for r in rows)]
    names = [name for name in environment() if name != "threads"]
    lines += dict.fromkeys(
        "- " + ", ".join(f"{name} {row[name]}" for name in names) for row in rows
    )
    loads = [float(row["load"]) for row in rows]
    return [*lines, f"- load of the machine {min(loads):.1f} to {max(loads):.1f}"]
