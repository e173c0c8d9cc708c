"""Reading tables and writing files."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import math
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

TEXT = (".txt", ".tsv", ".txt.gz", ".tsv.gz")
# Grids smaller than this are tables whose number of columns happens to be a square.
SMALLEST_IMAGE = 49


class Table(NamedTuple):
    """Rows of a file; the test part, y and u are None where there are none."""

    X: object
    y: np.ndarray | None = None
    X_test: object = None
    y_test: np.ndarray | None = None
    u: np.ndarray | None = None
    image_shape: tuple | None = None


def closest(name, names):
    """A hint at the name that may have been meant."""
    names = [str(known) for known in names]
    by_case = {known.lower(): known for known in names}
    match = difflib.get_close_matches(str(name).lower(), by_case, n=1, cutoff=0.5)
    shown = names if len(names) <= 12 else [*names[:12], "..."]
    hint = f" Did you mean {by_case[match[0]]!r}?" if match else ""
    return f"{hint} There are: {', '.join(shown)}."


def pandas_for(path):
    """The module pandas, or an error that says how to get it."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs pandas. Install it with `pip install skvae[data]`."
        ) from error
    return pandas


def _read_frame(path, target, u):
    pandas = pandas_for(path)
    if path.suffix == ".csv":
        frame = pandas.read_csv(path)
    else:
        frame = pandas.read_parquet(path)
    taken = []
    for name in (target, u):
        if name is not None and name not in frame.columns:
            raise ValueError(
                f"{path} has no column {name!r}.{closest(name, frame.columns)}"
            )
        taken.append(None if name is None else frame[name].to_numpy())
    frame = frame.drop(columns=[name for name in {target, u} if name is not None])
    return Table(frame, y=taken[0], u=taken[1])


def numbers(X, path, among=None):
    """X, refused with the name of the column if one is not numeric."""
    for name, kind in getattr(X, "dtypes", {}).items():
        if among is not None and name not in among:
            continue
        if kind.kind not in "fiub":
            raise ValueError(
                f"Column {name!r} of {path} is not numeric. Name it as --target or "
                "--u, or leave it out of the file."
            )
    return X


def _array(archive, path, *names):
    for name in names:
        if name in archive:
            return archive[name]
    raise ValueError(f"{path} has no array {names[0]!r}.{closest(names[0], archive)}")


def _read_npz(path, target, u):
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        archive = {name: stored[name] for name in stored.files}

    def named(name, part):
        names = [f"{name}_{part}", name] if part else [name]
        return _array(archive, path, *names)

    if "X_train" in archive:
        target = target or ("y" if "y_train" in archive else None)
        u = None if u is None else named(u, "train")
        y, y_test = None, None
        if target is not None:
            y = named(target, "train")
            y_test = named(target, "test") if "X_test" in archive else None
        return Table(archive["X_train"], y, archive.get("X_test"), y_test, u)
    if "X" not in archive and len(archive) > 1:
        raise ValueError(
            f"{path} holds {', '.join(archive)}. Expected X_train (and y_train, "
            "X_test, y_test), X (and y), or a single array."
        )
    X = archive["X"] if "X" in archive else next(iter(archive.values()))
    target = target or ("y" if "y" in archive else None)
    y = None if target is None else named(target, "")
    return Table(X, y, u=None if u is None else named(u, ""))


def _read_npy(path, target, u):
    if target or u:
        raise ValueError(f"{path} holds one array without names: no {target or u!r}.")
    return Table(np.load(path, allow_pickle=False))


READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".csv": _read_frame,
    ".parquet": _read_frame,
}


def _flat(X):
    """Rows of images as rows of pixels."""
    if X is None or X.ndim == 2:
        return X
    if X.ndim < 2:
        raise ValueError(f"X must have rows and columns. Got the shape {X.shape}.")
    return X.reshape(len(X), -1)


def guess_image_shape(X):
    """Height and width of images, and 3 for those in colour; None for other rows."""
    if X.ndim == 3:
        return X.shape[1:]
    if X.ndim == 4 and X.shape[-1] in (1, 3):
        return X.shape[1:3] if X.shape[-1] == 1 else X.shape[1:]
    n_features = X.shape[1] if X.ndim == 2 else 0
    side = math.isqrt(n_features)
    return (side, side) if SMALLEST_IMAGE <= side**2 == n_features else None


def _read(name, target=None, u=None):
    """Table of a file as it is stored."""
    path = Path(name)
    if path.suffix not in READERS:
        kinds = ", ".join(READERS)
        texts = " Text is for the sequence models." if is_text(name) else ""
        raise ValueError(f"{path}: unknown kind of file. Data come as {kinds}.{texts}")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return READERS[path.suffix](path, target, u)
    except (EOFError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_column(name):
    """The rows of a file with one variable, one-dimensional if it has one column."""
    X = np.asarray(_read(name).X)
    return X.ravel() if X.ndim == 2 and X.shape[1] == 1 else X


def read_table(name, target=None, u=None):
    """Read a data file; ValueError or OSError in words where it is not one."""
    table = _read(name, target, u)
    for part, label in ((table.y, "labels"), (table.u, "values of u")):
        if part is not None and len(part) != len(table.X):
            raise ValueError(f"{name} has {len(table.X)} rows but {len(part)} {label}.")
    return table._replace(
        X=_flat(table.X),
        X_test=_flat(table.X_test),
        image_shape=guess_image_shape(table.X),
    )


def is_text(name):
    """Whether a file holds one document a line, by its name."""
    return name is not None and str(name).lower().endswith(TEXT)


def read_documents(name):
    """The lines of a text file, and what stands before their tabs, or None.

    Labels are there if each line that is not blank has a tab.
    """
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            lines = [line.rstrip("\n\r") for line in file]
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}") from error
    written = [number for number, line in enumerate(lines) if line.strip()]
    bare = [number for number in written if "\t" not in lines[number]]
    if written and not bare:
        parts = [lines[number].split("\t", 1) for number in written]
        return [text for _, text in parts], [label.strip() for label, _ in parts]
    if ".tsv" in path.suffixes:
        where = f"line {bare[0] + 1} has no tab" if bare else "there is no line"
        raise ValueError(
            f"{path} must hold label, tab, text in every line, and {where}. Name a "
            "file without labels .txt."
        )
    return lines, None


def check_writable(name):
    """Complain about a place for results before the work is done."""
    folder = Path(name).resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} to write {name} into.")
    if Path(name).is_dir():
        raise IsADirectoryError(f"{name} is a folder. Name a file in it.")


@contextlib.contextmanager
def replaced(name):
    """A temporary name beside `name`, which takes its place if the block succeeds."""
    path = Path(name)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
