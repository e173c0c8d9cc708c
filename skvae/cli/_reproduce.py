"""``skvae reproduce``: published tables, seeded, resumable."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path

from skvae.cli._terminal import rich_is_there, say
from skvae.reproductions import TABLES, Options, load_table


def run_reproduce(arguments):
    """Run the cells of one table that its CSV file lacks, and render it."""
    if arguments.table is None:
        for name in TABLES:
            print(f"{name:20}  {load_table(name).title}")
        return
    table = load_table(arguments.table)
    options = Options(
        seeds=arguments.seeds,
        first_seed=arguments.first_seed,
        methods=_split(arguments.methods),
        problems=_split(arguments.problems),
        epochs=arguments.max_iter,
        data_dir=arguments.data_dir,
        command=_command(arguments.argv),
    )
    path = Path(arguments.output) / f"{arguments.table}.csv"
    if not arguments.render:
        try:
            with _reporter(table) as report:
                table.run(path, options, report)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{path} keeps the rows so far; the same command goes on from there."
            ) from None
    text = table.render(path)
    path.with_suffix(".md").write_text(text)
    table.draw(path)
    print(text)


def _split(text):
    """``A|B`` as a list: the names hold commas."""
    return None if text is None else [name.strip() for name in text.split("|")]


def _command(argv):
    """The command for the table's page, without the places of data and results."""
    parts = ["python -m skvae"]
    for before, argument in zip(["", *argv], argv, strict=False):
        place = before in ("--data-dir", "--output", "-o")
        quoted = f'"{argument}"' if {" ", "|"} & set(argument) else argument
        parts.append("DIRECTORY" if place else quoted)
    return " ".join(parts)


@contextmanager
def _reporter(table):
    """A bar where someone watches, and a line per finished cell."""

    def line(key, measured):
        name = ", ".join(str(value) for value in key.values())
        shown = [f"{c} {measured[c]}" for c in table.columns if c in measured]
        return f"{name}: {', '.join(shown)}"

    if not (sys.stderr.isatty() and rich_is_there()):

        def report(n_done, total, key, measured):
            if measured is not None:
                say(f"[{n_done}/{total}] {line(key, measured)}")

        yield report
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(table.title)

        def report(n_done, total, key, measured):
            name = ", ".join(str(value) for value in key.values())
            progress.update(task, completed=n_done, total=total, description=name)
            if measured is not None:
                progress.console.print(line(key, measured), highlight=False)

        yield report
