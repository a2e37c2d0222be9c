"""Define autograd functions that torch can transform and differentiate, to any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling


def is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` or forward-mode differentiation is active."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


class Rest:
    """Hold the arguments that are not tensors; torch.func would search a tuple for tensors."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args


class Differentiable(torch.autograd.Function):
    """Define a function, of tensors and a ``Rest``, that torch can transform and differentiate."""

    generate_vmap_rule = True

    @classmethod
    def call(cls, *args: Any) -> Tensor:
        """Compute from tensors and a tuple, and record a derivative where torch needs one."""
        *tensors, rest = args
        if is_dynamo_compiling() and is_transformed():
            raise NotImplementedError(
                "torch.compile with fullgraph=True cannot compile a sparse convolution inside "
                "torch.func (vmap, grad, jvp, ...) or forward-mode differentiation; omit "
                "fullgraph=True, or apply the transform to the uncompiled module"
            )
        record: Any = cls.apply  # not in a separate function: torch.compile would trace it
        run = record if is_transformed() or torch.is_grad_enabled() else cls.forward
        result: Tensor = run(*tensors, Rest(rest))
        return result


def save(ctx: Any, tensors: tuple[Tensor | None, ...], rest: Rest) -> None:
    """Save the arguments for ``backward`` and for forward mode."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.rest = rest.args
