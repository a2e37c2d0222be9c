"""The machine and the software under a result: facts to print beside it, and its threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from sparseconv._version import __version__
from sparseconv.ops.backends import available_backends, extension

CORE_PACKAGES = ("sparseconv", "torch", "python")
OPTIONAL_PACKAGES = ("aeon", "scikit-learn", "tqdm", "matplotlib", "jinja2")
VARIABLES = ("SPARSECONV_BACKEND", "SPARSECONV_CPU_ISA")


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of this library, of what it needs and of the optional packages that are there."""
    found = {
        "sparseconv": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for package in OPTIONAL_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def isa() -> str:
    """The instruction set that the C++ kernels use, and those that this CPU could run."""
    if extension is None:
        return "none: the C++ extension is not built"
    try:
        chosen = f"{extension.isa()} in use"
    except ValueError as error:  # SPARSECONV_CPU_ISA asks for what cannot run here
        chosen = str(error)
    return f"{chosen}; available: {', '.join(extension.isas())}"


def facts() -> dict[str, str]:
    """What a reader of a time or of an accuracy must know.

    Example:
        >>> sorted(facts())
        ['cores', 'cpp', 'cpu', 'python', 'sparseconv', 'system', 'threads', 'torch']
    """
    found = versions()
    return {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cpp": available_backends()["cpp"],
        "system": f"{platform.system()} {platform.machine()}",
        **{name: found[name] for name in CORE_PACKAGES},
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block and as many as before after it.

    Example:
        >>> with threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let the C library keep what a training step frees, instead of returning it to the system.

    A step frees and allocates the same activations; given back, each of their pages is faulted in
    and cleared again (some 2 000 faults and a fifth of the time of a DSN's step at L = 128). The
    GNU C library keeps blocks up to the largest that it has seen freed, 32 MB at most: so one such
    block is allocated and freed. Elsewhere this does nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
