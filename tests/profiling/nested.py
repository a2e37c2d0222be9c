"""A model to profile that does everything that is difficult."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseconv import SparseConv1d


class Nested(nn.Module):
    """A layer used twice on one shape, another on two, one never; statistics, noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SparseConv1d(3, 4, 5, padding="same", bias=False, density=0.5)
        self.inner = nn.ModuleDict(
            {"twice": SparseConv1d(4, 4, 3, padding=1), "shrink": SparseConv1d(4, 4, 3, groups=2)}
        )
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.never = SparseConv1d(2, 2, 2)
        self.failing = False

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.drop(self.norm(self.first(x)))
        y = self.inner["twice"](self.inner["twice"](y))
        noise = random.random() + float(np.random.rand())
        y = self.inner["shrink"](input=y + noise)
        y = self.inner["shrink"](y)
        if self.failing:
            raise RuntimeError("the head is broken")
        return {"out": [y], "length": y.shape[2]}


def nested() -> Nested:
    torch.manual_seed(0)
    return Nested()


X = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
