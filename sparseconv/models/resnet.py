"""ResNet (Wang, Yan & Oates, IJCNN 2017)."""

from __future__ import annotations

from torch import nn

from sparseconv.core.checks import count
from sparseconv.models.classifier import Classifier, Residual, average_and_classify, shortcut

KERNEL_SIZES = (7, 5, 3)


class ResNet(Classifier):
    """Three residual blocks of three convolutions, a global average and a linear layer.

    This is tsai's variant, which the DSN paper counts (479.20 K parameters on average over UCR 85).
    Convolutions have 7, 5 and 3 taps (originally 8, 5 and 3), no bias, and zero padding that keeps
    the length; BatchNorm follows. The shortcut is a BatchNorm layer, preceded by a 1x1
    convolution if the number of channels changes.

    Args:
        in_channels, n_classes: as for ``DSN``, with the same shapes and errors.
        nf: channels of the first block; the other two have ``2 * nf``.

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
        super().__init__(in_channels, n_classes)
        inputs = in_channels
        nf, blocks = count("nf", nf), []
        for channels in (nf, 2 * nf, 2 * nf):
            blocks.append(_block(inputs, channels))
            inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = average_and_classify(inputs, self.n_classes)


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
    return Residual(nn.Sequential(*layers[:-1]), shortcut(in_channels, channels))
