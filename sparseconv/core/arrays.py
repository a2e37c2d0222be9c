"""Read the series and labels that users pass."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Array = npt.NDArray[Any]
NUMBERS = "biuf"  # NumPy's kinds: bool, signed, unsigned, float
EXPECTED = "expected (n_cases, n_channels, n_timepoints); pass a single series as x[None]"
SHORT = "the series are too short for this layer: pass longer ones, or choose a shorter kernel"
ADVICE = {  # keyed by words of torch's errors
    "more than 1 value per channel": "one value has no variance: pass at least 2 series (in "
    "training, choose a batch_size of at least 2), call model.eval(), or normalise before pooling",
    "more than 1 spatial element": "one value has no variance: normalise before pooling",
    "Kernel size can't be": SHORT, "utput size": SHORT, "Padding size should be less": SHORT,
}  # fmt: skip
MIXED = "got strings mixed with other objects or with missing values"
_WITH_NAN = np.frompyfunc(  # None and pandas.NA stand for missing values
    lambda entry: np.nan if type(entry).__name__ in ("NoneType", "NAType") else entry, 1, 1
)


def as_array(raw: Any, expectation: str, kinds: str = NUMBERS) -> Array:
    """Convert user input to a NumPy array in native byte order.

    Accept arrays with any strides and byte order, tensors, pandas objects, and lists of these. A
    pandas object may be indexed by case and time, or contain a series in each cell. Cases, channels
    and times of an indexed table are sorted, as in aeon; a series in a cell or a list is read by
    position, so its index must increase. None and ``pandas.NA`` become NaN.

    Raises:
        ValueError: series of different lengths, or a type outside ``kinds``. The message begins
            with ``expectation``.
    """
    plain = raw
    try:
        plain = _without_wrapper(raw)
        found = np.asarray(plain)
        if found.dtype.kind == "O":
            text = {isinstance(entry, str) for entry in found.ravel()}
            if len(text) > 1:
                raise ValueError(MIXED)
            for entry in found.ravel():
                _in_order(entry)
            found = np.array(found.tolist())  # unpacks cells that hold series
            if found.dtype.kind == "O" and found.ndim:
                found = np.array(_WITH_NAN(found).tolist())
        elif found.dtype.kind == "U" and not all(
            isinstance(entry, str | list | tuple)
            for entry in (plain if isinstance(plain, list | tuple) else ())
        ):
            raise ValueError(MIXED)  # NumPy would make text of all, even of NaN
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{expectation}, but {_several_lengths(plain) or error}") from error
    if found.dtype.kind not in kinds:
        advice = "; convert bytes with .astype(str)" if found.dtype.kind == "S" else ""
        raise ValueError(f"{expectation}, but got {found.dtype} of shape {found.shape}{advice}")
    if found.dtype.kind == "f" and found.dtype.itemsize > 8:  # torch has no long double
        return found.astype(np.float64)
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _without_wrapper(raw: Any) -> Any:
    """Return what NumPy can read without losing values, the case axis or a mask."""
    if isinstance(raw, Tensor):
        raw = raw.float() if raw.dtype == torch.bfloat16 else raw  # NumPy has no bfloat16
        return raw.to_dense().numpy(force=True)
    if isinstance(raw, np.ma.MaskedArray):  # large integers are labels, which float64 would round
        if not raw.mask.any():
            return raw.data
        found = raw.data.astype(object)
        found[raw.mask] = None
        return found
    if isinstance(raw, list | tuple) and len(raw) and not isinstance(raw[0], int | float | str):
        return [_in_order(_without_wrapper(case)) for case in raw]
    if getattr(getattr(raw, "columns", None), "nlevels", 1) > 1:
        raise ValueError(
            "got a table whose columns have several levels; with levels (channel, time), pass "
            "table.stack()"
        )
    index: Any = getattr(raw, "index", None)
    if getattr(index, "nlevels", 1) > 1:
        missing = any((codes < 0).any() for codes in index.codes)
        if index.nlevels != 2 or index.has_duplicates or missing:
            raise ValueError("got a table in which not every row has its own index (case, time)")
        table = raw if raw.ndim > 1 else raw.to_frame()
        ranks, _ = table.columns.factorize(sort=True, use_na_sentinel=False)  # texts after numbers
        cases = table.iloc[:, ranks.argsort(kind="stable")].groupby(index.codes[0])
        rows = [case.droplevel(0).sort_index() for _, case in cases]
        if len({*map(len, rows)}) == 1 and len(rows) * len({*index.codes[1]}) > len(raw):
            raise ValueError(
                "got a table whose cases have values at different times; to use them in order, "
                "number the times of each case with table.groupby(level=0).cumcount()"
            )
        return [case.to_numpy().T for case in rows]
    return raw


def _in_order(series: Any) -> Any:
    """Return a series from a cell or a list, whose index must increase."""
    index: Any = getattr(series, "index", None)
    if getattr(series, "ndim", 0) == 1 and not getattr(index, "is_monotonic_increasing", True):
        raise ValueError("got a series whose index does not increase; pass series.sort_index()")
    return series


def without_index(raw: Any) -> Any:
    """Return the values of a pandas object, in their order, as labels are; anything else as is."""
    return raw.to_numpy() if hasattr(raw, "to_numpy") else raw


def _several_lengths(plain: Any) -> str:
    lengths: set[int] = set()
    with contextlib.suppress(ValueError, IndexError, TypeError):
        cases = plain.to_numpy().ravel() if hasattr(plain, "to_numpy") else plain
        lengths = {np.shape(case)[-1] for case in cases}
    if len(lengths) < 2:
        return ""
    return (
        f"got lengths from {min(lengths)} to {max(lengths)}; first pad or cut all series to the "
        "same length with aeon.transformations.collection.unequal_length.Padder or Truncator"
    )


def as_tensor(raw: Any, expectation: str) -> Tensor:
    if isinstance(raw, Tensor):
        return raw.to_dense()
    return torch.from_numpy(np.array(as_array(raw, expectation), order="C"))


def three_axes(owner: str, key: str, raw: Any) -> Array:
    """Return series of any numeric dtype as ``(n_cases, n_channels, n_timepoints)``.

    Raises:
        ValueError: unequal lengths, any other shape, an empty axis, or anything but real numbers.
    """
    expectation = (
        f"{owner}: expected {key} to contain real numbers of shape (n_cases, n_channels, "
        "n_timepoints) or (n_cases, n_timepoints), with no axis of length 0"
    )
    found = as_array(raw, expectation)
    if found.ndim == 2:
        found = found[:, None, :]
    if found.ndim != 3 or 0 in found.shape:
        raise ValueError(f"{expectation}, but got {found.dtype} of shape {found.shape}")
    return found.astype(np.uint8) if found.dtype == bool else found


@contextlib.contextmanager
def explain_input_errors(arguments: tuple[Any, ...]) -> Iterator[None]:
    """Note the input's shape and a remedy on errors that a model raises in the block."""
    try:
        yield
    except Exception as error:  # the model may run any code
        given = [tuple(x.shape) for x in tree_leaves(arguments) if hasattr(x, "shape")]
        advice = [todo for words, todo in ADVICE.items() if words in str(error)]
        if arguments and all(isinstance(n, int) for n in arguments):
            shape = tuple(arguments)
            advice = [f"got {shape}; if that is a shape, pass a tensor: torch.randn{shape}"]
        elif isinstance(error, TypeError) and len(arguments) > 1:
            advice = [f"got {len(arguments)} arguments; if that is a batch (x, y), pass only x"]
        elif not advice and type(error) in (RuntimeError, IndexError):  # of torch
            advice = [EXPECTED]
        frames = traceback.walk_tb(error.__traceback__)
        held = [frame.f_locals.get("self") for frame, _ in frames]
        called = [module for module in held if isinstance(module, nn.Module)]
        names = {module: name for name, module in called[0].named_modules()} if called else {}
        place = names.get(called[-1], "") if called else ""
        where = f"in {place or 'the model itself'} ({type(called[-1]).__name__})" if called else ""
        shapes = ", ".join(map(str, given))
        error.add_note("; ".join([f"the model got inputs of shape {shapes}: {where}", *advice]))
        raise


