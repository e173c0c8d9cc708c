"""Reading and writing the local form of a data set, one .npz file."""

import os
import tempfile
import zipfile

import numpy as np


def read_arrays(path, names, optional=()):
    """Return arrays of an .npz file, those in `optional` only if they are there.

    Nothing in the file is executed.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if not missing:
                found = [name for name in optional if name in archive.files]
                return {name: archive[name] for name in [*names, *found]}
    except (zipfile.BadZipFile, EOFError, ValueError, AttributeError) as error:
        raise OSError(f"{path} is not a readable .npz file of plain arrays.") from error
    raise OSError(f"{path} lacks the arrays {missing}.")


def write_arrays(path, arrays):
    """Write an .npz file under a temporary name, then rename it."""
    folder, name = os.path.split(path)
    handle, temporary = tempfile.mkstemp(prefix=name, suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
