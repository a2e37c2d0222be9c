"""Update a scheduler's layers on a GPU with one CUDA graph per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseconv.core.blocks import Block, Shape
from sparseconv.core.pattern import Region
from sparseconv.dst import tensors
from sparseconv.ops.graphs import CudaGraphs, Repeated

Arrays = tuple[Tensor, Tensor, Tensor]
Settings = tuple[Shape, Block, tuple[Region, ...]]
# A graph keeps some 90 bytes per weight, and larger layers do not wait for kernel launches.
LARGEST = 2**20


class ReplayedUpdates:
    """Run ``tensors.update`` in CUDA graphs; copies and pickles of this object omit the graphs."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[Any, Callable[..., Arrays]]] = {}
        self._graphs: dict[torch.device, CudaGraphs] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ReplayedUpdates, ()

    def of(self, name: str) -> Callable[..., Arrays]:
        return partial(self._update, name)

    def _update(
        self,
        name: str,
        crow: Tensor,
        col: Tensor,
        shape: Shape,
        block: Block,
        regions: Sequence[Region],
        fraction: float | Tensor,
        values: Tensor,
        dense_grad: Tensor | None,
        seed: int,
    ) -> Arrays:
        settings = shape, block, tuple(regions)
        if math.prod(shape) > LARGEST:
            return tensors.update(crow, col, *settings, fraction, values, dense_grad, seed)
        given = [crow, col, values.detach()] + ([] if dense_grad is None else [dense_grad])
        key = crow.device, settings, tuple((tensor.shape, tensor.dtype) for tensor in given)
        if name not in self._layers or self._layers[name][0] != key:
            graphs = self._graphs.setdefault(crow.device, CudaGraphs(crow.device))
            self._layers[name] = key, _of_held(graphs, settings, given)
        return self._layers[name][1](given, fraction, seed)


def _of_held(
    graphs: CudaGraphs, settings: Settings, like: Sequence[Tensor]
) -> Callable[..., Arrays]:
    """Return an update function that first copies its arguments to memory that a graph reads."""
    crow, col, values, *grad = held = [tensor.clone() for tensor in like]
    share = crow.new_empty((), dtype=torch.float64)
    number = crow.new_empty((), dtype=torch.int64)
    shape, block, regions = settings
    table, repeated = tensors.table_of(regions, shape, block, col.device), Repeated(graphs)
    by = grad[0] if grad else None

    def work() -> Arrays:
        return tensors.update(crow, col, *settings, share, values, by, number, table)

    def update(given: Sequence[Tensor], fraction: float | Tensor, seed: int) -> Arrays:
        for own, new in zip(held, given, strict=True):
            own.copy_(new)
        share.fill_(fraction)
        number.fill_(seed)
        new_crow, new_col, source = (tensor.clone() for tensor in repeated(settings, work))
        return new_crow, new_col, source

    return update
