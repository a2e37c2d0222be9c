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


TIMED = f"@TimeStamps  true\n{LABELS}"
UNEQUAL = f"@equalLength false\n{LABELS}"

test_load_dataset = refusals(
    (lambda: npz(y_test=None), ValueError, "y_test"),
    (lambda: npz(X_train=y), ValueError, "X_train"),
    (lambda: npz(X_test=INFINITE), ValueError, "1 of 60"),
    (lambda: npz(X_test=np.where(INFINITE > 9, np.nan, X)), ValueError, "--nan-to-zero"),
    (lambda: npz(X_test=X[:, :, :4]), ValueError, "X_test"),
    (lambda: npz(y_train=np.array([b"a", b"b"] * 3)), ValueError, "bytes"),
    (lambda: npz(y_train=np.zeros(6)), ValueError, "2 classes in y_train"),
    (lambda: npz(y_train=np.where(y == 7, np.nan, y)), ValueError, "y_train"),
    (lambda: npz(y_test=y[:5]), ValueError, "y_test"),
    (lambda: npz(y_train=np.eye(8)[y]), ValueError, "y_train"),
    (lambda: npz(y_test=y + 1), ValueError, "does not: [2, 8]"),
    (lambda: npz(y_test=y.astype(str)), ValueError, "y_test (<U21)"),
    (lambda: npz(X_train=np.array([None])), ValueError, "cannot be used as a data set"),
    (lambda: ts(["1,2:a", "1,2,3:b"]), ValueError, "a_TRAIN.ts"),
    (lambda: ts(["1,2:a", "1,2,3:b"], UNEQUAL), ValueError, "one length"),
    (lambda: ts(["1,2", "1,3"], "@classLabel false"), ValueError, "class labels"),
    (lambda: ts(["(0,-1.0),(1,2.0):a"], TIMED), ValueError, "@timestamps true"),
    (lambda: datasets.load("GunPont"), ValueError, "GunPoint, Italy"),
    (lambda: folder_of({"a.csv": "1,2"}, "a.csv"), ValueError, "no data set"),
    (lambda: folder_of({"a.npz": "a,b"}, "a.npz"), ValueError, "not a zip file"),
    (lambda: folder_of({"a.ts": "@data"}), ValueError, "NAME_TRAIN"),
    (lambda: folder_of({"a_TEST.ts": "@data"}), ValueError, "a_TRAIN.ts is missing"),
    (lambda: lines("label,t0\n1,2"), ValueError, "'t0'"),
    (lambda: lines("1,2,3\n2,4"), ValueError, "columns"),
    (lambda: lines("1,2\n?,4"), ValueError, "some labels are missing"),
    (lambda: lines("1,2\n2,?"), ValueError, "1 of 2 are missing"),
    (lambda: lines("1\n2"), ValueError, "shape (2, 1, 0)"),
    (lambda: lines("caf\udce9,2"), ValueError, "UTF-8"),
    (lambda: lines("\n"), ValueError, "it is empty"),
)  # fmt: skip
