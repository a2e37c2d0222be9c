"""The data of a training run, checked and identified by a digest."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.core.arrays import class_indices, warn_if_swapped
from sparseconv.core.generators import Drawing
from sparseconv.running import (
    batch_sizes,
    for_model,
    in_eval_mode,
    keeping_buffers,
    one_tensor,
    predict_log_proba,
)
from sparseconv.training.recipe import Recipe


def checked_data(
    model: nn.Module, X: Any, y: Any, recipe: Recipe, cases: int | None = None
) -> tuple[Tensor, Tensor, bool]:
    """Convert series ``(n_cases, ...)`` and labels to the model's device and dtype.

    Labels are class indices from 0. Raise TypeError or ValueError if the model cannot be trained or
    evaluated on them; the last batch is run to find out. For validation data, ``cases`` is the size
    of the training set. Also return whether the model draws random numbers.
    """
    X, labels = for_model("train", model, X), class_indices("train", "y", y)
    if X.dim() < 2 or len(X) != len(labels) or X.numel() == 0:
        raise ValueError(
            "expected X of shape (n_cases, n_channels, n_timepoints) and y of shape (n_cases,), "
            f"with at least one case, but got {tuple(X.shape)} and {labels.shape}"
        )
    warn_if_swapped(tuple(X.shape))
    device = next(model.parameters(), torch.empty(0)).device
    X, y = X.to(device), torch.from_numpy(labels).to(device)
    size = min(recipe.batch_size_for(cases or len(X)), len(X))
    last = batch_sizes(len(X), size)[-1]
    with Drawing() as draws:
        if cases:
            log_proba = predict_log_proba(model, X[: size + last], size)
        else:
            log_proba = _in_training(model, X[:last])
    if log_proba.dim() != 2 or bool((log_proba.logsumexp(1).abs() > 0.01).any()):
        raise ValueError(
            "the model must return log-probabilities (n_cases, n_classes), but got shape "
            f"{tuple(log_proba.shape)}, with probabilities that sum to "
            f"{log_proba.exp().sum(-1).tolist()}; "
            "end it with torch.nn.LogSoftmax(dim=1)"
        )
    if y.min() < 0 or y.max() >= log_proba.shape[1]:
        raise ValueError(
            f"y must contain class indices in [0, {log_proba.shape[1]}), the model's classes, but "
            f"ranges from {int(y.min())} to {int(y.max())}; numpy.unique(labels, "
            "return_inverse=True)[1] returns indices 0, 1, ..."
        )
    return X, y, draws.drew


def _in_training(model: nn.Module, x: Tensor) -> Tensor:
    """Return a model's output for a batch in training mode; leave the model unchanged."""
    rng = torch.random.fork_rng([x.device], enabled=x.is_cuda)
    with keeping_buffers(model), in_eval_mode(model), rng, torch.enable_grad():
        return one_tensor(model.train()(x)).detach()


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors' dtypes, shapes and elements."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        # contiguous() keeps the stride of a dimension of one entry, which view() refuses.
        plain = tensor.cpu().clone(memory_format=torch.contiguous_format)
        sha.update(plain.view(torch.uint8).numpy().data)
    return sha.hexdigest()
