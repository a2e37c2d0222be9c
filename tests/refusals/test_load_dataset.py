"""What ``datasets.load`` refuses: an .npz file, a .ts folder or a name."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from refusals import refusals

from sparseconv import datasets

X, y = np.random.default_rng(0).normal(size=(6, 2, 5)), np.array([1, 0, 1, 0, 7, 7])
INFINITE = X.copy()
INFINITE[2, 1, 3] = np.inf
LABELS = "@classLabel true a b"


def npz(**changes: Any) -> None:
    arrays = {"X_train": X, "y_train": y, "X_test": X, "y_test": y} | changes
    with TemporaryDirectory() as folder:
        np.savez(f"{folder}/a.npz", **{key: a for key, a in arrays.items() if a is not None})
        datasets.load(f"{folder}/a.npz")


def ts(cases: list[str], header: str = LABELS) -> None:
    text = "\n".join(["@problemName toy", header, "@data", *cases]) + "\n"
    folder_of({f"a_{split}.ts": text for split in ("TRAIN", "TEST")})


def folder_of(files: dict[str, str], name: str = "") -> None:
    """Load the folder that holds these files, or one of them."""
    with TemporaryDirectory() as folder:
        for file, text in files.items():
            Path(folder, file).write_bytes(text.encode(errors="surrogateescape"))
        datasets.load(Path(folder, name))


def lines(text: str) -> None:
    folder_of({f"a_{split}.csv": text for split in ("TRAIN", "TEST")})


test_load_dataset = refusals(
    (lambda: npz(y_test=None), ValueError, "y_test is not a file in the archive"),
    (lambda: npz(X_train=y), ValueError, "contain real numbers of shape (n_cases, n_channels, n_"),
    (lambda: npz(X_train=np.full(X.shape, "x")), ValueError, "no axis of length 0, but got <U1"),
    (lambda: npz(X_test=INFINITE), ValueError, "1 of 60 are missing (NaN), infinite or too large"),
    (lambda: npz(X_test=np.where(INFINITE > 9, np.nan, X)), ValueError, "=True (--nan-to-zero)"),
    (lambda: npz(X_test=X[:, :, :4]), ValueError, "time points (2, 5), but got (2, 4)"),
    (lambda: npz(y_train=np.array([b"a", b"b"] * 3)), ValueError, "convert bytes with .as"),
    (lambda: npz(y_train=np.zeros(6)), ValueError, "2 classes in y_train, but got only [0.0]"),
    (lambda: npz(y_train=np.where(y == 7, np.nan, y)), ValueError, "but some of the 6 are missing"),
    (lambda: npz(y_test=y[:5]), ValueError, "for each of 6 cases, but got int64 of shape (5,)"),
    (lambda: npz(y_train=np.eye(8)[y]), ValueError, "(6, 8); for one-hot labels, pass y_train"),
    (lambda: npz(y_test=y + 1), ValueError, "labels that y_train does not: [2, 8]"),
    (lambda: npz(y_test=y.astype(str)), ValueError, "in both; the dtypes are int64 and <U21"),
    (lambda: npz(X_train=np.array([None])), ValueError, "cannot be used as a data set"),
    (lambda: ts(["1,2:a", "1,2,3:b"]), ValueError, "a_TRAIN.ts cannot be read as series"),
    (lambda: ts(["1,2:a", "1,2,3:b"], f"@equalLength false\n{LABELS}"), ValueError,
     "lengths from 2 to 3; first pad or"),
    (lambda: ts(["1,2", "1,3"], "@classLabel false"), ValueError, "lacks some or all class labels"),
    (lambda: ts(["1,2:a", "1,2:?"]), ValueError, "some or all class labels ('?')"),
    (lambda: ts(["(0,-1.0),(1,2.0):a"], f"@TimeStamps  true\n{LABELS}"), ValueError,
     "has @timestamps true; write the series without time stamps"),
    (lambda: datasets.load("GunPont"), ValueError,
     "no data set 'GunPont' (did you mean 'GunPoint'?)"),
    (lambda: folder_of({"a.csv": "1,2"}, "a.csv"), ValueError, "or a .npz file with X_train, y_tr"),
    (lambda: folder_of({"a.npz": "a,b"}, "a.npz"), ValueError, "set (File is not a zip file)"),
    (lambda: folder_of({"a.ts": "@data"}), ValueError, "NAME_TEST (.ts, .arff, .tsv, .csv"),
    (lambda: folder_of({"a_TEST.ts": "@data"}), ValueError, "a_TRAIN.ts is missing: a data set is"),
    (lambda: lines("label,t0\n1,2"), ValueError, "'t0' to float64 at row 0, column 2"),
    (lambda: lines("1,2,3\n2,4"), ValueError, "the number of columns changed from 3 to 2 at row 2"),
    (lambda: lines("1,2\n?,4"), ValueError, "some labels are missing"),
    (lambda: lines("1,2\nNaN,4"), ValueError, "some labels are missing); expected"),
    (lambda: lines("1,2\n2,?"), ValueError, "1 of 2 are missing (NaN)"),
    (lambda: lines("1\n2"), ValueError, "but got float64 of shape (2, 1, 0)"),
    (lambda: lines("caf\udce9,2"), ValueError, "save the file as UTF-8"),
    (lambda: lines("\n"), ValueError, "it is empty"),
    (lambda: folder_of({"a_TRAIN.csv": "1,2"}), ValueError, "a_TEST.csv is missing"),
    (lambda: lines("0,1,2\n1.0,3,4\n2.0,5,6"), ValueError, "its first line contains 0, 1, 2"),
    (lambda: lines("label,0,1,2\na,3,4,4\nb,5,6,1"), ValueError, "the column names that pandas"),
    (lambda: lines("\n".join(f"{i},2,{i % 2}" for i in range(10))), ValueError,
     "index=False (in R, row.names=FALSE), or write labels as words, such as class1"),
    (lambda: lines("7,1,7\n9,2,4\n" + "\n".join(f"{i}1,1,6" for i in range(8))), ValueError,
     "distinct whole numbers, like the row numbers of pandas and R"),
    (lambda: lines("\n".join(f"{max(0.6, i / 90)},2,{i % 2}" for i in range(90))), ValueError,
     "36 different labels, but only 2 numbers in the last column); expected lines without a he"),
    (lambda: lines("0.1,2,a\n0.3,4,b"), ValueError, "'a' to float64 at row 0, column 3.);"),
    (lambda: lines("\n".join(f"0.{i},2,{i % 2}" for i in range(9))), ValueError,
     "9 different labels, but only 2 numbers in the last column); expected lines without a header"),
)  # fmt: skip
