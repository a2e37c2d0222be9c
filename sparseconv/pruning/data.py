"""The series by which criteria judge filters, in batches that fit the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

BATCH = 64  # series, where data are whole arrays


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; restore modes, buffers and torch's generator afterwards.

    Raises:
        ValueError: a lazy module was never run.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet; run the model once on a series")
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, content in buffers:
                    if not torch.equal(buffer, content):
                        buffer.copy_(content)


def batches_of(
    criterion: str, model: nn.Module, data: Any, cases: int | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """Yield series in the model's dtype, on its device, each batch with its labels or None.

    Integers stay integers for a model with an ``nn.Embedding``.

    Args:
        criterion: its name, for messages.
        model: takes the series.
        data: ``X`` or ``(X, y)``, arrays; or an iterable of batches of either kind.
        cases: of arrays take so many series, at equal distances: data may be sorted by class.

    Raises:
        ValueError: arrays of unequal length; no series.
    """
    like = next(model.parameters())
    codes = any(isinstance(module, nn.Embedding) for module in model.modules())
    if isinstance(data, tuple) or hasattr(data, "shape"):
        arrays = [torch.as_tensor(x) for x in (data if isinstance(data, tuple) else (data,))]
        if len({len(array) for array in arrays}) > 1 or not 1 <= len(arrays) <= 2:
            shapes = [tuple(array.shape) for array in arrays]
            raise ValueError(
                f"{criterion} expected (X, y) of equal length, but got shapes {shapes}"
            )
        if cases is not None and len(arrays[0]) > cases:
            chosen = torch.linspace(0, len(arrays[0]) - 1, cases).round().long()
            arrays = [array[chosen] for array in arrays]
        data = zip(*(torch.split(array, BATCH) for array in arrays), strict=True)
    empty = True
    for batch in data:
        x, *labels = batch if isinstance(batch, tuple | list) else (batch,)
        x = torch.as_tensor(x)
        if len(x):
            empty = False
            x = x.to(like.device) if codes and not x.is_floating_point() else x.to(like)
            yield x, labels[0] if labels else None
    if empty:
        raise ValueError(
            f"{criterion} expected at least one series, but the data hold none (an iterator is "
            "used up after one pass: give a list or a DataLoader)"
        )


def labelled(
    criterion: str, model: nn.Module, data: Any, cases: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(x, y)`` as ``batches_of`` does; classes are int64, as torch's losses want them.

    Raises:
        ValueError: there are no labels.
    """
    for x, y in batches_of(criterion, model, data, cases):
        if y is None:
            raise ValueError(
                f"{criterion} expected batches (x, y), series with their labels; y is missing"
            )
        y = torch.as_tensor(y).to(x.device)
        yield x, y if y.is_floating_point() else y.long()
