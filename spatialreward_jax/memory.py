"""Host memory of CPU runs."""

import ctypes
import sys

import jax

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_PAD = 256 * 2**20


def keep_freed_memory() -> bool:
    """Lets a CPU process keep what it frees, so that large arrays are not mapped, zeroed and unmapped at every step.

    The allocator of Linux returns every block above a few MB at once, and the next step faults its pages in again: half
    of a small net's training step. What is kept is bounded by the process's largest moment.

    Returns:
      whether anything was set: False where accelerators hold the arrays, or the C library is not glibc.
    """
    if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(what, value) for what, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, _PAD)))
