"""Predictions of a trained classifier, and their accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.pruning.data import evaluating


@torch.no_grad()
def predict_log_proba(model: nn.Module, X: Any, batch_size: int = 64) -> Tensor:
    """Return the log-probabilities ``(n_cases, n_classes)``, in eval mode, batch by batch.

    Args:
        model: maps ``(N, ...)`` to log-probabilities; the mode of each module is left as it was.
        X: ``(n_cases, ...)``; an array, or a tensor on any device. Brought to
            the model's dtype, unless it is a tensor of integers, which may be indices.
        batch_size: cases at a time, a question of memory only.

    Raises:
        TypeError: X is not an array of numbers, or the model does not return one tensor.

    Example:
        >>> from sparseconv.models import DSN
        >>> predict_log_proba(DSN(1, 3, nf=4), torch.zeros(5, 1, 20)).shape
        torch.Size([5, 3])
    """
    parameter = next(model.parameters(), torch.empty(0))
    if not isinstance(X, Tensor):
        X = torch.from_numpy(np.array(X, order="C")).to(parameter.dtype)  # no negative strides
    elif X.is_floating_point():
        X = X.to(parameter.dtype)
    with evaluating(model):
        return torch.cat([model(part.to(parameter.device)) for part in X.split(batch_size)])


def evaluate(model: nn.Module, X: Tensor, y: Tensor, batch_size: int) -> dict[str, float]:
    """Return ``test_loss`` (mean NLL) and ``test_accuracy`` over series and class indices ``y``."""
    log_proba = predict_log_proba(model, X, batch_size)
    accuracy = (log_proba.argmax(1) == y).double().mean().item()
    return {"test_loss": F.nll_loss(log_proba, y).item(), "test_accuracy": accuracy}
