"""OS-CNN for time series classification (Tang et al., ICLR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count
from sparseconv.models.classifier import Classifier, average_and_classify

BUDGETS = (1024, 229_376)  # weights of the first and of the second layer, at most
LONGEST = 89  # taps


class PrimeConvs(nn.Module):
    """Convolutions with different numbers of taps side by side, BatchNorm and ReLU.

    Zeros around the series keep its length: ``(taps - 1) // 2`` before it, the others after it.
    """

    def __init__(self, in_channels: int, channels: int, kernel_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.ZeroPad1d(((taps - 1) // 2, taps // 2)),
                nn.Conv1d(in_channels, channels, taps),
            )
            for taps in kernel_sizes
        )
        self.out_channels = channels * len(kernel_sizes)
        self.norm = nn.BatchNorm1d(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, L) -> (N, out_channels, L)``."""
        y: Tensor = self.norm(torch.cat([conv(x) for conv in self.convs], dim=1)).relu()
        return y


class OSCNN(Classifier):
    """Three layers of convolutions with 1, 2, 3, 5, 7, 11, ... taps, a global average, and a linear
    layer.

    The sums of 1, 2 and all primes up to a quarter of the series reach every receptive field up to
    it. Each length has as many filters as the layer's budget of weights allows. The last layer has
    1 and 2 taps. One network, as its authors publish it; they average ten runs' accuracies.

    Args:
        in_channels: channels of a series.
        n_classes: number of classes.
        n_timepoints: samples of the training series, which decide about the longest kernels.

    Shape:
        Input ``(N, in_channels, L)``, any L >= 1; output ``(N, n_classes)``, log-probabilities.

    Raises:
        ValueError: an argument below 1.
        TypeError: an argument of another type.

    Example:
        >>> model = OSCNN(1, 2, n_timepoints=150)
        >>> model(torch.zeros(2, 1, 150)).shape
        torch.Size([2, 2])
        >>> [conv[1].kernel_size[0] for conv in model.blocks[0].convs]
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
            blocks.append(PrimeConvs(inputs, channels, primes))
            inputs = blocks[-1].out_channels
        # As many as the first layer has for a series of one channel.
        last = len(primes) * max(1, BUDGETS[0] // sum(primes))
        blocks.append(PrimeConvs(inputs, last, (1, 2)))
        self.blocks = nn.Sequential(*blocks)
        self.head = average_and_classify(blocks[-1].out_channels, self.n_classes)


def one_and_primes(longest: int) -> tuple[int, ...]:
    """Return 1 and the primes up to ``longest``.

    Example:
        >>> one_and_primes(12)
        (1, 2, 3, 5, 7, 11)
    """
    primes = [n for n in range(2, longest + 1) if all(n % d for d in range(2, int(n**0.5) + 1))]
    return (1, *primes)
