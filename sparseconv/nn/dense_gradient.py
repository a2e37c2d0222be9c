"""The dense weight gradient of a ``SparseConv1d``, computed only while it is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _current_graph_task_id, _will_engine_execute_node
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn.grad import conv1d_weight

from sparseconv.nn.conv import SparseConv1d
from sparseconv.reference import pad


class DenseGradientHook:
    """A forward hook that sums the dense weight gradient of a layer over its backward passes.

    Over those that ``values.grad`` is the sum of: not over a gradient of something else alone, nor
    over what ``zero_grad()`` has thrown away.
    """

    def __init__(self, watching: bool = False) -> None:
        self.watching = watching
        self.total: Tensor | None = None
        self._pass = -1  # of autograd's engine, the latest that was counted

    def close(self) -> None:
        """Ignore every further gradient, also of graphs that were made while watching."""
        self.watching, self.total = False, None

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or pickled layer has an idle hook; a scheduler copied with it replaces it.
        return DenseGradientHook, ()

    def __call__(
        self, layer: SparseConv1d, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        if not (self.watching and output.requires_grad) or _is_batched(output):
            return
        values = layer.values
        if not values.requires_grad:
            return
        input = (args[0] if args else kwargs["input"]).detach()

        def add(grad: Tensor) -> None:
            if not self.watching or _is_batched(grad):
                return
            accumulates = _accumulates_into(values)
            if accumulates is False:
                return
            number = _current_graph_task_id()
            # A layer that is called twice is met twice in one pass, before anything is accumulated.
            if accumulates and number != self._pass and self.total is not None:
                self.total = _unless_cleared(self.total, values.grad)
            self._pass = number
            dense = _dense_wgrad(layer, input, grad.detach())
            self.total = dense if self.total is None else self.total + dense

        # The output for one series is a view. What is done to that in place goes around its hooks.
        source = output if output._base is None else output._base
        source.register_hook(add)  # type: ignore[no-untyped-call]


GradientWatch = DenseGradientHook  # as pickles of version 0.1 name it


def _is_batched(tensor: Tensor) -> bool:
    """Whether ``torch.vmap`` runs: per-sample gradients are not the step's."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return False


def _accumulates_into(values: Tensor) -> bool | None:
    """Whether the backward pass that runs adds to ``values.grad``; None: it returns the gradient.

    As it does in ``torch.autograd.grad(loss, values)`` and ``torch.func.grad``.
    """
    if is_functorch_wrapped_tensor(values) or not values.is_leaf:
        return None
    try:
        return bool(_will_engine_execute_node(get_gradient_edge(values).node))
    except RuntimeError:  # of torch.autograd.grad, where values are among the inputs
        return None


def _unless_cleared(total: Tensor, grad: Tensor | None) -> Tensor | None:
    """The sum of earlier passes, if ``zero_grad()`` has not thrown them away since."""
    return None if grad is None else torch.where(grad.any(), total, 0.0)  # waits for no GPU


def gradient_dtype(layer: SparseConv1d) -> torch.dtype:
    """The dtype in which a layer's dense gradient is computed."""
    return torch.float64 if layer.values.dtype == torch.float64 else torch.float32


@torch.no_grad()
def _dense_wgrad(layer: SparseConv1d, input: Tensor, grad: Tensor) -> Tensor:
    # Under autocast the two dtypes differ; and sums in half precision lose too much.
    dtype = gradient_dtype(layer)
    input, grad = input.to(dtype), grad.to(dtype)
    input, grad = (x.unsqueeze(0) if x.dim() == 2 else x for x in (input, grad))
    padded = pad(input, layer.resolved_padding, layer.padding_mode)
    dense: Tensor = conv1d_weight(  # type: ignore[no-untyped-call]
        padded, layer.pattern.shape, grad, layer.stride, 0, layer.dilation, layer.groups
    )
    return dense
