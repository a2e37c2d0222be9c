"""Predictions of a classifier, and their accuracy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.running import batch_sizes, for_model, in_eval_mode, one_tensor, run_batch


@torch.no_grad()
def predict_log_proba(model: nn.Module, X: Any, batch_size: int = 64) -> Tensor:
    """Compute the log-probabilities ``(n_cases, n_classes)`` batch by batch in eval mode.

    Args:
        model: maps ``(N, ...)`` to log-probabilities; each module's mode is restored.
        X: ``(n_cases, ...)``, an array, or a tensor on any device.
        batch_size: number of cases per batch; smaller batches need less memory. A single last case
            joins the previous batch.

    Raises:
        ValueError: X is not an array of numbers, or X is a single series whose axis the model
            drops.
        TypeError: the model does not return one tensor.

    Example:
        >>> from sparseconv.models import DSN
        >>> predict_log_proba(DSN(1, 3, nf=4), torch.zeros(5, 1, 20)).shape
        torch.Size([5, 3])
    """
    X = for_model("predict_log_proba", model, X)
    device = next(model.parameters(), torch.empty(0)).device
    with in_eval_mode(model):
        parts = X.split(batch_sizes(len(X), batch_size))
        outputs = (run_batch(model, part.to(device)) for part in parts)
        return torch.cat([one_tensor(output) for output in outputs])


def evaluate(model: nn.Module, X: Tensor, y: Tensor, batch_size: int) -> dict[str, float]:
    """Return ``test_loss`` (mean NLL) and ``test_accuracy`` over series ``X`` and classes ``y``."""
    log_proba = predict_log_proba(model, X, batch_size)
    accuracy = (log_proba.argmax(1) == y).double().mean().item()
    return {"test_loss": F.nll_loss(log_proba, y).item(), "test_accuracy": accuracy}
