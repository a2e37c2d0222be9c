"""What ``datasets.load`` refuses: an .npz file, a .ts folder or a name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseconv import datasets

X, y = np.random.default_rng(0).normal(size=(6, 2, 5)), np.array([1, 0, 1, 0, 7, 7])
INFINITE = X.copy()
INFINITE[2, 1, 3] = np.inf
LABELS = "@classLabel true a b"


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"y_test": None}, "y_test is not a file in the archive"),
        (
            {"X_train": np.zeros(6)},
            "expected X_train to hold real numbers of shape (n_cases, n_chan",
        ),
        ({"X_train": np.full((6, 2, 5), "x")}, "none of them 0, but got <U1"),
        ({"X_test": INFINITE}, "1 of 60 are missing (NaN), infinite or too large"),
        ({"X_test": np.where(INFINITE > 9, np.nan, X)}, "nan_to_zero=True (--nan-to-zero)"),
        ({"X_test": np.zeros((4, 2, 6))}, "time points (2, 5), but got (2, 6)"),
        ({"y_train": np.array([b"a", b"b"] * 3)}, "y.astype(str)"),
        ({"y_train": np.zeros(6)}, "at least 2 classes in y_train, but got only [0.0]"),
        ({"y_train": np.array([0, 1, np.nan, 0, 1, 1])}, "(6,), some of them missing"),
        ({"y_test": y[:5]}, "for each of 6 cases, but got int64 of shape (5,)"),
        ({"y_test": np.array([0, 1, 9, 8, 1, 1])}, "labels that y_train does not: [8, 9]"),
        ({"X_train": np.array([None, 1], dtype=object)}, "cannot be used as a data set"),
    ],
)
def test_npz(changes: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    arrays = {"X_train": X, "y_train": y, "X_test": X, "y_test": y} | changes
    np.savez(tmp_path / "a.npz", **{key: a for key, a in arrays.items() if a is not None})
    with pytest.raises(ValueError, match=re.escape(fragment)):
        datasets.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("cases", "header", "fragment"),
    [
        (["1,2:a", "1,2,3:b"], LABELS, "a_TRAIN.ts cannot be read as a .ts file"),
        (["1,2:a", "1,2,3:b"], "@equalLength false\n" + LABELS, "lengths from 2 to 3; pad or cut"),
        (["1,2", "1,3"], "@classLabel false", "has no class labels; expected a header line"),
        (["1,2:a", "1,2:?"], LABELS, "some of them missing"),
    ],
)
def test_ts(cases: list[str], header: str, fragment: str, tmp_path: Path) -> None:
    for split in ("TRAIN", "TEST"):
        text = "\n".join(["@problemName toy", header, "@data", *cases]) + "\n"
        (tmp_path / f"a_{split}.ts").write_text(text)
    with pytest.raises(ValueError, match=re.escape(fragment)):
        datasets.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("", None, "no data set 'GunPont': expected the name of one of aeon's bundled sets"),
        ("a.csv", "1,2", "or a .npz file with X_train, y_train, X_test, y_test"),
        ("a.npz", "time,value", "cannot be used as a data set (File is not a zip file)"),
        ("a_TEST.ts", "@data", "and NAME_TEST.ts in the folder"),
    ],
)
def test_paths(name: str, content: str | None, fragment: str, tmp_path: Path) -> None:
    source: str | Path = "GunPont"
    if content is not None:
        (tmp_path / name).write_text(content)
        source = tmp_path if name.endswith(".ts") else tmp_path / name
    with pytest.raises(ValueError, match=re.escape(fragment)):
        datasets.load(source)
