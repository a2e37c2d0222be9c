"""Batches of a criterion's data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.core.arrays import as_tensor, class_indices, without_index
from sparseconv.running import BATCH, batch_sizes, for_model


def classes_of(criterion: str, y: Tensor, outputs: Tensor) -> Tensor:
    """Return labels as class indices for outputs ``(N, n_classes)``, or raise ValueError."""
    found, (n, classes) = torch.from_numpy(class_indices(criterion, "y", y)), outputs.shape
    if found.shape != (n,) or not ((found >= 0) & (found < classes)).all():
        raise ValueError(
            f"{criterion} expected a class index from 0 to {classes - 1} for each series, but got "
            f"{found}; use numpy.unique(y, return_inverse=True)[1]"
        )
    return found.to(outputs.device)


def batches_of(
    criterion: str, model: nn.Module, data: Any, cases: int | None = None, labels: bool = True
) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches of series on the model's device, with their labels; see ``for_model``.

    Integer labels become int64, which torch's losses expect.

    Args:
        data: arrays ``(X, y)``, or an iterable of such batches; if no labels are needed, also ``X``
            alone, an array or a list of cases.
        cases: the maximum number of series to take from arrays, evenly spaced because arrays may be
            sorted by class.
        labels: whether labels are needed; if not, None takes their place.

    Raises:
        ValueError: the arrays differ in length, or there are no batches, series or labels.
    """
    device = next(model.parameters()).device
    if isinstance(data, list) or (isinstance(data, tuple) and len(data) > 2):
        channels = [m.in_channels for m in model.modules() if hasattr(m, "in_channels")]
        with suppress(ValueError):  # as_tensor refuses batches (x, y) and cases of different shapes
            _, *case = as_tensor(data[:1], "").shape
            if len(case) == 1 or (len(case) == 2 and case[:1] == channels[:1]):
                data = as_tensor(data, "")
    if isinstance(data, tuple) or hasattr(data, "shape"):
        given = (data[0], *map(without_index, data[1:])) if isinstance(data, tuple) else (data,)
        expectation = f"{criterion}: expected X and y to contain real numbers"
        arrays = [as_tensor(x, expectation) for x in given]
        if len({len(array) for array in arrays}) > 1:
            shapes = [tuple(array.shape) for array in arrays]
            raise ValueError(f"{criterion} expected (X, y) of equal length, but got {shapes}")
        if cases is not None and len(arrays[0]) > cases:
            chosen = torch.linspace(0, len(arrays[0]) - 1, cases).round().long()
            arrays = [array[chosen] for array in arrays]
        sizes = batch_sizes(len(arrays[0]), BATCH)
        data = zip(*(torch.split(array, sizes) for array in arrays), strict=True)
    empty = True
    for batch in data:
        first, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        x = for_model(criterion, model, first).to(device)
        if labels and not rest:
            raise ValueError(f"{criterion} expected batches (x, y), but the labels y are missing")
        if len(x):
            empty = False
            y = as_tensor(rest[0], f"{criterion}: expected numbers in y") if labels else None
            if y is not None:
                y = y.to(device, y.dtype if y.is_floating_point() else torch.int64)
            yield x, y
    if empty:
        raise ValueError(
            f"{criterion} expected at least one series, but the data contain none; pass a list or "
            "a DataLoader, since an iterator is empty after one pass, without drop_last=True"
        )
