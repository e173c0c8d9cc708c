"""What the displays share: axes, and matplotlib only where it is needed."""

from __future__ import annotations


def axes(ax):
    """The axes given, or those of a new figure."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays are drawn with matplotlib. Install it with `pip install "
            "skvae[plot]`."
        ) from error
    return plt.subplots()[1]


def title(ax, name):
    """Set the title where there is one."""
    if name is not None:
        ax.set_title(name)