def wrong_shape(
    expected: str, shape: tuple[int, ...], channels: int, length: int | None = None
) -> ValueError:
    """Return the error for series of a shape other than ``(n_cases, channels, length)``.

    If ``length`` is None, any length is allowed.
    """
    flat = shape[::2] if shape[1:-1] == (1,) else shape  # its shape if given as 2-D
    if len(flat) == 2 and flat == (channels, length or flat[1]):
        todo = "pass a single series as X[None]"
    elif shape[1:] == (*([length] if length else shape[1:2]), channels):
        todo = "the axes are swapped: pass numpy.transpose(X, (0, 2, 1))"
    elif shape[1:2] == (channels,) and len(shape) == 3:
        todo = "pad or cut all series to this length"
    elif len(shape) == 2 and channels == 1:
        todo = "pass single-channel series as X[:, None]"
    else:
        todo = f"pass series with {channels} channels"
    given = f"{shape} (perhaps from {flat})" if flat != shape and channels > 1 else shape
    return ValueError(f"{expected}, but got {given}; {todo}")


def warn_if_swapped(shape: tuple[int, ...]) -> None:
    """Warn if series have more channels than samples."""
    if len(shape) == 3 and shape[1] > shape[2]:
        warnings.warn(
            f"expected series (n_cases, n_channels, n_timepoints), but got {shape[1]} channels of "
            f"only {shape[2]} time points; if the axes are swapped, pass numpy.transpose(X, (0, "
            "2, 1))",
            stacklevel=2,
        )


