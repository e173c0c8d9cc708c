"""The columns of the comparison, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DASH = "-"


@dataclass(frozen=True)
class Column:
    """A header, what it explains, the value of a row and how it is written."""

    header: str
    meaning: str
    value: Callable
    form: Callable
    # Whether the largest value is worth emphasis; False where more is not better.
    best_is_largest: bool = False


def _percent(value):
    return f"{100 * value:.1f}%"


def _share(value):
    return "{}/{}".format(*value)


def _nats(value):
    return f"{value:z.2f}" if abs(value) < 1e5 else f"{value:.2e}"


def _active(result):
    return None if result.active is None else (result.active, result.n_components)


ACTIVE = "latents whose posterior mean varies over held-out rows"
KL = "nats by which posteriors differ from the prior (training rows)"
INFORMATION = (
    "nats that the latents tell about which held-out row it is; no estimate from this "
    "many rows can pass the bound in brackets"
)
DENSITY = "held-out log-likelihood in nats per row, importance-weighted"
SLOPE = "certified lower bound on the slope of the decoder"
RESTARTS = "mean correlation of a component with its match in other restarts"
PROBE = "a linear model that reads the labels from the latents"
NEIGHBOURS = "five nearest neighbours doing the same"


def columns(data, results):
    """The columns that have a value for at least one row."""
    score = _percent if data.classes else "{:.3f}".format
    kind = "" if data.classes else " R2"
    ceiling = next((r.ceiling for r in results if r.ceiling is not None), 0.0)
    most = max((r.information or 0.0 for r in results), default=0.0)
    # Near the ceiling the number measures the ceiling.
    telling = most <= 0.95 * ceiling
    two = "{:z.2f}".format
    known = [
        Column(f"probe{kind}", PROBE, lambda r: r.probe, score, True),
        Column(f"kNN{kind}", NEIGHBOURS, lambda r: r.neighbours, score, True),
        Column("active", ACTIVE, _active, _share, True),
        Column("KL", KL, lambda r: r.kl, two),
        Column(
            f"MI (<{ceiling:.1f})", INFORMATION, lambda r: r.information, two, telling
        ),
        Column("log p(x)", DENSITY, lambda r: r.log_density, _nats, True),
        Column("slope", SLOPE, lambda r: r.slope, "{:.2g}".format),
        Column("restarts", RESTARTS, lambda r: r.consistency, two, True),
        Column("seconds", "for training", lambda r: r.seconds or None, "{:.1f}".format),
    ]
    return [c for c in known if any(c.value(r) is not None for r in results)]


def cells(chosen, results):
    """Texts, row by row, and the (row, column) pairs of the best values."""
    rows, best = [], []
    for result in results:
        row = [result.name + ("+" if result.with_labels else "")]
        for column in chosen:
            value = column.value(result)
            row.append(DASH if value is None else column.form(value))
        rows.append(row)
    for j, column in enumerate(chosen, start=1):
        # X itself is a yardstick and takes no part.
        there = {
            i: column.value(result)
            for i, result in enumerate(results)
            if result.n_components and column.value(result) is not None
        }
        if not column.best_is_largest or len(there) < 2:
            continue
        # Equal as printed is equal: nobody wins by a digit that is not shown.
        winner = column.form(max(there.values()))
        winners = [(i, j) for i in there if rows[i][j] == winner]
        best += winners if len(winners) < len(there) else []
    return rows, best
