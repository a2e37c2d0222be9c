"""The mean of several classifiers' probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
        >>> from sparseconv.models import LITE
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
