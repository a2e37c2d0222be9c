"""Running or copying somebody's model without leaving a trace in it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseconv.nn.dense_gradient import DenseGradientHook


def deepcopy_model(model: nn.Module) -> nn.Module:
    """``copy.deepcopy``, also of what it refuses.

    Pruning and weight_norm keep a computed tensor as an attribute, which is no leaf of a graph.
    """
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


@contextmanager
def restored_afterwards(model: nn.Module) -> Iterator[None]:
    """Put back, however the block ends, what running a model changes.

    That is every module's attributes (mode, hooks, counters, what it remembers of an input), the
    contents of the buffers (BatchNorm's statistics) and the global generators of torch, Python
    and NumPy. A ``DSTScheduler`` that gathers gradients sees nothing of the block. Gradients are
    the caller's affair: ``torch.autograd.grad`` leaves ``.grad`` alone, ``backward`` does not.

    Example:
        >>> norm = nn.BatchNorm1d(3)
        >>> with restored_afterwards(norm):
        ...     _ = norm(torch.randn(5, 3))
        >>> norm.num_batches_tracked
        tensor(0)
    """
    modules = list(model.modules())
    attributes = [_remember(vars(module)) for module in modules]
    buffers = [
        (buffer, buffer.detach().clone())
        for buffer in model.buffers()
        if not buffer.is_inference()  # nobody can change those here
    ]
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for module in modules:
            for hook in module._forward_hooks.values():
                if isinstance(hook, DenseGradientHook):
                    stack.callback(setattr, hook, "watching", hook.watching)
                    hook.watching = False
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for module, before in zip(modules, attributes, strict=True):
                _restore(vars(module), before)
            with torch.no_grad():
                for buffer, content in buffers:
                    # Not by its version: batch_norm writes into its statistics without counting.
                    if not torch.equal(buffer, content):
                        buffer.copy_(content)


# A level deeper than the names: torch's own registries (buffers, hooks) change in place.


def _remember(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (value, value.copy() if isinstance(value, dict | list) else None)
        for name, value in attributes.items()
    }


def _restore(now: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    for name, (value, content) in before.items():
        now[name] = value
        if isinstance(value, dict):
            value.clear()
            value.update(content)
        elif isinstance(value, list):
            value[:] = content
