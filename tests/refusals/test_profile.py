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
SMALL = nn.Sequential(SparseConv1d(3, 4, 5), nn.Flatten(), nn.Linear(64, 2))
ONE_VALUE = nn.Sequential(SMALL, nn.BatchNorm1d(2))
META = SparseConv1d(3, 4, 5, device="meta")

test_refusals = refusals(
    (lambda: profile(SparseConv1d, X), TypeError, "nn.Module"),
    (lambda: profile(nn.Conv1d(3, 4, 5), X), ValueError, "a SparseConv1d"),
    (lambda: profile(LAYER, [X]), TypeError, "example_input"),
    (lambda: profile(LAYER, X.shape), TypeError, "torch.randn(2, 3, 20)"),
    (lambda: profile(LAYER, (X, X)), TypeError, "if that is a batch (x, y)"),
    (lambda: profile(Never(), X), ValueError, "none of the model's sparse layers (conv)"),
    (lambda: profile(META, X), NotImplementedError, "on meta"),
    (lambda: profile(nn.Sequential(Twice(3, 4, 5)), X), NotImplementedError, "this Twice"),
    (lambda: profile(SMALL, X[0]), RuntimeError, "shape (3, 20): in 2 (Linear)"),
    (lambda: profile(ONE_VALUE, X[:1]), ValueError, "in 1 (BatchNorm1d)"),
    (lambda: profile(LAYER, X[..., :4]), ValueError, "shape (2, 3, 4): in the model itself"),
    (lambda: profile(LAYER, X, rounds=5), ValueError, "rounds"),
)
