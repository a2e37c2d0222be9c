"""A model of layers that may share a factor, and what factors mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.pruning.factorize import Sum


class Branches(nn.Module):
    """Layers of one shape side by side; their outputs are concatenated."""

    def __init__(self, n: int, o: int, i: int, k: int, **options: Any) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, **options) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], dim=-2)


def branches(shape: tuple[int, int, int, int], seed: int = 0, **options: Any) -> Branches:
    torch.manual_seed(seed)
    return Branches(*shape, **options)


def composed(layer: nn.Module) -> Tensor:
    """The weight (O, I, K) that factors mean, in float64."""
    pairs = layer.terms if isinstance(layer, Sum) else [layer]
    return sum(
        torch.einsum("or,rik->oik", p.pointwise.weight[:, :, 0].double(), p.taps.weight.double())
        for p in pairs
    ).detach()
