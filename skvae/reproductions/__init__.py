"""Published experiments as tables that anyone can rerun.

``python -m skvae reproduce TABLE`` runs one of :data:`TABLES`; an interrupted run
continues where it stopped.
"""

from __future__ import annotations

from importlib import import_module

from skvae.reproductions._table import Options

# Name of each table, and the module whose TABLE it is.
TABLES = {
    "recovery": "skvae.reproductions.recovery",
    "recovery_segments": "skvae.reproductions.recovery",
    "recovery_layers": "skvae.reproductions.recovery",
    "discrete": "skvae.reproductions.discrete",
    "pinwheel": "skvae.reproductions.pinwheel",
    "mixtures": "skvae.reproductions.mixtures",
    "skip": "skvae.reproductions.skip",
    "decoders": "skvae.reproductions.decoders",
    "pixelcnn": "skvae.reproductions.pixelcnn",
    "pixelcnn_published": "skvae.reproductions.pixelcnn",
    "text": "skvae.reproductions.text",
    "covariates": "skvae.reproductions.covariates",
}


def load_table(name: str):
    """Look up a table.

    Parameters
    ----------
    name : str
        One of :data:`TABLES`.

    Returns
    -------
    table : Table
        Its protocol, with ``run(path, options, report)`` and ``render(path)``.

    Raises
    ------
    ValueError
        If there is no such table.

    Examples
    --------
    >>> from skvae.reproductions import load_table
    >>> load_table("pinwheel").keys
    ('method', 'noise', 'seed')
    """
    if name not in TABLES:
        raise ValueError(f"Unknown table {name!r}. There are {', '.join(TABLES)}.")
    return import_module(TABLES[name]).TABLES[name]


__all__ = ["TABLES", "Options", "load_table"]
