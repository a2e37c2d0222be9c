"""LITE (Ismail-Fawaz et al., DSAA 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count
from sparseconv.models.classifier import Classifier, Parallel, average_and_classify
from sparseconv.nn.block import KNOWN

LEARNED = (40, 20, 10)  # taps
CHANGES = (2, 4, 8, 16, 32, 64)  # taps of the filters that detect increase and decrease
PEAKS = (4, 8, 16, 32, 64)  # two thirds of the taps of those that detect peaks


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
