"""Let the process keep freed memory."""

from __future__ import annotations

import ctypes

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def retain_freed_memory() -> bool:
    """Let this process keep the memory that CPU tensors free.

    Each pass of a network frees its activations, and the next pass allocates them again. The GNU C
    library (glibc) returns such blocks to the system, which clears every page on its first use.
    This often takes a fifth to a half of a small network's time. This function sets glibc's
    ``M_MMAP_THRESHOLD`` to 1 GiB (older versions allow 32 MiB) and ``M_TRIM_THRESHOLD`` to 2 GiB.
    The process then keeps its peak memory until it exits. Call this function at the start of a
    program that trains or runs inference on the CPU, and before measuring. ``training.train``,
    ``DSNClassifier`` and the commands ``train``, ``prune``, ``profile`` and ``bench`` call it.

    Returns:
        True if the thresholds were set. With other C libraries (musl, macOS, Windows), the function
        has no effect and returns False; it never raises an error.

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
