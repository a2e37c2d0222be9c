"""Run a model on a criterion's data, and watch the model's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from sparseconv.core.arrays import as_tensor, class_indices, fitting, without_index
from sparseconv.core.generators import generators_kept
from sparseconv.models.classifier import Classifier
from sparseconv.nn.modules import has_codes
from sparseconv.pruning.channels import NORMS

BATCH = 64  # series in a batch, where arrays are given


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
    """Put a model in eval mode; restore the modes and the random generators afterwards."""
    with generators_kept(), in_eval_mode(model):
        yield


def train_but_norms(model: nn.Module) -> None:
    """Put a model in train mode, but leave norms in eval mode, where they accept single values."""
    for module in model.train().modules():
        if isinstance(module, NORMS):
            module.eval()


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
def frozen(model: nn.Module) -> Iterator[None]:
    """Turn off gradients, also for views of parameters, which ``torch.no_grad`` does not do."""
    with torch.no_grad(), ExitStack() as stack:
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        yield


@contextmanager
def watching(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Put a model in eval mode; when a named layer runs, pass its name and input to ``see``."""

    def hook(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        see(name, next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)))

    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            handle = module.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def batch_sizes(n_cases: int, batch_size: int) -> list[int]:
    """Return the sizes of batches; a single last case joins the previous batch.

    BatchNorm cannot normalise a single value, and ``squeeze`` drops the axis of a single case.
    """
    whole, rest = divmod(n_cases, batch_size)
    if whole and rest == 1:
        return [batch_size] * (whole - 1) + [batch_size + 1]
    return [batch_size] * whole + [rest] * (rest > 0 or not whole)


def run_batch(model: nn.Module, x: Tensor, whole: int = BATCH) -> Any:
    """Run a model; explain errors due to a dropped axis or to a batch size other than ``whole``."""
    try:
        with fitting((x,)):
            out = model(x)
            if len(x) == 1 and isinstance(out, Tensor) and out.dim() < 2 and out.shape != (1,):
                raise IndexError(f"its output has shape {tuple(out.shape)}")
            return out
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__
        if len(x) == 1 and isinstance(cause, IndexError):
            raise ValueError(
                f"the model drops the axis of a batch of 1 series ({cause}); use squeeze(-1), "
                "which keeps it, or use batches of at least 2 series (batch_size of 2 or more; for "
                "a DataLoader, whose last batch may contain 1 series, drop_last=True)"
            ) from cause
        if 1 < len(x) != whole:
            with suppress(Exception):
                model(x[torch.arange(whole) % len(x)])
                error = RuntimeError(
                    f"the model needs batches of {whole} series, but the last batch has {len(x)}: "
                    "choose a batch_size that divides the number of series, or create the model's "
                    "state for x.shape[0] series"
                )
        raise error from cause


def one_tensor(output: Any) -> Tensor:
    """Return the only tensor of a model's output, which may be in a dict or another container."""
    found = [leaf for leaf in tree_leaves(output) if leaf is not None]
    if len(found) == 1 and isinstance(found[0], Tensor):
        return found[0]
    raise TypeError(
        f"the model must return one tensor, but returned {type(output).__name__} (entries: "
        f"{len(found)}); wrap it in a module that returns the scores or log-probabilities"
    )


def for_model(owner: str, model: nn.Module, X: Any) -> Tensor:
    """Return series in the model's dtype, on their current device.

    Integers stay integers if the model has an ``nn.Embedding``. The networks of ``models`` also
    accept single-channel series as ``(n_cases, n_timepoints)``.
    """
    x = as_tensor(X, f"{owner}: expected X to contain real numbers")
    if x.is_floating_point() or not has_codes(model):
        x = x.to(next(model.parameters(), torch.empty(0)).dtype)
    if not x.isfinite().all():
        cases = int((~x.isfinite()).reshape(len(x), -1).any(1).sum())
        raise ValueError(
            f"{owner}: expected X to be finite, but {cases} of {len(x)} series contain missing "
            "values (NaN) or infinity; replace them, for example with numpy.nan_to_num(X)"
        )
    return x[:, None] if x.dim() == 2 and isinstance(model, Classifier) else x


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
        alone = rest and (isinstance(rest[0], int) or getattr(rest[0], "ndim", 1) == 0)
        if alone and x.dim() < 3:
            raise ValueError(
                f"{criterion} expected batches, but got a single series {tuple(x.shape)}; for a "
                "Dataset, pass DataLoader(dataset, batch_size=64)"
            )
        if labels and not rest:
            raise ValueError(f"{criterion} expected batches (x, y), but the labels y are missing")
        if len(x):
            empty = False
            y = as_tensor(rest[0], f"{criterion}: expected numbers in y") if labels else None
            if y is not None:
                y = y.to(device, y.dtype if y.is_floating_point() else torch.int64)
            yield x, y
    if empty:
        why = "an iterator is empty after one pass: pass a list or a DataLoader"
        if getattr(data, "drop_last", False):
            why = f"drop_last=True omits a batch of fewer than {data.batch_size} series"
        raise ValueError(
            f"{criterion} expected at least one series, but the data contain none ({why})"
        )
