"""Describe the machine and software of a measurement, and set the number of threads."""

from __future__ import annotations

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
