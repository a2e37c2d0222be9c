"""ResNet for time series classification (Wang, Yan & Oates, IJCNN 2017)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.checks import count

KERNEL_SIZES = (7, 5, 3)


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Both compute tensors of one shape."""
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Three residual blocks of three convolutions, a global average and a linear layer.

    The variant of the package tsai, which the DSN paper counts (479.20 K parameters in the mean
    over UCR 85). Convolutions have 7, 5 and 3 taps, no bias, zeros around the series so that its
    length stays, and BatchNorm behind them; the shortcut is a 1x1 convolution where the number of
    channels changes, with BatchNorm in any case. (In the original the first have 8 taps.)

    Args:
        in_channels: channels of a series.
        n_classes: number of classes.
        nf: channels of the first block; the two others have twice as many.

    Shape:
        Input ``(N, in_channels, L)``, any L >= 1; output ``(N, n_classes)``, log-probabilities.

    Raises:
        ValueError: an argument below 1.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> model = ResNet(1, 8)
        >>> model(torch.zeros(2, 1, 50)).shape
        torch.Size([2, 8])
        >>> sum(parameter.numel() for parameter in model.parameters())
        479240

    Source: Wang et al., "Time Series Classification from Scratch with Deep Neural Networks: A
    Strong Baseline", IJCNN 2017.
    """

    def __init__(self, in_channels: int, n_classes: int, *, nf: int = 64) -> None:
        super().__init__()
        self.in_channels = inputs = count("in_channels", in_channels)
        self.n_classes = count("n_classes", n_classes)
        nf = count("nf", nf)
        blocks = []
        for channels in (nf, 2 * nf, 2 * nf):
            blocks.append(_block(inputs, channels))
            inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = average_and_classify(inputs, self.n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities ``(N, n_classes)`` of series ``(N, in_channels, L)``."""
        log_proba: Tensor = self.head(self.blocks(x))
        return log_proba


def shortcut(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 1x1 convolution and BatchNorm."""
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, 1, bias=False), nn.BatchNorm1d(out_channels)
    )


def average_and_classify(channels: int, n_classes: int) -> nn.Sequential:
    """From ``(N, channels, L)`` to log-probabilities ``(N, n_classes)``."""
    return nn.Sequential(
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, n_classes), nn.LogSoftmax(dim=1)
    )


def _block(in_channels: int, channels: int) -> Residual:
    layers: list[nn.Module] = []
    inputs = in_channels
    for taps in KERNEL_SIZES:
        layers += [
            nn.Conv1d(inputs, channels, taps, padding="same", bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
        ]
        inputs = channels
    across = (
        nn.BatchNorm1d(channels) if in_channels == channels else shortcut(in_channels, channels)
    )
    return Residual(nn.Sequential(*layers[:-1]), across)
