"""Tables and progress, with rich where there is one and a terminal to show it."""

from __future__ import annotations

import sys
import time


def rich_is_there():
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def say(text):
    """A line for the person who waits; results go to the standard output."""
    print(text, file=sys.stderr, flush=True)


def print_table(headers, rows, *, emphasised=(), title=None):
    """Print rows of text; the first column is left-aligned, the others right.

    `emphasised` holds (row, column) pairs.
    """
    if rich_is_there() and sys.stdout.isatty():
        _print_rich(headers, rows, set(emphasised), title)
    else:
        print(plain_table(headers, rows, emphasised=emphasised, title=title))


def plain_table(headers, rows, *, emphasised=(), title=None):
    """The table as aligned text, the best values marked with a star."""
    marks = set(emphasised)
    cells = [
        [text + ("*" if (i, j) in marks else " ") for j, text in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    headers = [f"{header} " for header in headers]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]

    def line(row):
        first, *others = row
        parts = [first.ljust(widths[0])]
        parts += [
            text.rjust(width) for text, width in zip(others, widths[1:], strict=True)
        ]
        return " ".join(parts).rstrip()

    rule = "-" * (sum(widths) + len(widths) - 1)
    lines = [line(headers), rule, *map(line, cells)]
    return "\n".join([title, "", *lines] if title else lines)


def _print_rich(headers, rows, marks, title):
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", padding=0)
    for j, header in enumerate(headers):
        # Narrow terminals shorten names before they shorten numbers.
        options = {"overflow": "ellipsis"} if j == 0 else {"no_wrap": True}
        table.add_column(header, justify="left" if j == 0 else "right", **options)
    for i, row in enumerate(rows):
        table.add_row(
            *(
                Text(text, style="bold green" if (i, j) in marks else "")
                for j, text in enumerate(row)
            )
        )
    Console().print(table)


class Progress:
    """A bar per fit where someone watches, else a line per finished method."""

    def __init__(self):
        # scikit-learn's bar writes to the standard output.
        watched = sys.stderr.isatty() and sys.stdout.isatty()
        self.bars = watched and rich_is_there()
        self.started = time.perf_counter()

    def callbacks(self):
        """Callbacks for the next fit."""
        if not self.bars:
            return ()
        from sklearn.callback import ProgressBar

        return (ProgressBar(),)

    def counted(self, results, total):
        """The results of fits that run elsewhere, with one bar for all of them."""
        if not self.bars:
            yield from results
            return
        self.bars = False
        from rich.console import Console
        from rich.progress import track

        yield from track(
            results, "Fitting", total, transient=True, console=Console(stderr=True)
        )

    def finished(self, result):
        """Tell that a method is done."""
        if result.failure is not None:
            say(f"{result.name} failed: {result.failure}")
        elif not (self.bars and result.is_model):
            say(f"{result.name}: {result.seconds:.1f} s")
