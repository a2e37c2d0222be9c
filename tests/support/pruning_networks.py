"""Small networks that have what pruning must follow, and data to judge their filters by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sparseconv as sc
from sparseconv import KernelCSR, SparseConv1d
from sparseconv.core.modules import deepcopy_model
from sparseconv.pruning import Criterion
from sparseconv.pruning.channels import Channels
from sparseconv.pruning.report import SmallerNetwork
from sparseconv.pruning.surgery import mask

# For two channels and three classes.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: sc.models.ResNet(2, 3, nf=6),
    "InceptionTime": lambda: sc.models.InceptionTime(2, 3, nf=4),
    "tsai": lambda: sc.models.InceptionTime(2, 3, nf=4, depth=4, variant="tsai"),
    "LITE": lambda: sc.models.LITE(2, 3, nf=5),
    "OSCNN": lambda: sc.models.OSCNN(2, 3, n_timepoints=40),
    "DSN": lambda: sc.models.DSN(2, 3, nf=5),
}


class Drawn(Criterion):
    """Scores by chance."""

    def __init__(self, seed: int, everywhere: bool) -> None:
        self.seed, self.everywhere = seed, everywhere

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed)
        return torch.rand(channels.n_units, generator=rng, dtype=torch.float64)


def silenced(
    model: nn.Module, report: SmallerNetwork, memo: dict[int, Any] | None = None
) -> nn.Module:
    """A copy of the whole model in which every filter that was removed gives zeros."""
    whole = copy.deepcopy(model, memo)
    for layer in report.layers:
        if layer.kind == "BatchNorm1d":
            continue

        def silence(
            module: nn.Module, _: object, y: Tensor, kept: tuple[int, ...] = layer.kept
        ) -> Tensor:
            out = torch.zeros_like(y)
            out[:, kept] = y[:, kept]
            return out

        whole.get_submodule(layer.name).register_forward_hook(silence)
    return whole


def masked(model: nn.Module, report: SmallerNetwork) -> nn.Module:
    """A copy of the whole model in which nothing reads the filters that were removed."""
    kept = torch.ones(report.channels.n_units, dtype=torch.bool)
    for layer in report.layers:
        units = report.channels.layers[layer.name].outputs
        gone = [number for number in range(len(units)) if number not in layer.kept]
        kept[units[gone]] = False
    whole = deepcopy_model(model)
    mask(whole, report.channels, kept)
    return whole


def exact(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, float64, of whole numbers: sums have one result, in whatever order.

    So have averages over 50 samples if the series are multiples of 50, as biases are.
    """
    rng = torch.Generator().manual_seed(seed)
    model.double().eval()
    for name, parameter in model.named_parameters():
        few = torch.rand(parameter.shape, generator=rng) < 0.5  # so that sums stay below 2**53
        signs = torch.randint(0, 2, parameter.shape, generator=rng) * 2 - 1
        parameter.data.copy_(few * signs * (50 if name.endswith("bias") else 1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            # Together 1: torch before 2.12 does not take an eps of 0.
            module.eps = 0.25
            nn.init.constant_(module.running_var, 0.75)
            nn.init.ones_(module.weight)
    return model


class Mixed(nn.Module):
    """A residual sum through a sparse layer, groups, a depthwise layer, and another branch.

    Its units, by hand: ``UNITS``.
    """

    def __init__(self, flat: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        pattern = KernelCSR.from_mask(torch.rand(4, 4, 3) < 0.6)
        self.a = nn.Conv1d(2, 4, 3, padding="same")
        self.norm = nn.BatchNorm1d(4)
        self.b = SparseConv1d(4, 4, 3, padding="same", pattern=pattern)
        self.g = nn.Conv1d(4, 4, 3, padding="same", groups=2, bias=False)
        self.d = nn.Conv1d(4, 4, 3, padding="same", groups=4)
        self.c = nn.Conv1d(2, 3, 1)
        self.flat = flat
        self.head = nn.Linear(7 * 12 if flat else 7, 3)
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        stem = self.norm(self.a(x)).relu()
        joined = torch.cat([self.d(self.g((stem + self.b(stem)).relu())), self.c(x)], dim=1)
        joined = joined.relu().flatten(1) if self.flat else joined.relu().mean(2)
        return self.head(joined).log_softmax(1)


# Of each unit the output channels that it has in a layer, and the input channels.
UNITS: list[tuple[dict[str, list[int]], dict[str, list[int]]]] = [
    *(
        ({"a": [i, i + 2], "norm": [i, i + 2], "b": [i, i + 2]}, {"b": [i, i + 2], "g": [i, i + 2]})
        for i in range(2)
    ),
    *(({"g": [i, i + 2], "d": [i, i + 2]}, {"head": [i, i + 2]}) for i in range(2)),
    *(({"c": [i]}, {"head": [4 + i]}) for i in range(3)),
]
SETS = ((0, 1), (2, 3), (4, 5, 6))


class ChannelsLast(nn.Module):
    """A linear layer that is applied at each sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(2, 8, 3, padding="same")
        self.each = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        samples = self.each(self.conv(x).relu().transpose(1, 2)).relu()
        return self.head(samples.mean(1)).log_softmax(1)


def classifier(channels: int = 8) -> nn.Sequential:
    """A convolution, BatchNorm and two linear layers, for two channels and three classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, channels, 3, padding="same"), nn.BatchNorm1d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, 6), nn.ReLU(), nn.Linear(6, 3),
        nn.LogSoftmax(1),
    ).double()  # fmt: skip


def data(n_cases: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Series ``(n_cases, 2, 12)``, each with its own scale, and three classes."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n_cases, 2, 12, generator=rng, dtype=torch.float64)
    return x * torch.rand(n_cases, 1, 1, generator=rng) * 3, torch.arange(n_cases) % 3
