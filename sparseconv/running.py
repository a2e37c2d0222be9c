"""Run a model that a user passed, in batches or once, and watch its layers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from numbers import Number
from types import NoneType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseconv.core.arrays import as_tensor, class_indices, without_index
from sparseconv.core.generators import generators_kept
from sparseconv.core.modules import has_codes

BATCH = 64  # series in a batch, where arrays are given
Layer = TypeVar("Layer", bound=nn.Module)


def copied_arguments(model: nn.Module, given: Any) -> tuple[Any, ...]:
    """Copy a model's arguments as tensors, and series in the model's dtype.

    Integers with fewer than three axes are taken to be codes or lengths. Bools passed along with
    other arguments are taken to be masks.
    """
    dtype, codes = next(model.parameters(), torch.empty(0)).dtype, has_codes(model)

    def copied(held: Any) -> Tensor:
        x = as_tensor(held, "expected example_input to contain real numbers")
        series = x.dim() > 2 and not codes and (x.dtype != torch.bool or held is given)
        kept = x.detach().to(dtype if x.is_floating_point() or series else x.dtype, copy=True)
        return kept.requires_grad_(x.requires_grad)

    with torch.inference_mode(False):
        arguments: tuple[Any, ...] = tree_map_only(
            (np.ndarray, Tensor), copied, given if isinstance(given, tuple) else (given,)
        )
    return arguments


def for_model(owner: str, model: nn.Module, X: Any) -> Tensor:
    """Return series in the model's dtype, on their current device.

    Integers stay integers if the model has an ``nn.Embedding``. The networks of ``models``, which
    have ``check_series``, also accept single-channel series as ``(n_cases, n_timepoints)``.
    """
    x = as_tensor(X, f"{owner}: expected X to contain real numbers")
    if x.is_floating_point() or not has_codes(model):
        x = x.to(next(model.parameters(), torch.empty(0)).dtype)
    return x[:, None] if x.dim() == 2 and hasattr(model, "check_series") else x


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; restore the modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients; restore both and the generators afterwards.

    Parameters need none either, because ``torch.no_grad`` leaves views of parameters with them.
    """
    with generators_kept(), in_eval_mode(model), torch.no_grad(), ExitStack() as stack:
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        yield


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers that train mode changes, and do not touch others, such as patterns."""
    before = {name: x.clone() for name, x in model.named_buffers() if not is_lazy(x)}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            if name in before and not torch.equal(buffer, before[name]):
                buffer.detach().copy_(before[name])


@contextmanager
def watching(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Put a model in eval mode; when a named layer runs, pass its name and input to ``see``."""

    def hook(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        see(name, next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)))

    with evaluating(model), ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            handle = module.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@dataclass
class Call:
    """An input of a layer, its output's properties, and the number of such calls."""

    input: Tensor
    needs_dgrad: bool
    trains: bool  # the model records gradients here
    positions: int  # samples of the output, or of a transposed layer's input, of all series
    dtype: torch.dtype
    count: int = 0


