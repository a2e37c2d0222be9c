"""Running or copying somebody's model without leaving a trace in it."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparseconv.nn.conv import SparseConv1d

_CONTAINERS = (dict, list, set, deque)


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


def check_shapes_are_known(model: nn.Module) -> None:
    """Raise ValueError for a lazy module that was never run: running it could not be undone."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet; run the model once on a series")


@contextmanager
def restored_afterwards(model: nn.Module) -> Iterator[None]:
    """Put back, however the block ends, what running a model changes.

    Not gradients: ``torch.autograd.grad`` leaves ``.grad`` alone, ``backward`` does not. A
    ``DSTScheduler`` that gathers gradients sees nothing of the block.

    Raises:
        ValueError: a lazy module was never run.
    """
    check_shapes_are_known(model)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        # A level deeper than names: torch's registries (buffers, hooks) change in place.
        held = [x for module in model.modules() for x in (vars(module), *vars(module).values())]
        stack.callback(_refill, [(x, x.copy()) for x in held if isinstance(x, _CONTAINERS)])
        for generator in held:
            if isinstance(generator, torch.Generator):
                stack.callback(generator.set_state, generator.get_state())
        for module in model.modules():
            if isinstance(module, SparseConv1d):
                module.dense_probe = None
        # Tensors in plain attributes may be counters; one that was computed is computed again.
        loose = [
            x for x in held if isinstance(x, Tensor) and x.is_leaf and x.layout == torch.strided
        ]
        for tensor in (*model.buffers(), *loose):
            if not (tensor.is_inference() or tensor.is_meta):  # which cannot be changed here
                stack.callback(_rewrite, tensor, tensor.detach().clone())
        yield


def _refill(contents: list[tuple[Any, Any]]) -> None:
    for held, content in contents:
        held.clear()
        if isinstance(held, dict | set):
            held.update(content)
        else:
            held.extend(content)


@torch.no_grad()
def _rewrite(tensor: Tensor, content: Tensor) -> None:
    # Not by its version: batch_norm writes into its statistics without counting.
    if not torch.equal(tensor, content):
        tensor.copy_(content)
