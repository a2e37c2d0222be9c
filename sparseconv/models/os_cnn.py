"""OS-CNN (Tang et al., ICLR 2022)."""

from __future__ import annotations

from torch import nn

from sparseconv.core.checks import count
from sparseconv.models.classifier import Classifier, Parallel, average_and_classify

BUDGETS = (1024, 229_376)  # weights of the first and of the second layer, at most
LONGEST = 89  # taps


class OSCNN(Classifier):
    """Three layers of convolutions (1, 2, 3, 5, 7, ... taps), a global average and a linear layer.

    Sums of 1, 2 and the primes up to a quarter of the series yield every receptive field up to that
    length. A budget of weights per layer determines the number of filters of each length. The last
    layer has kernels of 1 and 2 taps. The authors average the accuracies of ten runs.

    Args:
        in_channels, n_classes: as for ``DSN``, with the same shapes and errors.
        n_timepoints: length of the training series, which limits the length of the kernels.

    Example:
        >>> import torch
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
            blocks.append(_layer(inputs, channels, primes))
            inputs = channels * len(primes)
        # The number that the first layer has for a series of one channel.
        last = len(primes) * max(1, BUDGETS[0] // sum(primes))
        self.blocks = nn.Sequential(*blocks, _layer(inputs, last, (1, 2)))
        self.head = average_and_classify(2 * last, self.n_classes)


def _layer(in_channels: int, channels: int, kernel_sizes: tuple[int, ...]) -> nn.Sequential:
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
