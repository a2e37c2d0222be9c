"""Time-series data sets: aeon's bundled sets, pairs of text files, and ``.npz`` files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseconv.core.arrays import as_labels, as_series, warn_if_swapped

BUNDLED = (
    "ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "JapaneseVowels",
    "OSULeaf",
)  # fmt: skip
_KEYS = ("X_train", "y_train", "X_test", "y_test")
# aeon has JapaneseVowels twice: the original, and one padded to 25 time points.
_STEMS = {"JapaneseVowels": "JapaneseVowels_eq"}
# Of the pairs NAME_TRAIN and NAME_TEST in a folder the first of these is read.
ENDINGS = (".ts", ".arff", ".tsv", ".csv", ".txt", "")
_ENDINGS = ", ".join(ENDINGS[:-1]) + " or no ending"
_CHANNEL = re.compile(r"Dimension\d+$")
_PAIR = re.compile(r"(.+)_(?:TRAIN|TEST)(\.\w+)?")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked training and test set.

    Attributes:
        name: the data set's name.
        X_train, X_test: ``(n_cases, n_channels, n_timepoints)`` float32, finite.
        y_train, y_test: ``(n_cases,)`` int64, indices into ``classes``.
        classes: the sorted labels, exactly as in the source. Labels in text files are strings,
            without spaces and tabs around them; if all are integers, they are sorted as numbers.
    """

    name: str
    X_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.int64]
    X_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]
    classes: npt.NDArray[Any]

    @property
    def n_channels(self) -> int:
        """Return the number of channels of a series."""
        return int(self.X_train.shape[1])

    @property
    def n_timepoints(self) -> int:
        """Return the number of time steps of a series."""
        return int(self.X_train.shape[2])


