"""The dense weight gradient of a ``SparseConv1d``, computed only while it is needed."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch._C import _current_graph_task_id, _will_engine_execute_node
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import Variable
from torch.autograd.graph import get_gradient_edge
from torch.nn.grad import conv1d_weight
from torch.utils.hooks import RemovableHandle, unserializable_hook

from sparseconv.functional.conv import as_autocast
from sparseconv.nn.conv import SparseConv1d
from sparseconv.reference import pad


class DenseGradientHook:
    """Hooks that sum the dense weight gradient of a layer over its backward passes.

    Over those that ``values.grad`` is the sum of: not over a gradient of something else alone, nor
    over what ``zero_grad()`` has thrown away.
    """

    def __init__(self) -> None:
        self.watching = False
        self.total: Tensor | None = None
        self._running: WeakValueDictionary[int, _BackwardPass] = WeakValueDictionary()
        # values.grad after the latest backward pass, its version, and whether it held more than 0.
        self._accumulated: tuple[Tensor, int, Tensor] | None = None

    def watch(self, layer: SparseConv1d) -> list[RemovableHandle]:
        """Count the gradients of a layer from now on; removing the handles ends it."""
        self.watching = True
        # Before other hooks, which may return another output than the convolution's.
        handles = [layer.register_forward_hook(self, prepend=True, with_kwargs=True)]
        values = layer.values
        if values.requires_grad and values.is_leaf:
            # Other losses may add to values.grad, too: a penalty of the weights for one.
            before = unserializable_hook(partial(self._before, values))  # type: ignore[no-untyped-call]
            handles.append(values.register_hook(before))  # type: ignore[no-untyped-call]
            after = values.register_post_accumulate_grad_hook(self._after)  # type: ignore[no-untyped-call]
            handles.append(after)
        return handles

    def close(self) -> None:
        """Ignore every further gradient, also of graphs that were made while watching."""
        self.watching, self.total, self._accumulated = False, None, None

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
        input: Tensor = (args[0] if args else kwargs["input"]).detach()
        if torch.is_autocast_enabled(input.device.type):
            # What the layer computed with, and kept: a copy, so autograd lets its source change.
            (input,) = as_autocast(input)
        version = None if input.is_inference() else input._version

        def add(grad: Tensor) -> None:
            if not self.watching or _is_batched(grad):
                return
            accumulates = _accumulates_into(values)
            if accumulates is False:
                return
            if version is not None and input._version != version:
                raise RuntimeError(
                    f"the input of a SparseConv1d, {tuple(input.shape)}, was modified by an "
                    "inplace operation after the layer had run, so there is no dense gradient for "
                    'grow="gradient": change a copy of it, or leave out inplace=True'
                )
            if accumulates:
                self._begin(values)
            dense = _dense_wgrad(layer, input, grad.detach())
            self.total = dense if self.total is None else self.total + dense

        # The output for one series is a view. What is done to that in place goes around its hooks.
        source = output if output._base is None else output._base
        source.register_hook(add)  # type: ignore[no-untyped-call]

    def _before(self, values: Tensor, grad: Tensor) -> None:
        if self.watching and _accumulates_into(values):
            self._begin(values)

    def _begin(self, values: Tensor) -> None:
        """At the first sign of a backward pass, forget what was thrown away before it."""
        number = _current_graph_task_id()
        if number in self._running:
            return
        # One inside of another is a reentrant checkpoint's; the outer one has yet to accumulate.
        nested = len(self._running) > 0
        self._running[number] = running = _BackwardPass()
        Variable._execution_engine.queue_callback(running)
        if nested or self.total is None:
            return
        if values.grad is None:
            self.total = None
        else:  # this waits for no GPU
            self.total = torch.where(self._is_kept(values.grad), self.total, 0.0)

    def _is_kept(self, grad: Tensor) -> Tensor:
        """Whether ``values.grad`` was not zeroed since the latest backward pass."""
        kept = grad.any()
        if self._accumulated is not None:
            accumulated, version, held = self._accumulated
            if grad is accumulated and grad._version == version:  # or it was zeroed through .data
                kept |= ~held
        return kept

    def _after(self, values: Tensor) -> None:
        grad = values.grad
        if self.watching and grad is not None:
            self._accumulated = grad, grad._version, grad.any()


class _BackwardPass:
    """A callback that does nothing: the engine holds it for as long as the pass runs or fails."""

    def __call__(self) -> None:
        pass


def remove_idle_hooks(module: nn.Module) -> None:
    """Remove the hooks that a copied or pickled layer came with."""
    for key, hook in list(module._forward_hooks.items()):
        if isinstance(hook, DenseGradientHook):
            del module._forward_hooks[key]
            module._forward_hooks_with_kwargs.pop(key, None)


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
