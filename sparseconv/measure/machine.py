"""Describe the machine and software of a measurement; set what torch uses of the machine."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sparseconv._version import __version__
from sparseconv.ops.backends import available_backends

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def cpu_name() -> str:
    """Return the processor's name, with the numbers that identify its model.

    Cloud machines report "AMD EPYC" for generations that differ threefold in speed; Linux on Arm
    reports no name.
    """
    if sys.platform == "darwin":
        words = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().partition("\n\n")[0] if cpuinfo.exists() else ""
    given = dict(line.split("\t", 1) for line in first.splitlines() if "\t" in line)
    given = {key: value.strip("\t: ") for key, value in given.items()}
    if "CPU part" in given:
        numbers = f"implementer {given['CPU implementer']}, part {given['CPU part']}"
        return f"{given.get('model name') or platform.machine()} ({numbers})"
    if "cpu family" not in given:
        return given.get("model name") or platform.processor() or platform.machine()
    return f"{given['model name']} (family {given['cpu family']}, model {given['model']})"


def environment_info() -> dict[str, str]:
    """Return the machine and versions on which times and accuracies depend."""
    return {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cpp": available_backends()["cpp"],
        "system": f"{platform.system()} {platform.machine()}",
        "sparseconv": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads, 1 to 1024, inside the block."""
    if not 1 <= count <= 1024:  # with very many OpenMP ends the process
        raise ValueError(f"threads (n_jobs) must be 1 to 1024, but got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
