"""Several classifiers that vote by the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of the probabilities of several classifiers, each trained by itself.

    LITETime is the mean of five ``LITE``, and the classifier that InceptionTime's authors publish
    the mean of five ``InceptionTime``. Train the ``members`` one by one: a loss of the mean
    would train them as one network.

    Args:
        members: networks of log-probabilities ``(N, n_classes)`` for the same input, such as those
            of this module; at least one, each another object.

    Attributes:
        members: the networks, a ``ModuleList``.

    Shape:
        The members' input; output ``(N, n_classes)``, log-probabilities.

    Raises:
        ValueError: no members, or one twice.
        TypeError: a member that is no module.

    Example:
        >>> from sparseconv.models import LITE
        >>> from sparseconv.training import Recipe, train
        >>> X, y = torch.randn(8, 1, 30), torch.arange(8) % 2
        >>> model = Ensemble(LITE(1, 2) for _ in range(5))
        >>> for seed, member in enumerate(model.members):
        ...     result = train(member, X, y, Recipe(epochs=2, seed=seed), progress=False)
        >>> model.eval()(X).exp().sum(1).round()
        tensor([1., 1., 1., 1., 1., 1., 1., 1.], grad_fn=<RoundBackward0>)

    Source: Ismail Fawaz et al., "InceptionTime: Finding AlexNet for Time Series Classification",
    Data Mining and Knowledge Discovery 34, 2020 (section 3.3).
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        found = list(members)
        for member in found:
            if not isinstance(member, nn.Module):
                raise TypeError(f"members must be modules, but got {member!r}")
        if not found:
            raise ValueError("members must be networks, at least one, but there is none")
        if len({id(member) for member in found}) < len(found):
            raise ValueError(
                "members must be networks of their own, but one is there twice; build or copy it "
                "again"
            )
        self.members = nn.ModuleList(found)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log of the members' mean probabilities, ``(N, n_classes)``."""
        log_proba = torch.stack([member(x) for member in self.members])
        return log_proba.logsumexp(0) - math.log(len(self.members))
