"""Which implementations are built, which can run here, and why not."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

BACKENDS = ("cpp", "triton", "reference")
_CPU = torch.device("cpu")


def _load_extension() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("sparseconv._C"), ""
    except ImportError as error:  # not built, or built against another torch
        return None, (
            f"the C++ extension cannot be loaded ({error}); "
            "build it with `pip install --no-build-isolation .` (needs a C++20 compiler)"
        )


extension, _missing_reason = _load_extension()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _preferred() -> str:
    # Every call of a layer asks, and os.environ takes a twentieth of a small one to answer.
    getenv = os.environ.get if extension is None else extension.getenv
    return getenv("SPARSECONV_BACKEND") or "auto"


@functools.cache
def _load_triton() -> tuple[ModuleType | None, str]:
    # At first use, not above: Triton takes a third of a second, and the CPU needs none of it.
    try:
        return importlib.import_module("sparseconv.triton"), ""
    except ImportError as error:
        return None, f"Triton cannot be loaded ({error}); install it with `pip install triton`"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_not_triton(device_type: str) -> str:
    """Say why the Triton kernels cannot run on this type of device; empty where they can."""
    module, reason = _load_triton()
    if module is None:
        return reason
    if device_type == "cuda" or (device_type == "cpu" and module.INTERPRETED):
        return ""
    return (
        f"its kernels run on CUDA tensors, but the input is on {device_type}; move it with .cuda()"
        " (for tests, TRITON_INTERPRET=1 in the environment interprets them on the CPU, slowly)"
    )


def _triton_state() -> str:
    module, reason = _load_triton()
    if module is None:
        return reason
    if module.INTERPRETED:
        return "available (CPU, interpreted: slow, for tests)"
    if torch.cuda.is_available():
        return f"available ({torch.cuda.get_device_name()})"
    return "no GPU: torch sees no CUDA device"


def available_backends() -> dict[str, str]:
    """Name every backend with the state it is in on this machine.

    Returns:
        ``{"cpp": ..., "triton": ..., "reference": ...}``: ``"available"``, followed by the
        instruction set or the GPU in use where there is one, or the reason why the backend
        cannot run.

    Example:
        >>> import sparseconv as sc
        >>> sc.available_backends()["reference"]
        'available'
    """
    if extension is None:
        cpp = _missing_reason
    else:
        try:
            cpp = f"available (CPU, {extension.isa()})"
        except ValueError as error:  # SPARSECONV_CPU_ISA names what this CPU cannot run
            cpp = str(error)
    return {"cpp": cpp, "triton": _triton_state(), "reference": "available"}


def resolve_backend(name: str, device: torch.device) -> str:
    """Turn a requested backend into one that runs on ``device``, or raise with the reason.

    ``"auto"`` takes ``SPARSECONV_BACKEND`` if it is set, else the C++ kernels for CPU tensors,
    Triton's for CUDA tensors, else the dense reference. A named backend is never replaced by
    another.
    """
    if name == "auto":
        name = _preferred()
    if name == "auto":
        # The first question takes a third of the second's time, and every small call asks.
        if device == _CPU or device.type == "cpu":
            return "cpp" if extension is not None else "reference"
        return "triton" if device.type == "cuda" and not _why_not_triton("cuda") else "reference"
    if name == "reference":
        return name
    if name == "triton":
        reason = _why_not_triton(device.type)
        if reason:
            raise RuntimeError(f"backend 'triton' cannot run: {reason}")
        return name
    if name != "cpp":
        raise ValueError(
            f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, but got {name!r}"
        )
    if extension is None:
        raise RuntimeError(f"backend 'cpp' cannot run: {_missing_reason}")
    if device.type != "cpu":
        raise RuntimeError(
            f"backend 'cpp' runs on CPU tensors, but the input is on {device}; "
            "move it with .cpu() or use backend='auto'"
        )
    return name
