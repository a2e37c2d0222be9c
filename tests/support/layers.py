"""Options of layers to try, and functions as layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OPTIONS = [
    {},
    {"stride": 2, "padding": 3},
    {"padding": "same", "dilation": 2, "padding_mode": "reflect"},
    {"groups": 2, "bias": False, "padding": (1,), "padding_mode": "circular"},
    {"padding": "valid", "stride": (3,), "dtype": torch.float64},
]


def run(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.to(next(layer.parameters()).dtype)).detach()


class Function(nn.Module):
    """Calls a function of tensors and of the layers that it holds."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors, *self.layers)
