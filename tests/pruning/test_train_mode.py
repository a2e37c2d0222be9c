"""What only train mode does: ``sc.prune_filters`` verifies it, and leaves the model as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import data
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning import Magnitude

X, _ = data()
GENERATOR = np.random.default_rng(0)


def around(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 8, 3), middle, nn.Conv1d(8, 3, 3)).double()


class Remembers(nn.Module):
    """Keeps a mean of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean += x.mean((0, 2))
        return x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(len(x), 8, 1) if self.training else x


class Louder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[1] if self.training else x


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (Remembers(), "the model does not run in train mode (RuntimeError"),
        (Noisy(), "the model does not run in train mode (RuntimeError"),
        (Louder(), "the model computes different outputs in train mode"),
    ],
)
def test_channels_that_train_mode_needs_stay(middle: nn.Module, why: str) -> None:
    with pytest.raises(ValueError, match="has no filters that can be removed") as refused:
        sc.prune_filters(around(middle), X, Magnitude(), fraction=0.5)
    assert f"\n0: without some of its filters, {why}" in str(refused.value)


class Drawn(nn.Module):
    """Random in train mode, by numbers that are not torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(GENERATOR.random()) if self.training else x


def test_random_numbers_that_are_not_from_torch() -> None:
    with pytest.raises(ValueError, match="each time the model runs on the same input"):
        sc.prune_filters(around(Drawn()), X, Magnitude(), fraction=0.5)
