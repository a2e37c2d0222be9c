"""How torch.utils.flop_counter counts the registered ops: by their active weights.

Imported when that module is (see ``sparseconv/__init__.py``). A multiply-add is two operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_OPS = torch.ops.sparseconv


def _register(macs: Callable[..., Any], *ops: Any) -> None:
    """Count an op's multiply-adds from the shapes of its output and of its arguments."""

    def flops(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
        return int(2 * macs(out_shape, *arguments))

    register_flop_formula(list(ops))(flops)


# Each active weight meets every output of its row once: N * L_out.
_register(lambda y, x, values, *_: y[0] * y[2] * values[0], _OPS.fprop, _OPS.triton_fprop)
_register(lambda _, grad, values, *__: grad[0] * grad[2] * values[0], _OPS.dgrad, _OPS.triton_dgrad)


@register_flop_formula([_OPS.wgrad, _OPS.triton_wgrad], get_raw=True)
def _wgrad(grad: Tensor, x: Tensor, crow: Tensor, rows: Tensor, *_: Any, **__: Any) -> int:
    # A bias's gradient is that of weights of a channel of ones, a single one repeated; torch does
    # not count it in dense convolutions, nor here.
    return 2 * grad.shape[0] * grad.shape[2] * rows.shape[0] if any(x.stride()) else 0
