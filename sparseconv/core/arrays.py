"""Read the series and labels that users pass."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
NUMBERS = "biuf"  # NumPy's kinds: bool, signed, unsigned, float
MIXED = "got strings mixed with other objects or with missing values"
_WITH_NAN = np.frompyfunc(  # None and pandas.NA stand for missing values
    lambda entry: np.nan if type(entry).__name__ in ("NoneType", "NAType") else entry, 1, 1
)


def as_array(raw: Any, expectation: str, kinds: str = NUMBERS) -> Array:
    """Convert user input to a NumPy array in native byte order.

    Accept arrays with any strides and byte order, tensors, pandas objects, and lists of these. A
    pandas object may be indexed by case and time, or contain a series in each cell. Cases, channels
    and times of an indexed table are sorted, as in aeon; a series in a cell or a list is read by
    position. None and ``pandas.NA`` become NaN.
    """
    plain = raw
    try:
        plain = _without_wrapper(raw)
        found = np.asarray(plain)
        if found.dtype.kind == "O":
            text = {isinstance(entry, str) for entry in found.ravel()}
            if len(text) > 1:
                raise ValueError(MIXED)
            found = np.array(found.tolist())  # unpacks cells that hold series
            if found.dtype.kind == "O" and found.ndim:
                found = np.array(_WITH_NAN(found).tolist())
        elif found.dtype.kind == "U" and not all(
            isinstance(entry, str | list | tuple)
            for entry in (plain if isinstance(plain, list | tuple) else ())
        ):
            raise ValueError(MIXED)  # NumPy would make text of all, even of NaN
    except (ValueError, TypeError, RuntimeError) as error:
        advice = "; pad or cut series to one length" if "inhomogeneous" in str(error) else ""
        raise ValueError(f"{expectation}, but {error}{advice}") from error
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
        return [_without_wrapper(case) for case in raw]
    levels = [getattr(getattr(raw, name, None), "nlevels", 1) for name in ("index", "columns")]
    if levels == [2, 1]:
        table = raw if raw.ndim > 1 else raw.to_frame()
        ranks, _ = table.columns.factorize(sort=True, use_na_sentinel=False)  # texts after numbers
        wide = table.iloc[:, ranks.argsort(kind="stable")].unstack()  # a row for each case
        return wide.to_numpy().reshape(len(wide), len(ranks), -1)
    if max(levels) > 1:
        raise ValueError("got a table that does not have one row for each (case, time)")
    return raw


def without_index(raw: Any) -> Any:
    """Return the values of a pandas object, in their order, as labels are; anything else as is."""
    return raw.to_numpy() if hasattr(raw, "to_numpy") else raw


def as_tensor(raw: Any, expectation: str) -> Tensor:
    if isinstance(raw, Tensor):
        return raw.to_dense()
    return torch.from_numpy(np.array(as_array(raw, expectation), order="C"))


def three_axes(owner: str, key: str, raw: Any) -> Array:
    """Return series of any numeric dtype as ``(n_cases, n_channels, n_timepoints)``."""
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


def check_axes(
    expected: str, shape: tuple[int, ...], channels: int, length: int | None = None
) -> None:
    """Reject series of a shape other than ``(n_cases, channels, length)``; None is any length."""
    if len(shape) != 3 or shape[1] != channels or length not in (None, shape[2]):
        raise ValueError(
            f"{expected}, but got {shape}; pass a single series as X[None], series of one channel "
            "as X[:, None], and series with swapped axes as numpy.transpose(X, (0, 2, 1))"
        )


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
    """Return labels, passed as a vector or a column, as numbers or strings ``(n_cases,)``."""
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
