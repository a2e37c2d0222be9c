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
META = SparseConv1d(3, 4, 5, device="meta")

test_refusals = refusals(
    (lambda: profile(SparseConv1d, X), TypeError, "model must be an nn.Module, but got type"),
    (lambda: profile(nn.Conv1d(3, 4, 5), X), ValueError, "a SparseConv1d, but Conv1d has none"),
    (lambda: profile(LAYER, [X]), TypeError, "tuple of the model's arguments, but got list"),
    (lambda: profile(LAYER, X.shape), TypeError, "pass a tensor: torch.randn(2, 3, 20)"),
    (lambda: profile(LAYER, (X, X)), TypeError, "but 3 were given); if that is a batch (x, y)"),
    (lambda: profile(Never(), X), ValueError, "none of the model's sparse layers (conv)"),
    (lambda: profile(META, X), NotImplementedError, "on meta; move the model and its input"),
    (lambda: profile(nn.Sequential(Twice(3, 4, 5)), X), NotImplementedError,
     "this Twice runs code that an nn.Conv1d cannot"),
    (lambda: profile(SMALL, X[0]), RuntimeError, "accept an input of shape (3, 20): in 2 (Lin"),
    (lambda: profile(nn.Sequential(SMALL, nn.BatchNorm1d(2)), X[:1]), ValueError,
     "in 1 (BatchNorm1d): Expected more than 1 value per channel when training, got input size "
     "torch.Size([1, 2]); one value has no variance: pass at least 2 series (in training, choose"),
    (lambda: profile(LAYER, X[..., :4]), ValueError, "of shape (2, 3, 4): in the model itself (Sp"),
    (lambda: profile(LAYER, X, rounds=5), ValueError, "rounds must be at least 6"),
)  # fmt: skip
