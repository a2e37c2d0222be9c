"""InceptionTime (Ismail Fawaz et al., DMKD 2020)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from sparseconv.core.checks import count
from sparseconv.models.classifier import (
    Classifier,
    Parallel,
    Residual,
    average_and_classify,
    shortcut,
)

KERNEL_SIZES = {"keras": (40, 20, 10), "tsai": (39, 19, 9)}
RESIDUAL_EVERY = 3  # modules


class InceptionTime(Classifier):
    """Six Inception modules, a shortcut around every three, a global average and a linear layer.

    The published classifier is an ``Ensemble`` of five.

    Args:
        in_channels, n_classes: as for ``DSN``, with the same shapes and errors.
        nf: number of filters of each length.
        depth: number of modules.
        variant: ``"keras"``, the original, has 40, 20 and 10 taps and a 1x1 convolution in each
            shortcut, and 420 192 parameters for one channel, excluding the last layer. ``"tsai"``,
            which the DSN paper counts (389.34 K parameters on average over UCR 85), has 39, 19 and
            9 taps. Its shortcuts between equal numbers of channels consist only of BatchNorm.

    Example:
        >>> import torch
        >>> model = InceptionTime(1, 2)
        >>> model(torch.zeros(2, 1, 50)).shape
        torch.Size([2, 2])
        >>> sum(parameter.numel() for parameter in model.parameters())  # 420 192 + 129 * 2
        420450

    Source: Ismail Fawaz et al., "InceptionTime: Finding AlexNet for Time Series Classification",
    Data Mining and Knowledge Discovery 34, 2020.
    """

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        *,
        nf: int = 32,
        depth: int = 6,
        variant: Literal["keras", "tsai"] = "keras",
    ) -> None:
        super().__init__(in_channels, n_classes)
        nf, depth = count("nf", nf), count("depth", depth)
        if variant not in KERNEL_SIZES:
            raise ValueError(f"variant must be one of {tuple(KERNEL_SIZES)}, but got {variant!r}")
        inputs, blocks = in_channels, []
        for first in range(0, depth, RESIDUAL_EVERY):
            before, modules = inputs, []
            for _ in range(first, min(first + RESIDUAL_EVERY, depth)):
                modules.append(_inception(inputs, nf, KERNEL_SIZES[variant]))
                inputs = (len(KERNEL_SIZES[variant]) + 1) * nf
            body: nn.Module = nn.Sequential(*modules)
            if len(modules) == RESIDUAL_EVERY:
                across = shortcut(before, inputs, always_convolve=variant == "keras")
                body = Residual(body, across)
            blocks.append(body)
        self.blocks = nn.Sequential(*blocks)
        self.head = average_and_classify(inputs, self.n_classes)


def _inception(in_channels: int, nf: int, kernel_sizes: tuple[int, ...]) -> nn.Sequential:
    """Return parallel convolutions of several lengths, BatchNorm and ReLU.

    Several channels are first reduced to ``nf`` by a 1x1 convolution; ``nf`` filters of each length
    follow. In parallel, a 1x1 convolution follows max pooling over three time steps.
    """
    several = in_channels > 1
    bottleneck = nn.Conv1d(in_channels, nf, 1, bias=False) if several else nn.Identity()
    inputs = nf if several else in_channels
    convs = [nn.Conv1d(inputs, nf, taps, padding="same", bias=False) for taps in kernel_sizes]
    pooled = nn.MaxPool1d(3, stride=1, padding=1), nn.Conv1d(in_channels, nf, 1, bias=False)
    parts = nn.Sequential(bottleneck, Parallel(convs)), nn.Sequential(*pooled)
    return nn.Sequential(Parallel(parts), nn.BatchNorm1d((len(kernel_sizes) + 1) * nf), nn.ReLU())
