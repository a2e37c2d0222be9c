"""Dense networks for time series, and the mean of several networks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count
from sparseconv.models.classifier import (
    Classifier,
    Parallel,
    Residual,
    average_and_classify,
    shortcut,
)
from sparseconv.nn.block import KNOWN

RESNET_TAPS = (7, 5, 3)
INCEPTION_TAPS = {"keras": (40, 20, 10), "tsai": (39, 19, 9)}
RESIDUAL_EVERY = 3  # modules of InceptionTime
# Taps of LITE's filters: learned ones, and those that detect increase and decrease.
LEARNED, CHANGES = (40, 20, 10), (2, 4, 8, 16, 32, 64)
PEAKS = (4, 8, 16, 32, 64)  # two thirds of the taps of those that detect peaks
BUDGETS = (1024, 229_376)  # weights of OS-CNN's first and second layer, at most
LONGEST = 89  # taps of OS-CNN


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
            before = inputs
            layers: list[nn.Module] = []
            for taps in RESNET_TAPS:
                conv = nn.Conv1d(inputs, channels, taps, padding="same", bias=False)
                layers += [conv, nn.BatchNorm1d(channels), nn.ReLU()]
                inputs = channels
            body = nn.Sequential(*layers[:-1])
            blocks.append(Residual(body, shortcut(before, channels)))
        self.blocks = nn.Sequential(*blocks)
        self.head = average_and_classify(inputs, self.n_classes)


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
        if variant not in INCEPTION_TAPS:
            raise ValueError(f"variant must be one of {tuple(INCEPTION_TAPS)}, but got {variant!r}")
        inputs, blocks = in_channels, []
        for first in range(0, depth, RESIDUAL_EVERY):
            before, modules = inputs, []
            for _ in range(first, min(first + RESIDUAL_EVERY, depth)):
                modules.append(_inception(inputs, nf, INCEPTION_TAPS[variant]))
                inputs = (len(INCEPTION_TAPS[variant]) + 1) * nf
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


class LITE(Classifier):
    """Convolutions of three lengths and hand-made filters, then two separable convolutions.

    For one channel, it has 9 814 + 33 * n_classes trainable parameters. LITETime averages five such
    networks: ``Ensemble(LITE(in_channels, n_classes) for _ in range(5))``.

    Args:
        in_channels, n_classes: as for ``DSN``, with the same shapes and errors.
        nf: number of filters of each length, and of channels in the separable convolutions.

    Example:
        >>> model = LITE(1, 2)
        >>> model(torch.zeros(2, 1, 50)).shape
        torch.Size([2, 2])
        >>> sum(parameter.numel() for parameter in model.parameters())
        9880

    Source: Ismail-Fawaz et al., "LITE: Light Inception with boosTing tEchniques for Time Series
    Classification", DSAA 2023.
    """

    def __init__(self, in_channels: int, n_classes: int, *, nf: int = 32) -> None:
        super().__init__(in_channels, n_classes)
        nf = count("nf", nf)
        convs = [nn.Conv1d(in_channels, nf, taps, padding="same", bias=False) for taps in LEARNED]
        channels = len(LEARNED) * nf + 2 * len(CHANGES) + len(PEAKS)
        self.blocks = nn.Sequential(
            Parallel([*convs, HandMade(in_channels)]),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            *_separable(channels, nf, taps=20, dilation=2),
            *_separable(nf, nf, taps=10, dilation=4),
        )
        self.head = average_and_classify(nf, self.n_classes)


def _separable(in_channels: int, out_channels: int, taps: int, dilation: int) -> list[nn.Module]:
    """Convolve each channel separately, then mix the channels at each time step."""
    return [
        nn.Conv1d(
            in_channels, in_channels, taps, padding="same", dilation=dilation, groups=in_channels,
            bias=False,
        ),
        nn.Conv1d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm1d(out_channels),
        nn.ReLU(),
    ]  # fmt: skip


class HandMade(nn.Module):
    """Frozen filters that detect increases, decreases and peaks in all channels alike, and a ReLU.

    Shape: ``(N, in_channels, L) -> (N, 17, L)``.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        for index, filter in enumerate(hand_made_filters()):
            repeated = filter.repeat(1, in_channels, 1)
            self.register_buffer(f"filter_{index}", repeated, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [nn.functional.conv1d(x, filter, padding="same") for filter in self.buffers()]
        return torch.cat(parts, dim=1).relu()


KNOWN.add(HandMade)


def hand_made_filters() -> list[Tensor]:
    """Return the 17 filters, each ``(1, 1, taps)``: for increases, decreases and peaks.

    Example:
        >>> [filter.shape[2] for filter in hand_made_filters()]
        [2, 4, 8, 16, 32, 64, 2, 4, 8, 16, 32, 64, 6, 12, 24, 48, 96]
        >>> hand_made_filters()[1]
        tensor([[[-1.,  1., -1.,  1.]]])
    """
    filters = []
    for sign in (-1.0, 1.0):
        filters += [torch.tensor([sign, -sign]).repeat(taps // 2) for taps in CHANGES]
    for taps in PEAKS:
        rising = torch.linspace(0, 1, taps // 4 + 1)[1:].square()
        hill = torch.cat([rising, rising.flip(0)])
        filters.append(torch.cat([-hill, 2 * hill, -hill]))
    return [filter.view(1, 1, -1) for filter in filters]


class OSCNN(Classifier):
    """Three layers of convolutions (1, 2, 3, 5, 7, ... taps), a global average and a linear layer.

    Sums of 1, 2 and the primes up to a quarter of the series yield every receptive field up to that
    length. A budget of weights per layer determines the number of filters of each length. The last
    layer has kernels of 1 and 2 taps. The authors average the accuracies of ten runs.

    Args:
        in_channels, n_classes: as for ``DSN``, with the same shapes and errors.
        n_timepoints: length of the training series, which limits the length of the kernels.

    Example:
        >>> model = OSCNN(1, 2, n_timepoints=150)
        >>> model(torch.zeros(2, 1, 150)).shape
        torch.Size([2, 2])
        >>> [conv.kernel_size[0] for conv in model.blocks[0][0]]
        [1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]

    Source: Tang et al., "Omni-Scale CNNs: a simple and effective kernel size configuration for time
    series classification", ICLR 2022, and the authors' implementation.
    """

    def __init__(self, in_channels: int, n_classes: int, *, n_timepoints: int) -> None:
        super().__init__(in_channels, n_classes)
        inputs = in_channels
        length = count("n_timepoints", n_timepoints)
        primes = one_and_primes(min(length // 4, LONGEST))
        blocks = []
        for budget in BUDGETS:
            channels = max(1, budget // (inputs * sum(primes)))
            blocks.append(_omni_scale(inputs, channels, primes))
            inputs = channels * len(primes)
        # The number that the first layer has for a series of one channel.
        last = len(primes) * max(1, BUDGETS[0] // sum(primes))
        self.blocks = nn.Sequential(*blocks, _omni_scale(inputs, last, (1, 2)))
        self.head = average_and_classify(2 * last, self.n_classes)


def _omni_scale(in_channels: int, channels: int, kernel_sizes: tuple[int, ...]) -> nn.Sequential:
    """Return parallel convolutions with different numbers of taps, BatchNorm and ReLU."""
    convs = [nn.Conv1d(in_channels, channels, taps, padding="same") for taps in kernel_sizes]
    return nn.Sequential(Parallel(convs), nn.BatchNorm1d(channels * len(convs)), nn.ReLU())


def one_and_primes(longest: int) -> tuple[int, ...]:
    """Return 1 and the primes up to ``longest``.

    Example:
        >>> one_and_primes(12)
        (1, 2, 3, 5, 7, 11)
    """
    primes = [n for n in range(2, longest + 1) if all(n % d for d in range(2, int(n**0.5) + 1))]
    return (1, *primes)


class Ensemble(nn.Module):
    """Averages the probabilities of several classifiers, each trained alone.

    LITETime averages five ``LITE`` networks, and the published InceptionTime averages five
    ``InceptionTime`` networks. Train the ``members`` one by one: a loss on the mean would train
    them jointly.

    Args:
        members: one or more different networks. All must return log-probabilities
            ``(N, n_classes)`` of the same classes for the same input.

    Shape:
        The members' input; output ``(N, n_classes)``, log-probabilities.

    Example:
        >>> from sparseconv.training import Recipe, train
        >>> X, y = torch.randn(8, 1, 30), torch.arange(8) % 2
        >>> model = Ensemble(LITE(1, 2, nf=4) for _ in range(2))
        >>> for seed, member in enumerate(model.members):
        ...     result = train(member, X, y, Recipe(epochs=1, seed=seed), verbose=False)
        >>> model(X).shape
        torch.Size([8, 2])

    Source: Ismail Fawaz et al., "InceptionTime: Finding AlexNet for Time Series Classification",
    Data Mining and Knowledge Discovery 34, 2020.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log of the members' mean probabilities, ``(N, n_classes)``."""
        log_proba = [member(x) for member in self.members]
        return torch.stack(log_proba).logsumexp(0) - math.log(len(log_proba))
