"""Reading and writing the local form of a data set, one .npz file."""

import os
import zipfile
import zlib

import numpy as np

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError)


def read_arrays(path, names, optional=()):
    """Return arrays of an .npz file, those in `optional` only if they are there.

    Nothing in the file is executed.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if not missing:
                found = [name for name in optional if name in archive.files]
                return {name: archive[name] for name in [*names, *found]}
    except _DAMAGED as error:
        raise OSError(f"{path} is not a readable .npz file of plain arrays.") from error
    raise OSError(f"{path} lacks the arrays {missing}.")


def write_arrays(path, arrays):
    """Write an .npz file under a temporary name, then rename it."""
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
