"""Common parts of the networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.arrays import check_axes
from sparseconv.core.checks import count
from sparseconv.nn.block import KNOWN, run_together


class Classifier(nn.Module):
    """Maps series to log-probabilities with the subclass's ``blocks`` and ``head``."""

    blocks: nn.Sequential
    head: nn.Module

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.in_channels = count("in_channels", in_channels)
        self.n_classes = count("n_classes", n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities ``(N, n_classes)`` of series ``(N, in_channels, L)``."""
        self.check_series(x)
        return run_together((self.blocks, self.head), x)

    def check_series(self, x: Tensor) -> None:
        """Reject a tensor with the wrong shape, unless it is a ``torch.fx`` proxy."""
        if isinstance(x, Tensor):
            shape = f"(n_cases, {self.in_channels}, n_timepoints)"
            expected = f"this {type(self).__name__} expects series of shape {shape}"
            check_axes(expected, tuple(x.shape), self.in_channels)


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add the outputs of body and shortcut, which have equal shapes."""
        return F.relu(self.body(x) + self.shortcut(x))


def shortcut(in_channels: int, out_channels: int, *, always_convolve: bool = False) -> nn.Module:
    """Return BatchNorm, after a 1x1 convolution if ``always_convolve`` or if channels change."""
    norm = nn.BatchNorm1d(out_channels)
    if in_channels == out_channels and not always_convolve:
        return norm
    return nn.Sequential(nn.Conv1d(in_channels, out_channels, 1, bias=False), norm)


class Parallel(nn.ModuleList):
    """Applies several modules to the same series and joins their channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, L)`` to ``(N, out_channels, L)``."""
        return torch.cat([module(x) for module in self], dim=1)


KNOWN.update((Residual, Parallel))


def average_and_classify(channels: int, n_classes: int) -> nn.Sequential:
    """Return a head that maps ``(N, channels, L)`` to log-probabilities ``(N, n_classes)``."""
    return nn.Sequential(
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, n_classes), nn.LogSoftmax(dim=1)
    )