def capture(
    model: nn.Module, layers: Iterable[Layer], arguments: tuple[Any, ...]
) -> tuple[Any, dict[Layer, list[Call]]]:
    """Run the model once; return its output, and each layer's calls.

    Calls are counted together if their inputs differ only in values. Copies of a model draw the
    same random numbers.
    """
    calls: dict[Layer, dict[tuple[Any, ...], Call]] = {}

    def see(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        seen = calls.setdefault(layer, {})
        trains = y.requires_grad
        needs_dgrad = trains and x.requires_grad
        key = x.shape, x.stride(), x.dtype, needs_dgrad, trains
        if key not in seen:  # cloned, for what follows may write into it
            computed = x if getattr(layer, "transposed", False) else y
            positions = computed.numel() // computed.shape[-2]
            seen[key] = Call(x.detach().clone(), needs_dgrad, trains, positions, y.dtype)
        seen[key].count += 1

    with generators_kept(), ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(see, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        # A compiled model would not know of the hooks; importing the compiler takes seconds.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        output = model(*arguments)
    return output, {layer: list(seen.values()) for layer, seen in calls.items()}


@torch.no_grad()
def close(got: Tensor, wanted: Tensor) -> bool:
    """Return whether two tensors agree up to rounding."""
    rounded = wanted.is_floating_point() or wanted.is_complex()
    if got.shape != wanted.shape or got.dtype != wanted.dtype or not rounded:
        return got.equal(wanted)
    loose = torch.finfo(wanted.dtype).eps ** 0.5
    scale = float(wanted.nan_to_num(0, 0, 0).abs().max()) if wanted.numel() else 0
    return torch.allclose(got, wanted, rtol=loose, atol=loose * scale, equal_nan=True)


def batch_sizes(n_cases: int, batch_size: int) -> list[int]:
    """Return the sizes of batches; a single last case joins the previous batch.

    BatchNorm cannot normalise a single value, and ``squeeze`` drops the axis of a single case.
    """
    whole, rest = divmod(n_cases, batch_size)
    if whole and rest == 1:
        return [batch_size] * (whole - 1) + [batch_size + 1]
    return [batch_size] * whole + [rest] * (rest > 0 or not whole)


def one_tensor(output: Any) -> Tensor:
    """Return the only tensor of a model's output, which may be in a dict or another container."""
    found = [leaf for leaf in tree_leaves(output) if leaf is not None]
    if len(found) == 1 and isinstance(found[0], Tensor):
        return found[0]
    raise TypeError(
        f"the model must return one tensor, but returned {type(output).__name__} (entries: "
        f"{len(found)}); wrap it in a module that returns the scores or log-probabilities"
    )


def output_tensors(out: Any) -> list[Tensor]:
    """Return the tensors in a model's output; reject an object that may hide some."""
    found: list[Tensor] = []
    expected = "the model must return tensors, alone or in tuples, lists, dicts or dataclasses"
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += output_tensors([getattr(leaf, field.name) for field in fields(leaf)])
        elif not isinstance(leaf, Number | str | NoneType):
            raise ValueError(f"{expected}, but its output contains {type(leaf).__name__}")
    if not found:
        raise ValueError(f"{expected}, but the returned {type(out).__name__} contains none")
    return found


@torch.no_grad()
def predict_log_proba(model: nn.Module, X: Any, batch_size: int = 64) -> Tensor:
    """Compute the log-probabilities ``(n_cases, n_classes)`` batch by batch in eval mode.

    Args:
        model: maps ``(N, ...)`` to log-probabilities, also with N = 1; each module's mode is
            restored.
        X: ``(n_cases, ...)``, an array, or a tensor on any device.
        batch_size: number of cases per batch; smaller batches need less memory. A single last case
            joins the previous batch.

    Raises:
        TypeError, ValueError: the model does not return one tensor; X does not contain numbers.

    Example:
        >>> from sparseconv.models import DSN
        >>> predict_log_proba(DSN(1, 3, nf=4), torch.zeros(5, 1, 20)).shape
        torch.Size([5, 3])
    """
    X = for_model("predict_log_proba", model, X)
    device = next(model.parameters(), torch.empty(0)).device
    with in_eval_mode(model):
        parts = X.split(batch_sizes(len(X), batch_size))
        outputs = (model(part.to(device)) for part in parts)
        return torch.cat([one_tensor(output) for output in outputs])


def evaluate(model: nn.Module, X: Tensor, y: Tensor, batch_size: int) -> dict[str, float]:
    """Return ``test_loss`` (mean NLL) and ``test_accuracy`` over series ``X`` and classes ``y``."""
    log_proba = predict_log_proba(model, X, batch_size)
    accuracy = (log_proba.argmax(1) == y).double().mean().item()
    return {"test_loss": F.nll_loss(log_proba, y).item(), "test_accuracy": accuracy}


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
            lengths = " and ".join(str(len(array)) for array in arrays)
            raise ValueError(f"{criterion}: expected X and y of one length, but got {lengths}")
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
