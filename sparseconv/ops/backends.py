"""Find out which backends are built and can run here, and explain why the others cannot."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args

import torch

Backend = Literal["auto", "cpp", "cuda", "triton", "reference"]
BACKENDS: tuple[str, ...] = get_args(Backend)[1:]
_ON = {"cpp": "cpu", "cuda": "cuda", "triton": "cuda"}
_CPU = torch.device("cpu")
F = TypeVar("F", bound=Callable[..., Any])


def _load_extension() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("sparseconv._C"), ""
    except ImportError as error:  # not built, or built against another torch
        remedy = "build it with `pip install --no-build-isolation .` (needs a C++20 compiler)"
        if (Path(__file__).parents[2] / "setup.py").exists():
            remedy += "; if it is installed, this source folder hides it: run from another folder"
        return None, f"the C++ extension cannot be loaded ({error}); {remedy}"


extension, _missing_reason = _load_extension()
if extension is None:
    # Warn once per process, and never raise: the reference computes the same.
    warnings.warn(
        f"sparseconv uses its slow dense reference: {_missing_reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def _constant_in_graphs(function: F) -> F:
    """Do what ``torch.compiler.assume_constant_result`` does, without its 2 s import."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_in_graphs
def _preferred() -> str:
    # A Block reads it for each of its layers in every call; os.environ takes ten times as long.
    getenv = os.environ.get if extension is None else extension.getenv
    return getenv("SPARSECONV_BACKEND") or "auto"


@functools.cache
def _load_triton() -> tuple[ModuleType | None, str]:
    # Import at first use: it takes a third of a second, and CPU tensors do not need Triton.
    try:
        return importlib.import_module("sparseconv.ops.triton"), ""
    except ImportError as error:
        return None, f"Triton cannot be loaded ({error}); install it with `pip install triton`"


def _missing(name: str) -> str | None:
    """Return the reason why a backend is not installed, or None if it is."""
    if name == "triton":
        module, reason = _load_triton()
        return reason if module is None else None
    if extension is None:
        return _missing_reason
    if name == "cuda" and not extension.cuda:
        if torch.version.cuda is None:
            return "not built: torch lacks CUDA; install a CUDA build of torch, then sparseconv"
        return (
            "not built: nvcc was not found or failed, or FORCE_CUDA=0 was set; set CUDA_HOME and "
            "build again with `FORCE_CUDA=1 pip install --no-build-isolation .`"
        )
    return None


def _interpreted() -> bool:
    module, _ = _load_triton()
    return module is not None and bool(module.INTERPRETED)


@_constant_in_graphs
def _why_not(name: str, device_type: str) -> str | None:
    """Return the reason why a backend cannot run on this type of device, or None if it can."""
    reason = _missing(name)
    if reason is not None or device_type == _ON[name]:
        return reason
    if name == "triton" and device_type == "cpu" and _interpreted():
        return None
    reason = (
        f"it runs on {_ON[name].upper()} tensors, but the input is on {device_type}; "
        f"move the input with .{_ON[name]}() or use backend='auto'"
    )
    if name == "triton":
        reason += " (or set TRITON_INTERPRET=1 to interpret the kernels on the CPU, slowly)"
    return reason


def _state(name: str) -> str:
    if name == "reference":
        return "available"
    no_gpu = "no GPU: torch sees no CUDA device"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    waits = gpu is None and not os.environ.get("TRITON_INTERPRET")
    if name == "triton" and waits and importlib.util.find_spec("triton") is not None:
        return no_gpu  # without the import, which takes 0.3 s
    if (reason := _missing(name)) is not None:
        return reason
    if name == "cpp" and extension is not None:
        try:
            threads = "" if extension.openmp else ", one thread: built without OpenMP"
            return f"available (CPU, {extension.isa()}{threads})"
        except ValueError as error:  # this CPU cannot run what SPARSECONV_CPU_ISA names
            return str(error)
    if name == "triton" and _interpreted():
        return "available (CPU, interpreted: slow, for tests)"
    if gpu is None:
        return no_gpu
    blocks = ", blocks on tensor cores" * (name == "triton" and _has_tensor_cores())
    return f"available ({gpu}{blocks})"


@_constant_in_graphs
def multiplies_blocks(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether Triton's kernels multiply blocks in this dtype on tensor cores."""
    # In float32 only where torch lets its own convolutions round to TF32.
    exact = torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]
    if dtype == torch.float64 or (dtype == torch.float32 and exact):
        return False
    # On the CPU Triton's interpreter emulates them.
    runs = _why_not("triton", device.type) is None
    return runs and (device.type == "cpu" or _has_tensor_cores(device))


def _has_tensor_cores(device: torch.device | None = None) -> bool:  # for bfloat16 and TF32
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def available_backends() -> dict[str, str]:
    """Describe the state of every backend on this machine.

    Returns:
        By name, ``"available"`` with the instruction set or GPU in use, or why it cannot run.

    Example:
        >>> import sparseconv as sc
        >>> sc.available_backends()["reference"]
        'available'
    """
    return {name: _state(name) for name in BACKENDS}


def resolve_backend(name: str, device: torch.device, cuda_pays: bool = False) -> str:
    """Resolve a requested backend to one that runs on ``device``, or raise an error that says why.

    ``"auto"`` uses ``SPARSECONV_BACKEND`` if it is set. Otherwise, it chooses the C++ kernels on a
    CPU, and on a GPU the CUDA kernels if they are faster (``cuda_pays``), or Triton's; if these are
    not available, the dense reference. A backend requested by name is never replaced.
    """
    if name == "auto":
        name = _preferred()
    if name == "auto":
        # The first comparison takes a third of the time of the second.
        if device == _CPU or device.type == "cpu":
            return "cpp" if extension is not None else "reference"
        return next(
            (kernels for kernels in ("cuda", "triton")[not cuda_pays :]
             if device.type == "cuda" and _why_not(kernels, "cuda") is None),
            "reference",
        )  # fmt: skip
    if name == "reference":
        return name
    if name not in BACKENDS:
        raise ValueError(
            f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, but got {name!r}"
        )
    if (reason := _why_not(name, device.type)) is not None:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return name
