"""Keep the memory that a process frees."""

from __future__ import annotations

import ctypes

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def retain_freed_memory() -> bool:
    """Let this process keep the memory that CPU tensors free, instead of returning it.

    A pass of a network frees its activations, and the next one allocates the same again. The GNU C
    library (glibc) returns such blocks to the system by default, and every page of the next ones
    is cleared at its first use: often a fifth to a half of the time of a small network. This sets
    glibc's ``M_MMAP_THRESHOLD`` to 1 GiB (older versions allow 32 MiB) and ``M_TRIM_THRESHOLD`` to
    2 GiB. The process then keeps the memory of its peak until it exits. Call it at the start of a
    program that trains or infers on the CPU, and before you measure. ``training.train`` and
    ``DSNClassifier`` do, and in a shell ``train``, ``prune``, ``profile`` and ``bench``.

    Returns:
        Whether it could be set: False with other C libraries (musl, macOS, Windows), where this
        does nothing. Never raises.

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
