"""Training runs that take milliseconds, and how to compare and to interrupt them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseconv.models import DSN
from sparseconv.training.loop import TrainingResult, train
from sparseconv.training.recipe import Recipe

RECIPE = Recipe(epochs=7, lr=3e-3, batch_size=6, update_every_epochs=2, seed=3)


def data(n_cases: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n_cases) % 2
    ramp = torch.linspace(-1, 1, 24) * (2 * y - 1)[:, None]
    return (torch.randn(n_cases, 24, generator=generator) + ramp)[:, None], y


def network(seed: int = 0, **arguments: Any) -> DSN:
    torch.manual_seed(seed)
    return DSN(1, 2, **{"nf": 3, "kernel_size": 9, "depth": 2, **arguments})


class WithDropout(nn.Module):
    """No sparse layer, no BatchNorm, and torch's global generator in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Flatten(), nn.Linear(24, 8), nn.Dropout(), nn.Linear(8, 2), nn.LogSoftmax(1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Constant(nn.Module):
    """The same loss in every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.unused * 0 + torch.zeros(len(x), 2)).log_softmax(1)


def same(one: Any, other: Any) -> bool:
    """Equal bit by bit; the times that an epoch took are no promise."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        keys = [key for key in one if key not in ("seconds", "cpu_seconds")]
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in keys)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def run(model: nn.Module, recipe: Recipe = RECIPE, **arguments: Any) -> TrainingResult:
    return train(model, *data(), recipe, **{"verbose": False, **arguments})


def interrupted(
    model: nn.Module, forward_passes: int, text: str | None = None, **arguments: Any
) -> str:
    """Train ``model`` until Ctrl-C after that number of forward passes; returns its message."""
    passes = itertools.count()

    def hook(*_: Any) -> None:
        if next(passes) == forward_passes:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(hook)
    with pytest.raises(KeyboardInterrupt, match=text) as stop:
        run(model, **arguments)
    handle.remove()
    return str(stop.value)
