"""Make torch's FLOP counters count the active weights of the registered ops.

A multiply-add counts as two operations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_OPS = torch.ops.sparseconv
_MODULE = "torch.utils.flop_counter"


def _fprop(input: Tensor, values: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Count ``N * L_out`` multiply-adds for each active weight."""
    return 2 * out_val.shape[0] * out_val.shape[2] * values.shape[0]


def _dgrad(grad_output: Tensor, values: Tensor, *_: Any, **__: Any) -> int:
    return 2 * grad_output.shape[0] * grad_output.shape[2] * values.shape[0]


def _wgrad(grad_output: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * grad_output.shape[0] * grad_output.shape[2] * out_val.shape[0]


def _in_lanes(*args: Any, weights: int, batch: int, **_: Any) -> int:
    """Count for a tensor of weights or indices, and N and L, at these places of the arguments."""
    return int(2 * args[weights].numel() * args[batch] * args[batch + 1])


_FORMULAS: dict[Any, Callable[..., int]] = {
    getattr(_OPS, prefix + name): formula
    for name, formula in (("fprop", _fprop), ("dgrad", _dgrad), ("wgrad", _wgrad))
    for prefix in ("", "triton_")
} | {
    getattr(_OPS, f"lanes_{name}"): partial(_in_lanes, weights=weights, batch=batch)
    for name, weights, batch in (
        ("conv", 1, 6),
        ("dgrad", 1, 5),
        ("wgrad", 3, 5),
        ("pointwise", 1, 3),
        ("pointwise_dgrad", 1, 2),
        ("pointwise_wgrad", 2, 3),
    )
}


def teach_counters() -> None:
    """Register the formulas with ``torch.utils.flop_counter`` and with counters that are running.

    This is called when the package is imported, and by ``teach_running_counters``. An
    exported graph is counted only if ``torch.utils.flop_counter`` was imported before this package,
    or if a layer has run under a counter.
    """
    module: Any = sys.modules.get(_MODULE)
    if module is None:  # importing it would import Triton, which takes a third of a second
        return
    for op, formula in _FORMULAS.items():
        if op not in module.flop_registry:
            module.register_flop_formula(op, get_raw=True)(formula)
    for mode in _get_current_dispatch_mode_stack():  # counters hold copies of the registry
        counter = getattr(mode, "counter", None)
        if isinstance(counter, module.FlopCounterMode):
            counter.flop_registry = {**_FORMULAS, **counter.flop_registry}


def teach_running_counters() -> None:
    """Do so before an op runs under a dispatch mode, which may be a counter."""
    if not is_compiling() and torch._C._len_torch_dispatch_stack():
        teach_counters()
