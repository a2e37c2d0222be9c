"""Let the process keep freed memory."""

from __future__ import annotations

import ctypes

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def retain_freed_memory() -> bool:
    """Let this process keep the memory that CPU tensors free.

    The GNU C library (glibc) returns the memory of activations to the system, which clears every
    page when the next pass allocates it again. This often takes a fifth to a half of a small
    network's time. With higher thresholds (``M_MMAP_THRESHOLD``, ``M_TRIM_THRESHOLD``), the process
    keeps its peak memory until it exits. Call this function at the start of a program that trains
    or runs inference on the CPU, and before measuring; ``training.train`` calls it.

    Returns:
        True if the thresholds were set; False with other C libraries (musl, macOS, Windows).

    Example:
        >>> import sparseconv as sc
        >>> kept = sc.retain_freed_memory()

    Source: mallopt(3), the manual page of glibc's parameters.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; Windows has no CDLL(None)
        return False
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