def load(name_or_path: str | os.PathLike[str], *, nan_to_zero: bool = False) -> Dataset:
    """Read a data set from this machine; nothing is ever downloaded.

    Args:
        name_or_path: the name of a set in ``BUNDLED``, which the aeon package contains. (Pass a
            folder with such a name as ``"./NAME"`` or a ``Path``.)
            Or a folder with the files ``NAME_TRAIN`` and ``NAME_TEST``, or one of the two files.
            They are ``.ts``, ``.arff``, or lines with a label and samples (``.tsv``, ``.csv``,
            ``.txt``, or no extension), separated by tabs, commas, semicolons or spaces.
            Or a ``.npz`` file with ``X_train``, ``y_train``, ``X_test`` and ``y_test``. Series are
            ``(n_cases, n_channels, n_timepoints)`` or, with one channel,
            ``(n_cases, n_timepoints)``; labels are strings or real numbers.
        nan_to_zero: replace missing values with 0, as in the DSN paper's UCR 85 runs.

    Raises:
        ValueError: an unknown name, an unreadable source, or data that cannot be classified:
            unequal lengths, non-finite values, a single class, test labels unseen in training.
        RuntimeError: aeon is needed, but not installed.

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
        path = Path(_aeon().__file__).parent / "data" / path / f"{stem}_TRAIN.ts"
    elif os.path.isdir(path):  # False where the path cannot be one
        path = _training_file(path)
    name, pair = name_of(path), _PAIR.fullmatch(path.name)
    if path.suffix == ".npz" and os.path.isfile(path):
        raw = _read_npz(path)
    elif pair is not None and os.path.isfile(path):
        files = [path.with_name(f"{name}_{part}{pair[2] or ''}") for part in ("TRAIN", "TEST")]
        for file in files:
            if not file.is_file():
                raise ValueError(
                    f"{file} is missing: a data set is a pair of files, NAME_TRAIN and NAME_TEST"
                )
        read = [_read(file) for file in files]
        raw = dict(zip(_KEYS, (array for pair in read for array in pair), strict=True))
    else:
        hint = "" if os.path.exists(path) else " and no such file"
        raise ValueError(
            f"no data set {os.fspath(name_or_path)!r}{hint}: expected the name of one of aeon's "
            f"bundled sets ({', '.join(BUNDLED)}) as a str, a folder that contains NAME_TRAIN and "
            f"NAME_TEST ({_ENDINGS}), one of these files, or a .npz file with {', '.join(_KEYS)}"
        )
    return _check(str(name_or_path) if bundled else name, raw, nan_to_zero)


def _aeon() -> Any:
    try:
        import aeon.datasets
    except ImportError as error:
        raise RuntimeError(
            f"aeon is needed to read bundled sets, .ts and .arff files, but it cannot be imported "
            f"({error}); install it with `pip install 'sparseconv[tsc]'`, or pass a .npz file"
        ) from error
    return aeon.datasets


def _training_file(folder: Path) -> Path:
    """Return the only training file or, of several, the one named after the folder."""
    found = training_files(folder.glob("*_TRAIN*")) or training_files(folder.glob("*_TEST*"))
    own = [path for path in found if name_of(path) == folder.resolve().name]
    if len(own or found) != 1:
        raise ValueError(
            f"expected one pair NAME_TRAIN and NAME_TEST ({_ENDINGS}) in the folder {folder}, but "
            f"found {', '.join(path.name for path in found) or 'none'}; put each data set in "
            "a separate folder"
        )
    return (own or found)[0]


def training_files(paths: Iterable[Path]) -> list[Path]:
    """Return one training file per data set, even if a set exists with several endings."""
    found: dict[Path, Path] = {}
    ranks = {ending: rank for rank, ending in enumerate(ENDINGS)}
    known = [path for path in paths if path.suffix.lower() in ranks and path.is_file()]
    for path in sorted(known, key=lambda path: ranks[path.suffix.lower()]):
        if (pair := _PAIR.fullmatch(path.name)) is not None:
            found.setdefault(path.with_name(pair[1]), path)
    # The archives' .arff come with another pair for each channel: ignore those.
    whole = {stem: stem.with_name(_CHANNEL.sub("", stem.name)) for stem in found}
    return sorted(found[stem] for stem in found if whole[stem] == stem or whole[stem] not in found)


def name_of(source: str | os.PathLike[str]) -> str:
    """Return the name of the data set in a file or folder."""
    name = os.path.basename(os.path.abspath(source))  # the link's name, not its target's
    pair = _PAIR.fullmatch(name)
    return name.removesuffix(".npz") if pair is None else pair[1]


def _read(path: Path) -> tuple[Any, Any]:
    """Read one file of a pair; the content determines the format."""
    expected = "lines without a header, each with a label and then the same number of samples"
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text[: 1 << 20]
        start = head.lstrip()[:1]  # a label may begin with "#", too
        if start != "@" and not (start in "#%" and "@data" in text.lower()):
            return _read_lines(text)
        expected = "header lines that end with @data, then one case per line, all of equal length"
        if re.search(r"^\s*@timestamps\s+true", head, re.IGNORECASE | re.MULTILINE):
            raise ValueError("it has @timestamps true; write the series without time stamps")
        if "@attribute" in head.lower():
            mark, start, labelled = ",", ".*@data.*", True
            X, _ = _aeon().load_from_arff_file(str(path))
        else:
            X, _, header = _aeon().load_from_ts_file(str(path), return_meta_data=True)
            mark, start, labelled = ":", r"\s*@data\s*", header["classlabel"]
        # aeon changes the case of labels, and each "nan" and "?" in them.
        cases = re.split(rf"(?im)^{start}$", text, maxsplit=1)[1].split("\n")
        y = np.array([case.rpartition(mark)[2].strip(" \t") for case in cases if case.strip()])
    # aeon checks little: a faulty file raises any of these.
    except (OSError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, UnicodeDecodeError):
            expected = "UTF-8 text; save the file as UTF-8"
        raise ValueError(
            f"{path} cannot be read as series ({type(error).__name__}: {error}); expected "
            f"{expected}"
        ) from error
    if not labelled or _missing(y):
        raise ValueError(
            f"{path} lacks some or all class labels ('?'); expected a header line "
            "'@classLabel true ...' and a label at the end of each line"
        )
    return X, y


def _missing(labels: npt.NDArray[Any]) -> bool:
    return bool(np.isin(np.char.lower(labels), ("", "?", "nan")).any())


def _read_lines(text: str) -> tuple[Any, Any]:
    """Read lines with a label and samples; the first line determines the separator."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    if (mark := next((mark for mark in "\t;," if mark in lines[0]), " ")) == " ":
        # NumPy would also split at spaces that are a part of labels, such as a no-break space.
        runs = re.compile('("[^"]*")|[ \t]+')
        lines = [runs.sub(lambda run: run[1] or " ", line.strip(" \t")) for line in lines]
    options: dict[str, Any] = {"delimiter": mark, "comments": None, "quotechar": '"', "ndmin": 2}
    labels = np.char.strip(np.loadtxt(lines, str, usecols=0, **options)[:, 0], " \t")
    if _missing(labels):
        raise ValueError("some labels are missing")
    if all(line.rstrip(" ").endswith(mark) for line in lines):
        lines = [line.rstrip(" ")[:-1] for line in lines]  # the mark also ends each line
    missing = re.compile(f"(?<={mark}) *[?]? *(?={mark}|$)")
    samples = (missing.sub("nan", line) for line in lines)
    X = np.loadtxt(samples, converters={0: lambda label: 0.0}, **options)[:, 1:]
    return X, labels


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        # np.load takes any text for a pickle, and advises to load it unsafely.
        with path.open("rb") as opened, np.lib.npyio.NpzFile(opened) as file:
            names = {name.lower(): name for name in file.files}  # Keras' sets have x_train
            return {key: file[names.get(key.lower(), key)] for key in _KEYS}
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{path} cannot be used as a data set ({error}); write it with np.savez and the keys "
            f"{', '.join(_KEYS)}, each a plain array of numbers (or, for labels, of strings)"
        ) from error


def _check(name: str, raw: dict[str, Any], nan_to_zero: bool) -> Dataset:
    X_train, X_test = (as_series(name, key, raw[key], nan_to_zero) for key in _KEYS[::2])
    warn_if_swapped(X_train.shape)
    if X_train.shape[1:] != X_test.shape[1:]:
        raise ValueError(
            f"{name}: expected X_test to have X_train's channels and time points "
            f"{X_train.shape[1:]}, but got {X_test.shape[1:]}; cut or pad one set"
        )
    y_train = as_labels(name, "y_train", raw["y_train"], len(X_train))
    y_test = as_labels(name, "y_test", raw["y_test"], len(X_test))
    classes = np.unique(y_train)
    known = classes.tolist()
    if all(isinstance(label, str) and re.fullmatch("[+-]?[0-9]+", label) for label in known):
        known.sort(key=int)  # "1" and "001" stay in the order of text
        classes = np.array(known)
    if len(known) < 2:
        raise ValueError(f"{name}: expected at least 2 classes in y_train, but got only {known}")
    if unseen := sorted(set(y_test.tolist()) - set(known), key=str):
        raise ValueError(
            f"{name}: y_test ({y_test.dtype}) contains labels that y_train ({y_train.dtype}) does "
            f"not: {unseen[:5]}; y_train has {known[:10]}"
        )
    at = {label: i for i, label in enumerate(known)}
    train, test = (np.array([at[y] for y in ys.tolist()], np.int64) for ys in (y_train, y_test))
    return Dataset(name, X_train, train, X_test, test, classes)
