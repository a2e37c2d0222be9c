"""Layers to try, and what the tests of one look at."""

from __future__ import annotations

import torch
from torch import nn

from sparseconv import SparseConv1d

OPTIONS = [
    {},
    {"stride": 2, "padding": 3},
    {"padding": "same", "dilation": 2, "padding_mode": "reflect"},
    {"groups": 2, "bias": False, "padding": (1,), "padding_mode": "circular"},
    {"padding": "valid", "stride": (3,), "dtype": torch.float64},
]


def snapshot(layer: SparseConv1d) -> dict[str, object]:
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    return {
        "state": {name: tensor.tolist() for name, tensor in state.items()},
        "pattern": layer.pattern,
        "objects": [id(p) for p in layer.parameters()],
        "grad": None if layer.values.grad is None else layer.values.grad.tolist(),
    }


def run(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x.to(next(layer.parameters()).dtype)).detach()