def class_indices(owner: str, key: str, raw: Any) -> npt.NDArray[np.int64]:
    """Return labels as int64 class indices; raise TypeError unless they are whole numbers."""
    y = as_labels(owner, key, raw)
    if y.dtype.kind == "U" or (y != np.floor(y)).any():
        raise TypeError(
            f"{owner}: expected {key} to contain class indices as integers, but got {y.dtype}; "
            "numpy.unique(labels, return_inverse=True)[1] returns indices 0, 1, ..."
        )
    return y.astype(np.int64)


def as_series(
    owner: str, key: str, raw: Any, nan_to_zero: bool | None = None
) -> npt.NDArray[np.float32]:
    """Return finite series as float32 ``(n_cases, n_channels, n_timepoints)``.

    Args:
        owner, key: names of the caller and of its argument, for messages.
        raw: anything that ``as_array`` accepts; single-channel series may have shape
            ``(n_cases, n_timepoints)``.
        nan_to_zero: replace missing values with 0; None if the caller offers no such option.

    Raises:
        ValueError: as in ``three_axes``; values that are not finite.
    """
    raw = three_axes(owner, key, raw)
    if nan_to_zero and raw.dtype.kind == "f":
        raw = np.where(np.isnan(raw), 0.0, raw)
    with np.errstate(over="ignore", under="ignore"):  # inf is rejected below
        X = np.require(raw, np.float32, ["C", "A", "W"])  # torch warns about read-only arrays
    bad = ~np.isfinite(X)
    if bad.any():
        advice = "impute or correct them first"
        if nan_to_zero is False and np.isnan(X).any():
            advice += ", or replace missing values with 0: nan_to_zero=True (--nan-to-zero)"
        raise ValueError(
            f"{owner}: expected finite values in {key}, but {int(bad.sum())} of {X.size} are "
            f"missing (NaN), infinite or too large for float32, the first in case "
            f"{int(bad.any((1, 2)).argmax())}; {advice}"
        )
    return X


def as_labels(owner: str, key: str, raw: Any, n_cases: int | None = None) -> Array:
    """Return labels, passed as a vector or a column, as numbers or strings ``(n_cases,)``.

    Raises:
        ValueError: any other shape or type, missing labels, or a number of labels other than
            ``n_cases``.
    """
    cases = "each case" if n_cases is None else f"each of {n_cases} cases"
    expectation = f"{owner}: expected {key} to contain a string or a real number for {cases}"
    raw = without_index(raw)
    y = as_array(raw, expectation, NUMBERS + "U")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or n_cases not in (None, len(y)):
        hot = f"; for one-hot labels, pass {key}.argmax(1)" if y.ndim == 2 else ""
        raise ValueError(f"{expectation}, but got {y.dtype} of shape {y.shape}{hot}")
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise ValueError(f"{expectation}, but some of the {len(y)} are missing; fill them in")
    objects = isinstance(raw, np.ndarray) and raw.dtype.kind == "O"
    if objects and len({*raw.ravel()}) > len(np.unique(y)):
        raise ValueError(f"{expectation}, but {y.dtype} cannot tell some of the labels apart")
    return y
