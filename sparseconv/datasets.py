"""Time-series data sets: aeon's bundled ones, folders of ``.ts`` files, ``.npz`` files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BUNDLED = (
    "ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "JapaneseVowels",
    "OSULeaf",
)  # fmt: skip
_KEYS = ("X_train", "y_train", "X_test", "y_test")
# aeon has JapaneseVowels twice: the original, and one padded to 25 time points.
_STEMS = {"JapaneseVowels": "JapaneseVowels_eq"}
_TRAIN, _TEST = "_TRAIN.ts", "_TEST.ts"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked training and test set.

    Attributes:
        name: the data set's name.
        X_train, X_test: ``(n_cases, n_channels, n_timepoints)`` float32, finite.
        y_train, y_test: ``(n_cases,)`` int64, indices into ``classes``.
        classes: the labels as they came (aeon reads those of .ts files in lower case), sorted.
    """

    name: str
    X_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.int64]
    X_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]
    classes: npt.NDArray[Any]

    @property
    def n_channels(self) -> int:
        """Channels of a series."""
        return int(self.X_train.shape[1])

    @property
    def n_timepoints(self) -> int:
        """Samples of a channel of a series."""
        return int(self.X_train.shape[2])


def load(name_or_path: str | os.PathLike[str], *, nan_to_zero: bool = False) -> Dataset:
    """Read a data set from this machine; nothing is ever downloaded.

    Args:
        name_or_path: the name of one of ``BUNDLED`` (part of the aeon package; JapaneseVowels is
            the equal-length variant), a folder with ``NAME_TRAIN.ts`` and ``NAME_TEST.ts`` or the
            first of these two files, or a ``.npz`` file with ``X_train``, ``y_train``, ``X_test``
            and ``y_test``: series ``(n_cases, n_channels, n_timepoints)`` or, with one channel,
            ``(n_cases, n_timepoints)``, and labels that are strings or real numbers. A string that
            is a bundled name is read as that; a folder of this name is ``"./NAME"`` or a ``Path``.
        nan_to_zero: replace missing values by 0, as in the paper's UCR 85 runs.

    Raises:
        TypeError: neither a string nor a path.
        ValueError: an unknown name, an unreadable source, or data that cannot be classified:
            unequal lengths, non-finite values, one class only, test labels unseen in training.
        RuntimeError: aeon is needed and not installed.

    Example:
        >>> from sparseconv import datasets
        >>> data = datasets.load("GunPoint")
        >>> data.X_train.shape, data.X_test.shape, data.classes.tolist()
        ((50, 1, 150), (150, 1, 150), ['1', '2'])
    """
    path = Path(name_or_path)
    bundled = isinstance(name_or_path, str) and name_or_path in BUNDLED
    if bundled:
        stem = _STEMS.get(path.name, path.name)
        path = Path(_aeon().__file__).parent / "data" / path / f"{stem}{_TRAIN}"
    elif os.path.isdir(path):  # False where the path cannot be one
        path = _training_file(path)
    if path.suffix == ".npz" and os.path.isfile(path):
        name, raw = path.stem, _read_npz(path)
    elif path.name.endswith(_TRAIN) and os.path.isfile(path):
        name = path.name.removesuffix(_TRAIN)
        cases = *_read_ts(path), *_read_ts(path.with_name(name + _TEST))
        raw = dict(zip(_KEYS, cases, strict=True))
    else:
        raise ValueError(
            f"no data set {os.fspath(name_or_path)!r}: expected the name of one of aeon's bundled "
            f"sets ({', '.join(BUNDLED)}) as a str, a folder with NAME_TRAIN.ts and NAME_TEST.ts, "
            f"or a .npz file with {', '.join(_KEYS)}"
        )
    return _check(str(name_or_path) if bundled else name, raw, nan_to_zero)


def _aeon() -> Any:
    try:
        import aeon.datasets
    except ImportError as error:
        raise RuntimeError(
            f"aeon reads the bundled sets and .ts files, but it cannot be imported ({error}); "
            "install it with `pip install 'sparseconv[tsc]'`, or give a .npz file"
        ) from error
    return aeon.datasets


def _training_file(folder: Path) -> Path:
    """Return the one NAME_TRAIN.ts; of several, that with the folder's own name."""
    found = sorted(folder.glob(f"*{_TRAIN}"))
    own = [path for path in found if path.name == folder.resolve().name + _TRAIN]
    if len(own or found) != 1:
        raise ValueError(
            f"expected one pair NAME_TRAIN.ts and NAME_TEST.ts in the folder {folder}, but found "
            f"{', '.join(path.name for path in found) or 'none'}; put one data set into a folder"
        )
    return (own or found)[0]


