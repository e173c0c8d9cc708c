"""The columns of the comparison, the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

DASH = "-"


@dataclass(frozen=True)
class Column:
    """A header, what it explains, the value of a row and how it is written."""

    header: str
    meaning: str
    value: Callable
    form: Callable
    # max or min where the value is worth emphasis, None where more is not better.
    best: Callable | None = None


def _percent(value):
    return f"{100 * value:.1f}%"


def _share(value):
    return "{}/{}".format(*value)


def _nats(value):
    return f"{value:z.2f}" if abs(value) < 1e5 else f"{value:.2e}"


def _nll(result):
    return None if result.n_tokens is None else -result.log_density


def _per_token(result):
    return result.nats_per_token


def _perplexity(result):
    nats = result.nats_per_token
    return None if nats is None else math.exp(nats)


def _density(result):
    return result.log_density if result.n_tokens is None else None


def _active(result):
    return None if result.active is None else (result.active, result.n_components)


ACTIVE = "latents whose posterior mean varies over held-out {unit}s"
KL = "nats by which posteriors differ from the prior (training {unit}s)"
INFORMATION = (
    "nats that the latents tell about which held-out {unit} it is; no estimate from "
    "this many {unit}s can pass the bound in brackets"
)
DENSITY = "held-out log-likelihood in nats per {unit}, importance-weighted"
SLOPE = "certified lower bound on the slope of the decoder"
RESTARTS = "mean correlation of a component with its match in other restarts"
PROBE = "a linear model that reads the labels from the latents"
NEIGHBOURS = "five nearest neighbours doing the same"
NETWORK = "a network with two hidden layers of 1024 units doing the same"
NLL = "held-out negative log-likelihood in nats per {unit}, importance-weighted"
PER_TOKEN = "the same per token, the ends of documents counted"
PERPLEXITY = "its exponential: among how many words the model wavers"


def columns(data, results):
    """The columns that have a value for at least one row."""
    score = _percent if data.classes else "{:.3f}".format
    kind = "" if data.classes else " R2"
    ceiling = next((r.ceiling for r in results if r.ceiling is not None), 0.0)
    most = max((r.information or 0.0 for r in results), default=0.0)
    # Near the ceiling the number measures the ceiling.
    telling = max if most <= 0.95 * ceiling else None
    two = "{:z.2f}".format
    known = [
        Column(f"probe{kind}", PROBE, lambda r: r.probe, score, max),
        Column(f"kNN{kind}", NEIGHBOURS, lambda r: r.neighbours, score, max),
        Column(f"MLP{kind}", NETWORK, lambda r: r.network, score, max),
        Column("active", ACTIVE, _active, _share, max),
        Column("KL", KL, lambda r: r.kl, two),
        Column(
            f"MI (<{ceiling:.1f})", INFORMATION, lambda r: r.information, two, telling
        ),
        Column("log p(x)", DENSITY, _density, _nats, max),
        Column("NLL", NLL, _nll, _nats, min),
        Column("per token", PER_TOKEN, _per_token, "{:.3f}".format, min),
        Column("perplexity", PERPLEXITY, _perplexity, "{:.1f}".format, min),
        Column("slope", SLOPE, lambda r: r.slope, "{:.2g}".format),
        Column("restarts", RESTARTS, lambda r: r.consistency, two, max),
        Column("seconds", "for training", lambda r: r.seconds or None, "{:.1f}".format),
    ]
    known = [c for c in known if any(c.value(r) is not None for r in results)]
    return [replace(c, meaning=c.meaning.format(unit=data.unit)) for c in known]


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
        # X itself and frequencies are yardsticks and take no part.
        there = {
            i: column.value(result)
            for i, result in enumerate(results)
            if result.n_components and column.value(result) is not None
        }
        if column.best is None or len(there) < 2:
            continue
        # Equal as printed is equal: nobody wins by a digit that is not shown.
        winner = column.form(column.best(there.values()))
        winners = [(i, j) for i in there if rows[i][j] == winner]
        best += winners if len(winners) < len(there) else []
    return rows, best
