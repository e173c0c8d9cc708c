"""What the displays share: axes, and matplotlib only where it is needed."""

from __future__ import annotations


def axes(ax):
    """The axes given, or those of a new figure."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays are drawn with matplotlib. Install it with `pip install "
            "skvae[plot]`."
        ) from error
    return plt.subplots()[1] if ax is None else ax


def title(ax, name):
    """Set the title where there is one."""
    if name is not None:
        ax.settitle(name)
