"""Pictures that go with some of the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def curves(x_label: str):
    """A picture of the mean correlation against the problem's number, by method."""

    def draw(rows: list[dict], path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        ax = figure.subplots()
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            places = sorted({int(row["problem"]) for row in own})
            values = [
                [float(row["mcc"]) for row in own if int(row["problem"]) == place]
                for place in places
            ]
            middle = np.array([np.median(v) for v in values])
            low = np.array([min(v) for v in values])
            high = np.array([max(v) for v in values])
            (line,) = ax.plot(places, middle, marker="o", label=method)
            ax.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
        ax.set(xlabel=x_label, ylabel="mean correlation, held-out rows", ylim=(0, 1.02))
        ax.set_xticks(sorted({int(row["problem"]) for row in rows}))
        ax.legend(frameon=False, loc="lower right")
        ax.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=110)

    return draw


def coloured(panels: dict, path: Path) -> None:
    """Points of the plane, one panel per title, coloured by integer labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(panels), 4.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for ax, (title, (X, labels)) in zip(axes, panels.items(), strict=True):
        ax.scatter(*X.T, c=labels, cmap="tab10", vmin=0, vmax=9, s=4, linewidths=0)
        ax.set(title=title, aspect="equal", xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
