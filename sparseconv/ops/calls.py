"""The computations of each backend: the registered ops."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_OPS = torch.ops.sparseconv


class Kernels(NamedTuple):
    """fprop, dgrad and wgrad of one backend; the schemas are in ``ops.schemas``."""

    fprop: Any
    dgrad: Any
    wgrad: Any


# The dispatcher runs the C++ kernels for CPU tensors, and the CUDA kernels for CUDA tensors.
_DISPATCHED = Kernels(_OPS.fprop.default, _OPS.dgrad.default, _OPS.wgrad.default)
KERNELS = {
    "cpp": _DISPATCHED,
    "cuda": _DISPATCHED,
    "triton": Kernels(
        _OPS.triton_fprop.default, _OPS.triton_dgrad.default, _OPS.triton_wgrad.default
    ),
}
bias_grad = _OPS.bias_grad.default
