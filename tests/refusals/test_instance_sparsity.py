"""What ``InstanceSparsity`` refuses."""

from __future__ import annotations

from typing import Any

import torch
from refusals import refusals
from torch import nn

from sparseconv.pruning import InstanceSparsity


def model() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Flatten())


def run(*stages: Any) -> None:
    watched = model()
    with InstanceSparsity(watched, stages):
        watched(torch.ones(3, 2, 9))


def unused() -> None:
    with InstanceSparsity(model(), ["0"]) as penalty:
        penalty()


test_instance_sparsity = refusals(
    (lambda: InstanceSparsity(3), TypeError, "model must be an nn.Module"),
    (lambda: InstanceSparsity(model()), ValueError, "no stages are published for Sequential"),
    (lambda: InstanceSparsity(model(), ["0"], -1), ValueError, "weight (--silence) must be finite"),
    (lambda: run("no"), AttributeError, "Sequential has no attribute `no`"),
    (lambda: run("2"), ValueError, "stage '2' must be (N, C, L), but is (3, 56)"),
    (unused, RuntimeError, "but no stage ran; inside the with block"),
)  # fmt: skip