def _read_ts(path: Path) -> tuple[Any, Any]:
    read = _aeon().load_from_ts_file
    try:
        X, y, header = read(str(path), return_meta_data=True)
    # aeon checks little: what is wrong with a file shows as any of these.
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} cannot be read as a .ts file ({type(error).__name__}: {error}); expected "
            "header lines that end with @data, then one case a line, equally long"
        ) from error
    if not header["classlabel"] or "NaN" in list(y):  # aeon's word for "?", not in lower case
        raise ValueError(
            f"{path} lacks class labels, or some of them ('?'); expected a header line "
            "'@classLabel true ...' and a label at the end of each line"
        )
    return X, y


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        # np.load takes any text for a pickle, and advises to load it unsafely.
        with path.open("rb") as opened, np.lib.npyio.NpzFile(opened) as file:
            return {key: file[key] for key in _KEYS}
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{path} cannot be used as a data set ({error}); write it with np.savez and the keys "
            f"{', '.join(_KEYS)}, each a plain array of numbers (labels: or of strings)"
        ) from error


def _check(name: str, raw: dict[str, Any], nan_to_zero: bool) -> Dataset:
    X_train, X_test = (as_series(name, key, raw[key], nan_to_zero) for key in _KEYS[::2])
    if X_train.shape[1:] != X_test.shape[1:]:
        raise ValueError(
            f"{name}: expected X_test to have X_train's channels and time points "
            f"{X_train.shape[1:]}, but got {X_test.shape[1:]}; cut or pad one of them"
        )
    y_train = _labels(name, "y_train", raw["y_train"], len(X_train))
    y_test = _labels(name, "y_test", raw["y_test"], len(X_test))
    classes = np.unique(y_train)
    known = classes.tolist()
    if len(known) < 2:
        raise ValueError(f"{name}: expected at least 2 classes in y_train, but got only {known}")
    if unseen := sorted(set(y_test.tolist()) - set(known), key=str):
        raise ValueError(
            f"{name}: y_test holds labels that y_train does not: {unseen[:5]}; training knows "
            f"{known[:10]}; remove those cases, or add some of them to the training set"
        )
    train, test = (np.searchsorted(classes, y).astype(np.int64) for y in (y_train, y_test))
    return Dataset(name, X_train, train, X_test, test, classes)


def as_series(
    owner: str, key: str, raw: Any, nan_to_zero: bool | None = None
) -> npt.NDArray[np.float32]:
    """Check series, and return them as float32 ``(n_cases, n_channels, n_timepoints)``, finite.

    Every function that takes series of one length calls this one.

    Args:
        owner, key: who asks, and what the series are called there, for messages.
        raw: an array, a tensor or a list of arrays; of one channel ``(n_cases, n_timepoints)``.
        nan_to_zero: replace missing values by 0; None where the caller's user cannot choose it.

    Raises:
        ValueError: unequal lengths, another shape, no real numbers, values that are not finite.
    """
    if hasattr(raw, "detach"):
        raw = raw.detach().cpu().numpy()
    try:
        raw = np.asarray(raw)
    except ValueError as error:  # several lengths; aeon gives a list for @equalLength false
        lengths = {np.shape(case)[-1] for case in raw}
        raise ValueError(
            f"{owner}: expected {key} to hold series of one length, but got lengths from "
            f"{min(lengths)} to {max(lengths)}; pad or cut them to one length first, with "
            "aeon.transformations.collection.unequal_length.Padder or Truncator"
        ) from error
    if raw.ndim == 2:
        raw = raw[:, None, :]
    if raw.ndim != 3 or 0 in raw.shape or raw.dtype.kind not in "fiu":
        raise ValueError(
            f"{owner}: expected {key} to hold real numbers of shape (n_cases, n_channels, "
            f"n_timepoints) or (n_cases, n_timepoints), none of them 0, but got {raw.dtype} of "
            f"shape {raw.shape}"
        )
    if nan_to_zero and raw.dtype.kind == "f":
        raw = np.where(np.isnan(raw), 0.0, raw)
    with np.errstate(over="ignore"):  # a number too large for float32 shows as inf just below
        X = np.require(raw, np.float32, ["C", "A", "W"])  # torch warns of an array not writable
    bad = ~np.isfinite(X)
    if bad.any():
        advice = "fill them in first"
        if nan_to_zero is False and np.isnan(X).any():
            advice += ", or read missing ones as 0 with nan_to_zero=True (--nan-to-zero)"
        raise ValueError(
            f"{owner}: expected finite values in {key}, but {int(bad.sum())} of {X.size} are "
            f"missing (NaN), infinite or too large for float32, the first in case "
            f"{int(bad.any((1, 2)).argmax())}; {advice}"
        )
    return X


def _labels(name: str, key: str, raw: Any, n_cases: int) -> npt.NDArray[Any]:
    y = np.asarray(raw)
    missing = y.dtype.kind == "f" and np.isnan(y).any()
    other = y.dtype.kind not in "biufU"
    if y.shape != (n_cases,) or other or missing:
        raise ValueError(
            f"{name}: expected {key} to hold a string or a real number for each of {n_cases} "
            f"cases, but got {y.dtype} of shape {y.shape}{', some of them missing' * bool(missing)}"
            f"{'; convert bytes with y.astype(str)' * other}"
        )
    return y
