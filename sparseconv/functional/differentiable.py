"""Autograd functions that every transform of torch can differentiate, to any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, or torch differentiates in forward mode."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


class Rest:
    """The arguments that are not tensors: torch.func would look into a tuple for some."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args


class Differentiable(torch.autograd.Function):
    """An autograd function that torch.func and forward mode can transform.

    Its ``forward`` takes tensors, and a ``Rest`` of all others.
    """

    generate_vmap_rule = True

    @classmethod
    def call(cls, *args: Any) -> Tensor:
        """Compute, given tensors and a tuple; record a derivative where torch asks for one."""
        *tensors, rest = args
        if is_dynamo_compiling() and is_transformed():
            raise NotImplementedError(
                "torch.compile with fullgraph=True cannot compile a sparse convolution inside of "
                "torch.func (vmap, grad, jvp, ...) or forward-mode differentiation; leave "
                "fullgraph=True out, or apply the transform to the module that is not compiled"
            )
        record: Any = cls.apply  # in no function apart, into which torch.compile would look
        run = record if is_transformed() or torch.is_grad_enabled() else cls.forward
        result: Tensor = run(*tensors, Rest(rest))
        return result


def save(ctx: Any, tensors: tuple[Tensor | None, ...], rest: Rest) -> None:
    """Keep arguments for ``backward`` and for forward mode."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.rest = rest.args
