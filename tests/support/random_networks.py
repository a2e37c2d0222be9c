"""Random networks whose arithmetic is exact: whole numbers, no biases, sums instead of means."""

from __future__ import annotations

import functools
from typing import Any

import torch
from layers import Function
from torch import Tensor, nn

from sparseconv import KernelCSR, SparseConv1d


def added(x: Tensor, *branches: nn.Module) -> Tensor:
    return functools.reduce(torch.add, (branch(x) for branch in branches))


def joined(x: Tensor, *branches: nn.Module) -> Tensor:
    return torch.cat([branch(x) for branch in branches], dim=1)


class RandomNetwork:
    """``RandomNetwork(seed).model`` maps ``example`` to scores; all in float64."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.kinds: list[str] = []  # what it holds
        channels = self.pick(1, 3)
        self.example = self.whole(2, channels, 12).double()
        layers: list[nn.Module] = []
        for _ in range(self.pick(2, 5)):
            stage, channels = self.stage(channels, depth=2)
            layers.append(stage)
        flat = self.pick(0, 1)
        self.kinds.append("flatten" if flat else "sum")
        features = channels * self.example.shape[2] if flat else channels
        layers += [
            nn.Flatten() if flat else Function(lambda x: x.sum(2)),
            nn.Linear(features, 3, bias=False),
        ]
        self.model = nn.Sequential(*layers).double().eval()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_var.fill_(0.75)  # 1 with its eps: torch before 2.12 refuses 0
                module.weight.data = self.whole(len(module.weight)).double()
            elif isinstance(module, SparseConv1d):
                module.values.data = self.whole(len(module.values)).double()
            elif isinstance(module, nn.Conv1d | nn.Linear):
                module.weight.data = self.whole(*module.weight.shape).double()

    def pick(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.rng))

    def whole(self, *shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=self.rng)

    def stage(self, inputs: int, depth: int) -> tuple[nn.Module, int]:
        kinds = ["conv", "sparse", "depthwise", "grouped", "norm", "pool", "twice"]
        kinds += ["added", "joined"] * (2 * depth)
        kind = kinds[self.pick(0, len(kinds) - 1)]
        if kind == "grouped" and inputs % 2:
            kind = "conv"
        self.kinds.append(kind)
        if kind == "norm":
            return nn.Sequential(nn.BatchNorm1d(inputs, eps=0.25), nn.ReLU()), inputs
        if kind == "pool":
            return nn.MaxPool1d(3, stride=1, padding=1), inputs
        if kind == "twice":  # one layer at two places
            layer = self.conv("conv", inputs, inputs)
            return nn.Sequential(layer, nn.ReLU(), layer), inputs
        if kind in ("added", "joined"):
            count, width = self.pick(2, 3), self.pick(2, 6)
            branches: list[nn.Module] = []
            widths = []
            for _ in range(count):
                inner, between = self.stage(inputs, depth - 1)
                own = width if kind == "added" else self.pick(1, 5)
                branches.append(nn.Sequential(inner, self.conv("conv", between, own)))
                widths.append(own)
            if kind == "added":
                if self.pick(0, 1):
                    branches[0] = self.conv("sparse", inputs, width)
                elif inputs == width:
                    branches[0] = nn.Identity()
                return nn.Sequential(Function(added, *branches), nn.ReLU()), width
            return nn.Sequential(Function(joined, *branches), nn.ReLU()), sum(widths)
        outputs = self.pick(2, 6)
        if kind == "depthwise":
            outputs = inputs * self.pick(1, 2)
        elif kind == "grouped":
            outputs = 2 * self.pick(1, 3)
        return nn.Sequential(self.conv(kind, inputs, outputs), nn.ReLU()), outputs

    def conv(self, kind: str, inputs: int, outputs: int) -> nn.Module:
        taps = self.pick(1, 4)
        groups = {"depthwise": inputs, "grouped": 2}.get(kind, 1)
        options: dict[str, Any] = {"padding": "same", "groups": groups, "bias": False}
        if kind == "sparse" or (groups > 1 and self.pick(0, 1)):
            shape = (outputs, inputs // groups, taps)
            mask = torch.rand(shape, generator=self.rng) < 0.5
            return SparseConv1d(inputs, outputs, taps, pattern=KernelCSR.from_mask(mask), **options)
        return nn.Conv1d(inputs, outputs, taps, **options)
