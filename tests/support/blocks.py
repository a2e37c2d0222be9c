"""A block of layers, and the operations that its graphs have in the kernels' order."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from sparseconv import SparseConv1d
from sparseconv.nn.block import Block

CONV, NORM, POINTWISE = "lanes_conv", "lanes_norm", "lanes_pointwise"
X = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(0))
Ops = list[tuple[str, ...]]


def make_block() -> Block:
    torch.manual_seed(0)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["bottleneck"] = nn.Conv1d(6, 4, 1, bias=False)
    layers["conv"] = SparseConv1d(4, 9, 5, padding="same")
    layers["norm"] = nn.BatchNorm1d(9)
    layers["relu"] = nn.ReLU()
    return Block(layers)


def plain(block: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(copy.deepcopy(block)._modules))  # type: ignore[arg-type]
