"""Every source of a data set is read as promised, and every bad one named in one clear error."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseconv import datasets

SHAPES = {  # training cases, test cases, channels, time points, classes
    "ACSF1": (100, 100, 1, 1460, 10),
    "ArrowHead": (36, 175, 1, 251, 3),
    "BasicMotions": (40, 40, 6, 100, 4),
    "GunPoint": (50, 150, 1, 150, 2),
    "ItalyPowerDemand": (67, 1029, 1, 24, 2),
    "JapaneseVowels": (270, 370, 12, 25, 9),
    "OSULeaf": (200, 242, 1, 427, 6),
}


def arrays(**changes: Any) -> dict[str, Any]:
    """A good small data set, with some of its arrays replaced; None leaves one out."""
    generator = np.random.default_rng(0)
    good = {
        "X_train": generator.normal(size=(6, 2, 5)),
        "y_train": np.array([1, 0, 1, 0, 7, 7]),
        "X_test": generator.normal(size=(4, 2, 5)),
        "y_test": np.array([7, 0, 0, 1]),
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


def npz(folder: Path, **changes: Any) -> Path:
    path = folder / "toy.npz"
    np.savez(path, **arrays(**changes))
    return path


def ts(
    path: Path, cases: list[str], *, header: str = "@equalLength true\n@classLabel true a b"
) -> None:
    path.write_text("\n".join(["@problemName toy", header, "@data", *cases]) + "\n")


def ts_folder(folder: Path, train: list[str], test: list[str], **kwargs: Any) -> Path:
    folder.mkdir(exist_ok=True)
    ts(folder / "toy_TRAIN.ts", train, **kwargs)
    ts(folder / "toy_TEST.ts", test, **kwargs)
    return folder


@pytest.mark.parametrize("name", datasets.BUNDLED)
def test_bundled_sets_have_their_published_sizes(name: str) -> None:
    data = datasets.load(name)
    n_train, n_test, n_channels, n_timepoints, n_classes = SHAPES[name]
    assert data.name == name
    assert data.X_train.shape == (n_train, n_channels, n_timepoints)
    assert data.X_test.shape == (n_test, n_channels, n_timepoints)
    assert (data.n_channels, data.n_timepoints) == (n_channels, n_timepoints)
    assert data.X_train.dtype == data.X_test.dtype == np.float32
    for y, n_cases in ((data.y_train, n_train), (data.y_test, n_test)):
        assert (y.shape, y.dtype) == ((n_cases,), np.int64)
        assert set(np.unique(y)) == set(range(n_classes))
    assert len(data.classes) == n_classes


def test_npz_keeps_values_and_encodes_labels(tmp_path: Path) -> None:
    data = datasets.load(npz(tmp_path))
    given = arrays()
    assert data.name == "toy"
    np.testing.assert_array_equal(data.X_train, given["X_train"].astype(np.float32))
    np.testing.assert_array_equal(data.X_test, given["X_test"].astype(np.float32))
    np.testing.assert_array_equal(data.classes[data.y_train], given["y_train"])
    np.testing.assert_array_equal(data.classes[data.y_test], given["y_test"])
    assert data.classes.tolist() == [0, 1, 7]
    X = np.arange(30.0).reshape(6, 5)  # a matrix is univariate
    data = datasets.load(str(npz(tmp_path, X_train=X, X_test=X[:4])))
    np.testing.assert_array_equal(data.X_train[:, 0], X)
    assert data.X_test.shape == (4, 1, 5)


@pytest.mark.parametrize(
    "labels",
    [["b", "a"] * 3, [True, False] * 3, [2.5, -1.0] * 3, [200, 3] * 3],
    ids=["str", "bool", "float", "int"],
)
def test_labels_of_any_dtype(tmp_path: Path, labels: list[Any]) -> None:
    y = np.array(labels)
    data = datasets.load(npz(tmp_path, y_train=y, y_test=y[:4]))
    assert data.y_train.tolist() == [1, 0] * 3
    assert data.classes.dtype == y.dtype
    np.testing.assert_array_equal(data.classes[data.y_test], y[:4])


def test_ts_folder(tmp_path: Path) -> None:
    header = "@univariate false\n@classLabel true a b"
    ts_folder(tmp_path, ["1,2:3,4:a", "5,6:7,8:b"], ["0,1:2,3:b"], header=header)
    data = datasets.load(tmp_path)
    assert data.name == "toy"
    assert data.X_train.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert data.X_test.tolist() == [[[0, 1], [2, 3]]]
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1], [1])
    assert data.classes.tolist() == ["a", "b"]
    header = "@equalLength false\n@classLabel true a b"  # though it is
    ts_folder(tmp_path, ["1,2:a", "5,6:b"], ["0,1:b"], header=header)
    assert datasets.load(tmp_path).X_train.tolist() == [[[1, 2]], [[5, 6]]]


def test_missing_values_as_zero_when_asked(tmp_path: Path) -> None:
    ts_folder(tmp_path, ["1,?:a", "NaN,6:b"], ["0,1:b"])
    assert datasets.load(tmp_path, nan_to_zero=True).X_train.tolist() == [[[1, 0]], [[0, 6]]]
    X = np.where(np.arange(60).reshape(6, 2, 5) % 7 == 0, np.nan, 1.0)
    data = datasets.load(npz(tmp_path, X_train=X), nan_to_zero=True)
    np.testing.assert_array_equal(data.X_train, np.nan_to_num(X))


def refused(*words: str, source: Path | str) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        datasets.load(source)
    for word in words[1:]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_test": None}, ["lacks y_test", "holds X_train, y_train, X_test", "np.savez"]),
        ({"X_train": np.zeros(6)}, ["X_train of shape (n_cases, n_channels", "(6,)"]),
        ({"X_test": np.zeros((4, 1, 2, 5))}, ["X_test of shape", "(4, 1, 2, 5)"]),
        ({"X_train": np.zeros((0, 2, 5))}, ["none of them 0", "(0, 2, 5)"]),
        ({"X_train": np.zeros((6, 2, 0)), "X_test": np.zeros((4, 2, 0))}, ["(6, 2, 0)"]),
        ({"X_train": np.full((6, 2, 5), "x")}, ["real numbers", "<U1", "float32"]),
        ({"X_train": np.zeros((6, 2, 5), complex)}, ["real numbers", "complex128"]),
        ({"X_train": np.zeros((6, 2, 5), bool)}, ["real numbers", "bool"]),
        ({"y_train": np.array([b"a", b"b"] * 3)}, ["y_train to hold strings", "|S1", "astype"]),
        ({"y_test": np.arange(4) + 0j}, ["y_test to hold strings", "complex128"]),
        ({"y_train": np.arange(6).astype("M8[D]")}, ["y_train to hold strings", "datetime64"]),
        ({"y_train": np.arange(6, dtype=np.longdouble)}, ["y_train to hold", "real numbers"]),
        ({"X_test": np.zeros((4, 2, 6))}, ["X_train's channels", "(2, 5)", "(2, 6)", "pad"]),
        ({"X_test": np.zeros((4, 3, 5))}, ["(2, 5)", "(3, 5)"]),
        ({"y_train": np.zeros(6)}, ["at least 2 classes", "[0.0]"]),
        ({"y_train": np.arange(5)}, ["y_train of shape (6,)", "(5,)"]),
        ({"y_train": np.eye(6)}, ["y_train of shape (6,)", "(6, 6)"]),
        ({"y_train": np.array([0, 1, np.nan, 0, 1, 1])}, ["a label for each case", "y_train"]),
        ({"y_test": np.array([0, 1, 9, 8])}, ["does not: [8, 9]", "knows [0, 1, 7]", "remove"]),
        ({"y_test": np.array(["0", "1", "7", "0"])}, ["does not: ['0', '1', '7']", "[0, 1, 7]"]),
        ({"X_train": np.array([None, 1], dtype=object)}, ["cannot be used", "plain array"]),
    ],
)
def test_bad_npz(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    refused(*words, source=npz(tmp_path, **changes))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_non_finite_values(tmp_path: Path, value: float) -> None:
    X = arrays()["X_test"]
    X[2, 1, 3] = value
    refused(
        "finite values in X_test", "1 of 40", "case 2",
        "(--nan-to-zero)" if np.isnan(value) else "fill them in first",
        source=npz(tmp_path, X_test=X),
    )  # fmt: skip
    if not np.isnan(value):
        with pytest.raises(ValueError, match=r"fill them in first$"):
            datasets.load(npz(tmp_path, X_test=X), nan_to_zero=True)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path: Path, write: Callable[..., None], count_cases: Any) -> None:
    path = tmp_path / "toy.npz"
    write(path, **arrays())
    content, whole = path.read_bytes(), datasets.load(path)
    places = range(0, len(content), 13)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with contextlib.suppress(ValueError):
            read = datasets.load(path)  # some bytes, such as dates, do not matter
            for key in ("X_train", "y_train", "X_test", "y_test", "classes"):
                np.testing.assert_array_equal(getattr(read, key), getattr(whole, key))
    cuts = [content[: int(len(content) * share)] for share in (0.1, 0.5, 0.9)]
    for damaged in (content[:100] + bytes(20) + content[120:], *cuts):
        path.write_bytes(damaged)
        refused(str(path), "cannot be used", source=path)
    count_cases(len(places))


def test_npz_of_something_else_than_arrays(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    path.write_bytes(b"PK\x03\x04 cut off")
    refused(str(path), "cannot be used", "np.savez", source=path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused("not a zip file", "np.savez", source=path)
    path.write_text("time,value\n0,1.5\n")
    refused("not a zip file", "np.savez", source=path)
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", "text")
    refused("cannot be used", "not all of its members are arrays", source=path)
    header = io.BytesIO()
    large = {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20, 2**15)}
    np.lib.format.write_array_header_1_0(header, large)
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", header.getvalue())
    refused("cannot be used", source=path)


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    other = tmp_path / "toy.csv"
    other.write_text("1,2\n")
    refused("'GunPont'", "GunPoint", "OSULeaf", "_TRAIN.ts", ".npz", "not exist", source="GunPont")
    refused("does not exist", ".npz", source=tmp_path / "none.npz")
    refused("cannot be read (File name too long)", "GunPoint", source="a" * 5000)
    refused("cannot be read", "null byte", source="a\0b")
    refused("a file of another kind", "X_train, y_train, X_test, y_test", source=other)


def test_a_bundled_name_and_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused("'GunPoint'", "does not exist", "as a str", source=Path("GunPoint"))
    own = ts_folder(tmp_path / "GunPoint", ["1,2:a", "5,6:b"], ["0,1:b"])
    for path in (Path("GunPoint"), Path("./GunPoint"), "./GunPoint", own):
        assert datasets.load(path).X_train.tolist() == [[[1, 2]], [[5, 6]]]
    with pytest.warns(UserWarning, match=r"bundled data set; .* give './GunPoint' or a Path"):
        assert datasets.load("GunPoint").X_train.shape == (50, 1, 150)


def test_arguments_of_other_types(tmp_path: Path) -> None:
    for source in (None, 3, b"GunPoint"):
        with pytest.raises(TypeError, match="a str or a Path, but got"):
            datasets.load(source)  # type: ignore[arg-type]
    for value in ("no", 1, None):
        with pytest.raises(TypeError, match="nan_to_zero must be True or False, but got"):
            datasets.load(npz(tmp_path), nan_to_zero=value)  # type: ignore[arg-type]
    assert datasets.load(npz(tmp_path), nan_to_zero=np.True_).name == "toy"  # type: ignore[arg-type]


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = os.fsencode(npz(tmp_path))
    other = path.replace(b"toy", b"d\xff")
    os.rename(path, other)
    assert datasets.load(os.fsdecode(other)).name == "d\\xff"


def test_folders_without_one_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(str(tmp_path), "NAME_TRAIN.ts and NAME_TEST.ts", "holds nothing", source=tmp_path)
    ts(tmp_path / "a_TRAIN.ts", ["1:a"])
    refused("one pair", "holds a_TRAIN.ts", source=tmp_path)
    for stem in ("a", "b"):
        for split in ("TRAIN", "TEST"):
            ts(tmp_path / f"{stem}_{split}.ts", ["1:a", "2:b"])
    refused("the pairs a, b", "one data set", source=tmp_path)
    own = tmp_path.rename(tmp_path.with_name("b"))  # of several pairs the folder's own is read
    assert datasets.load(own).name == "b"

    def forbidden(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", forbidden)
    refused(str(own), "cannot be read", "Permission denied", source=own)


@pytest.mark.parametrize(
    ("train", "header", "words"),
    [
        (["1,2:a", "1,2,3:b"], "@classLabel true a b", ["toy_TRAIN.ts", "equally long"]),
        (
            ["1,2:a", "1,2,3:b"],
            "@equalLength false\n@classLabel true a b",
            ["one length", "from 2 to 3", "Padder"],
        ),
        (["1,2:3,4:a", "1,2:b"], "@classLabel true a b", ["toy_TRAIN.ts", "cannot be read"]),
        (["1,x:a", "1,2:b"], "@classLabel true a b", ["toy_TRAIN.ts", "cannot be read"]),
        (["1,2:0.5", "1,3:0.25"], "@targetlabel true", ["no class labels", "@classLabel"]),
        (["1,2", "1,3"], "@classLabel false", ["no class labels"]),
        ([], "@classLabel true a b", ["toy_TRAIN.ts", "no cases", "@data"]),
        (["1,2:a", "1,2:?"], "@classLabel true a b", ["toy_TRAIN.ts", "the label of 1 of its 2"]),
        (["1,?:a", "1,2:b"], "@classLabel true a b", ["finite values in X_train", "case 0"]),
    ],
)
def test_bad_ts(tmp_path: Path, train: list[str], header: str, words: list[str]) -> None:
    refused(*words, source=ts_folder(tmp_path, train, train, header=header))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b"@problemName toy\n1,2:a\n"])
def test_foreign_ts(tmp_path: Path, content: bytes) -> None:
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"toy_{split}.ts").write_bytes(content)
    refused("toy_TRAIN.ts", "@data", source=tmp_path)


def test_without_aeon_only_npz_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aeon.datasets", None)
    with pytest.raises(RuntimeError, match=r"aeon reads.*pip install 'sparseconv\[tsc\]"):
        datasets.load("GunPoint")
    assert datasets.load(npz(tmp_path)).n_channels == 2
