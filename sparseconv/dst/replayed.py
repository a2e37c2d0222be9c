"""Update a scheduler's layers on a GPU by CUDA graphs, one for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseconv.core.blocks import Block, Shape
from sparseconv.core.region import Region
from sparseconv.dst import tensors
from sparseconv.ops.graphs import CudaGraphs, Repeated

Arrays = tuple[Tensor, Tensor, Tensor]
# A graph keeps some 90 bytes for each weight. Launches are not what larger layers wait for.
LARGEST = 2**20


class ReplayedUpdates:
    """Computes ``tensors.update`` from CUDA graphs; copies and pickles of it begin without any."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[torch.device, _Layer]] = {}
        self._graphs: dict[torch.device, CudaGraphs] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ReplayedUpdates, ()

    def of(self, name: str) -> Callable[..., Arrays]:
        """Return the ``tensors.update`` of one layer."""
        return partial(self._update, name)

    def _update(
        self, name: str, crow: Tensor, col: Tensor, shape: Shape, *arguments: Any
    ) -> Arrays:
        if math.prod(shape) > LARGEST:
            return tensors.update(crow, col, shape, *arguments)
        device, layer = self._layers.get(name, (None, None))
        if layer is None or device != crow.device:
            graphs = self._graphs.setdefault(crow.device, CudaGraphs(crow.device))
            layer = _Layer(graphs)
            self._layers[name] = crow.device, layer
        return layer.update(crow, col, shape, *arguments)


class _Layer:
    """What the graph of one layer reads."""

    def __init__(self, graphs: CudaGraphs) -> None:
        self._graphs = graphs
        self._key: Any = None

    def update(
        self,
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
        given = [crow, col, values.detach()] + ([] if dense_grad is None else [dense_grad])
        settings = shape, block, tuple(regions)
        key = settings, tuple((tensor.shape, tensor.dtype) for tensor in given)
        if key != self._key:
            self._key, self._repeated = None, Repeated(self._graphs)
            self._held = [tensor.clone() for tensor in given]
            self._share = crow.new_empty((), dtype=torch.float64)
            self._seed = crow.new_empty((), dtype=torch.int64)
            self._table = tensors.table_of(settings[2], shape, block, col.device)
            self._key = key
        for held, tensor in zip(self._held, given, strict=True):
            held.copy_(tensor)
        self._share.fill_(fraction)
        self._seed.fill_(seed)
        own_crow, own_col, own_values, *own_grad = self._held
        new: Arrays = self._repeated(
            key,
            lambda: tensors.update(
                own_crow, own_col, *settings, self._share, own_values,
                own_grad[0] if own_grad else None, self._seed, self._table,
            ),
        )  # fmt: skip
        crow, col, source = (tensor.clone() for tensor in new)
        return crow, col, source
