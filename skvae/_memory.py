"""What the C library does with memory that is freed.

glibc gives large freed blocks back to the kernel, and every new one of their size then
costs a page fault per 4 kB, several times the arithmetic on it. Blocks up to the
largest one freed so far, at most 32 MB, it keeps: so one is freed, never touched.
"""

from __future__ import annotations

import ctypes
import platform

import torch

# Just short of the most that glibc takes note of, in bytes.
KEPT = 31 << 20


def keep_freed_memory() -> None:
    """Have blocks of up to 31 MB that the process frees kept for its next ones."""
    torch.empty(KEPT, dtype=torch.uint8)


def give_back() -> None:
    """Return what is free to the kernel: of each thread's share, where glibc has one.

    A process that was handed work and keeps much memory looks like one that leaks, and
    loky starts another in its place.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
