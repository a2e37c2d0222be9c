"""Find, check and choose the data sets of an archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparseconv import datasets
from sparseconv.datasets import Dataset

# Accuracies that others published, and which set belongs to which archive.
PUBLISHED = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class Archive:
    sources: Mapping[str, str]  # what ``datasets.load`` reads each from
    shapes: Mapping[str, Shape]
    checksums: Mapping[str, str]  # of all values: two data sets may have one name
    broken: Mapping[str, str]  # what is wrong with those that cannot be read


@dataclass(frozen=True)
class Shape:
    n_train: int
    n_test: int
    n_channels: int
    n_timepoints: int
    n_classes: int

    @classmethod
    def of(cls, data: Dataset) -> Shape:
        return cls(
            len(data.X_train), len(data.X_test), data.n_channels, data.n_timepoints,
            len(data.classes),
        )  # fmt: skip

    @property
    def train_points(self) -> int:
        """Estimate the cost of an epoch."""
        return self.n_train * self.n_channels * self.n_timepoints


def open_archive(folder: Path | None) -> Archive:
    """Find and read all data sets below a folder; None means aeon's bundled ones.

    The data sets are ``NAME.npz`` files, and pairs ``NAME_TRAIN`` and ``NAME_TEST`` that
    ``datasets.load`` can read, at any depth.
    """
    sources = {name: name for name in datasets.BUNDLED} if folder is None else find(folder)
    shapes, checksums, broken = {}, {}, {}
    for name, source in sources.items():
        try:
            data = read(source)
        except (ValueError, RuntimeError) as error:
            broken[name] = str(error)
        else:
            shapes[name], checksums[name] = Shape.of(data), _checksum(data)
    return Archive(sources, shapes, checksums, broken)


def _checksum(data: Dataset) -> str:
    found = sha256()
    for array in (data.X_train, data.y_train, data.X_test, data.y_test):
        found.update(repr((array.shape, array.dtype.str)).encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()[:16]


def find(folder: Path) -> dict[str, str]:
    """Return each data set's file below a folder; for a pair, return the training file."""
    folder = folder.resolve()  # a relative path could be the name of one of aeon's sets
    found: dict[str, str] = {}
    pairs = datasets.training_files(folder.rglob("*_TRAIN*"))
    for path in sorted([*folder.rglob("*.npz"), *pairs]):
        name = datasets.name_of(path)
        if name in found:
            raise ValueError(
                f"the archive contains {name} twice, as {found[name]} and {path}; remove one"
            )
        found[name] = str(path)
    if not found:
        raise ValueError(
            f"the archive {folder} contains no data set; expected a folder with NAME.npz files, or "
            "with pairs NAME_TRAIN and NAME_TEST (.ts, .tsv, .csv, .txt, .arff or no extension)"
        )
    return dict(sorted(found.items()))


def read(source: str, series: str = "raw", split: str = "own") -> Dataset:
    """Read a data set with missing values as 0, as in the paper.

    ``"z-normalised"`` scales each channel to mean 0 and variance 1 over the training set. ``"within
    subjects"`` trains on the first half of each subject's segments of a class, and tests on the
    rest; it needs a .npz file that also has subject_train, subject_test, segment_train and
    segment_test.
    """
    data = datasets.load(source, nan_to_zero=True)
    if not data.X_train.any():
        raise ValueError(
            f"expected training series with values in {source}, but all are 0 or missing; remove "
            "this data set"
        )
    if split == "within subjects":
        data = _split_within_subjects(data, source)
    if series == "raw":
        return data
    mean = data.X_train.mean((0, 2), keepdims=True, dtype=np.float64)
    spread = data.X_train.std((0, 2), keepdims=True, dtype=np.float64)
    spread[spread == 0] = 1
    train, test = (((X - mean) / spread).astype(np.float32) for X in (data.X_train, data.X_test))
    return replace(data, X_train=train, X_test=test)


def _split_within_subjects(data: Dataset, source: str) -> Dataset:
    with np.load(source, allow_pickle=False) as file:
        subject, segment = (
            np.concatenate([file[f"{key}_{part}"] for part in ("train", "test")])
            for key in ("subject", "segment")
        )
    X, y = (
        np.concatenate(pair) for pair in ((data.X_train, data.X_test), (data.y_train, data.y_test))
    )
    cases = pd.DataFrame({"subject": subject, "label": y, "segment": segment})
    held = cases.sort_values("segment", kind="stable").groupby(["subject", "label"])["segment"]
    train = (held.cumcount() < held.transform("size") // 2).sort_index().to_numpy()
    return replace(data, X_train=X[train], y_train=y[train], X_test=X[~train], y_test=y[~train])


@cache
def published() -> pd.DataFrame:
    """Read published.csv by data set: ``archive``, and a column per network."""
    return pd.read_csv(PUBLISHED, index_col="dataset", float_precision="round_trip")


def published_accuracy(network: str) -> pd.Series:
    return published()[network].dropna()


def members(archive: str) -> list[str]:
    """Name the data sets of ``"ucr85"``, ``"ucr2018"`` (new in that year) or ``"uea"``."""
    return published().index[published()["archive"] == archive].tolist()


ARCHIVES = ("ucr85", "ucr2018", "uea")


def choose(archive: Archive, wanted: Any) -> tuple[list[str], list[str]]:
    """Return the available data sets that ``wanted`` names, cheapest first, and the missing ones.

    ``wanted`` is "all", an archive's name, a list of names, or a table with ``of`` and ``without``
    (each one of these) and ``cheapest`` (how many). Only sets named one by one can be missing.
    """
    table = as_table(wanted)
    if "of" not in table or table.keys() - {"of", "without", "cheapest"}:
        raise ValueError(
            "sets must be a name, a list of names, or a table with of, without and cheapest, but "
            f"got {wanted!r}"
        )
    names = named(archive, table["of"])
    absent = [name for name in names if name not in archive.sources]
    without = named(archive, table.get("without", []))
    names = [name for name in names if name in archive.shapes and name not in without]
    names.sort(key=lambda name: (archive.shapes[name].train_points, name))
    return names[: table.get("cheapest")], [] if table["of"] in ARCHIVES else absent


def as_table(wanted: Any) -> dict[str, Any]:
    return wanted if isinstance(wanted, dict) else {"of": wanted}


def named(archive: Archive, of: Any) -> list[str]:
    """Return the data sets that "all", an archive's name, a name or a list of names refers to."""
    if of == "all":
        return list(archive.shapes)
    if of in ARCHIVES:
        return members(of)
    names = [of] if isinstance(of, str) else list(of)
    known = [*archive.sources, *published().index]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"the plan names {', '.join(map(repr, unknown))}, which the archive lacks; the "
            f"archive has {', '.join(archive.shapes)}; instead of a list, sets may be one of all, "
            f"{', '.join(ARCHIVES)}"
        )
    return names
