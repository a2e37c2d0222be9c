"""What ``sc.profile`` refuses."""

from __future__ import annotations

import torch
from refusals import refusals
from torch import Tensor, nn

from sparseconv import SparseConv1d, profile


class Twice(SparseConv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Never(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SparseConv1d(3, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x


X = torch.randn(2, 3, 20)
LAYER = SparseConv1d(3, 4, 5)
META = SparseConv1d(3, 4, 5, device="meta")

test_refusals = refusals(
    (lambda: profile(SparseConv1d, X), TypeError, "nn.Module"),
    (lambda: profile(nn.Conv1d(3, 4, 5), X), ValueError, "a SparseConv1d"),
    (lambda: profile(LAYER, [X]), TypeError, "example_input"),
    (lambda: profile(Never(), X), ValueError, "none of the model's sparse layers (conv)"),
    (lambda: profile(META, X), NotImplementedError, "on meta"),
    (lambda: profile(nn.Sequential(Twice(3, 4, 5)), X), NotImplementedError, "this Twice"),
    (lambda: profile(LAYER, X, rounds=5), ValueError, "rounds"),
)
