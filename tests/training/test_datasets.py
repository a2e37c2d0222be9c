"""Every source of a data set is read as promised, and every bad one named in one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseconv import datasets

RANDOM = np.random.default_rng(0)
GOOD: dict[str, Any] = {
    "X_train": RANDOM.normal(size=(6, 2, 5)), "y_train": np.array([1, 0, 1, 0, 7, 7]),
    "X_test": RANDOM.normal(size=(4, 2, 5)), "y_test": np.array([7, 0, 0, 1]),
}  # fmt: skip


def npz(folder: Path, **changes: Any) -> Path:
    """A good small data set, with some of its arrays replaced."""
    path = folder / "toy.npz"
    np.savez(path, **(GOOD | changes))
    return path


def ts_folder(folder: Path, train: list[str], test: list[str], header: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for split, cases in (("TRAIN", train), ("TEST", test)):
        lines = ["@problemName toy", header, "@classLabel true a b", "@data", *cases]
        (folder / f"toy_{split}.ts").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    "labels",
    [["b", "NaN"] * 3, [True, False] * 3, [2.5, -1.0] * 3, [200, 3] * 3],
    ids=["str", "bool", "float", "int"],
)
def test_npz(tmp_path: Path, labels: list[Any]) -> None:
    """Values are kept, labels of any type become numbers; a matrix has one channel."""
    y = np.array(labels)
    data = datasets.load(npz(tmp_path, y_train=y, y_test=y[:4]))
    assert data.name == "toy"
    np.testing.assert_array_equal(data.X_train, GOOD["X_train"].astype(np.float32))
    np.testing.assert_array_equal(data.X_test, GOOD["X_test"].astype(np.float32))
    assert data.y_train.tolist() == [1, 0] * 3
    assert data.classes.dtype == y.dtype
    np.testing.assert_array_equal(data.classes[data.y_test], y[:4])
    X = np.arange(30.0).reshape(6, 5)
    data = datasets.load(str(npz(tmp_path, X_train=X, X_test=X[:4])))
    lower = {"x_train": X, "y_train": y[:, None], "x_test": X[:4], "y_test": y[:4].tolist()}
    np.savez(tmp_path / "lower.npz", **lower)
    assert np.array_equal(datasets.load(tmp_path / "lower.npz").X_test, data.X_test)
    np.testing.assert_array_equal(data.X_train[:, 0], X)
    assert data.X_test.shape == (4, 1, 5)


def test_ts_folder(tmp_path: Path) -> None:
    ts_folder(tmp_path, ["1,2:3,4:a", "5,6:7,8:b"], ["0,1:2,3:b"], "@univariate false")
    data = datasets.load(tmp_path)
    assert data.name == "toy"
    assert data.X_train.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert data.X_test.tolist() == [[[0, 1], [2, 3]]]
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1], [1])
    assert data.classes.tolist() == ["a", "b"]
    ts_folder(tmp_path, ["1,2:a", "5,6:b"], ["0,1:b"], "@equalLength false")  # though it is
    assert datasets.load(tmp_path).X_train.tolist() == [[[1, 2]], [[5, 6]]]


def lines(mark: str, label: str = "{}") -> str:
    """The series of ``GOOD``'s first channel, and labels 0, 1 and 7 before them."""
    rows = zip(GOOD["y_train"], GOOD["X_train"][:, 0].tolist(), strict=True)
    return "\n".join(mark.join([label.format(y), *map(repr, x)]) for y, x in rows)


@pytest.mark.parametrize(
    ("ending", "text", "classes"),
    [
        (".tsv", lines("\t"), "0 1 7"),
        ("", lines(","), "0 1 7"),
        (".txt", "\n" + lines("   ", "  {}.000e+00") + " \n\n", "0.000e+00 1.000e+00 7.000e+00"),
        (".csv", lines(";", '"a {}"').replace("\n", "\r\n"), "a 0/a 1/a 7"),
        (".CSV", "\ufeff" + lines("\t", "{}.5"), "0.5 1.5 7.5"),
        (".dat", lines(",", "?{}"), "?0 ?1 ?7"),
        (".csv", lines(",", "#{}"), "#0 #1 #7"),
        (".csv", lines(",").replace("\n", ",\n") + ", ", "0 1 7"),
        (".txt", lines("  ", '"a  {}"'), "a  0/a  1/a  7"),
    ],
)  # fmt: skip
def test_lines_of_label_and_samples(tmp_path: Path, ending: str, text: str, classes: str) -> None:
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"Toy_{split}{ending}").write_text(text, encoding="utf-8")
        (tmp_path / f"Toy_{split}{ending}").rename(tmp_path / f"blob {split}")
        (tmp_path / f"Toy_{split}{ending}").symlink_to(tmp_path / f"blob {split}")
    places = [tmp_path / f"Toy_{split}{ending}" for split in ("TRAIN", "TEST")]
    for place in places if ending == ".dat" else [*places, tmp_path]:
        data = datasets.load(place)
        assert data.name == datasets.name_of(places[0]) == "Toy"
        np.testing.assert_array_equal(data.X_train[:, 0], GOOD["X_train"][:, 0].astype("f4"))
        assert data.classes.tolist() == classes.split("/" if "/" in classes else None)
        assert data.y_test.tolist() == [1, 0, 1, 0, 2, 2]


CODES = [
    ["1.1", "1.10", "3.1"], ["11", "1_1", "1_11"], ["10", "1e1", "2"], ["A", "a", "banana"],
    ["164889003", "999000011000000103", "999000011000000104"], ["-3", "001", "1", "2", "10"],
    ["a?", "aNaN"], ["a", "a\x0bb", "a\xa0", "a\xa0b", "a\u2028b", "\u2003a"],
]  # fmt: skip


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt", "", ".ts", ".arff", ".npz"])
@pytest.mark.parametrize("codes", CODES, ids="/".join)
def test_labels_are_the_file_s_text(tmp_path: Path, codes: list[str], ending: str) -> None:
    """Two texts are never one class; only integers are sorted as numbers."""
    labels = [*codes[::-1], *codes]
    X = np.arange(3.0 * len(labels)).reshape(-1, 3) / 8
    between = {".tsv": "\t", ".txt": " \t "}.get(ending, ",")
    samples = [between.join(map(str, x)) for x in X]
    text = "\n".join(f"{label}{between}{x}" for label, x in zip(labels, samples, strict=True))
    if ending in (".ts", ".arff"):
        mark, head = (":", f"@classLabel true {' '.join(codes)}\n@data\n")
        if ending == ".arff":
            mark, head = ",", "@attribute a numeric\n@data\n"
        text = head + "\n".join(f"{x}{mark}{y}" for y, x in zip(labels, samples, strict=True))
    place = tmp_path / "Toy.npz"
    np.savez(place, X_train=X, y_train=labels, X_test=X, y_test=labels)
    if ending != ".npz":
        place = tmp_path / f"Toy_TRAIN{ending}"
        for part in ("TRAIN", "TEST"):
            (tmp_path / f"Toy_{part}{ending}").write_text(text)
    data = datasets.load(place)
    assert data.classes.tolist() == codes
    assert data.classes[data.y_train].tolist() == data.classes[data.y_test].tolist() == labels
    assert np.array_equal(data.X_train[:, 0], X)


def test_of_the_archives_formats_one_is_read(tmp_path: Path) -> None:
    """The zip files of the archives hold a set three times, multivariate ones also by channel."""
    header = "@relation Toy\n@attribute a numeric\n@attribute target {a,b}\n@data\n"
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"ToyDimension1_{split}.arff").write_text(f"{header}7,7,a\n8,8,b\n")
        (tmp_path / f"Toy_{split}.arff").write_text(f"% Toy\n{header}1,?,a\n5,6,b\n")
        (tmp_path / f"Toy_{split}.txt").write_text("no series")
    (found,) = datasets.training_files(tmp_path.rglob("*_TRAIN*"))
    assert found.name == "Toy_TRAIN.arff"
    data = datasets.load(tmp_path, nan_to_zero=True)
    assert data.X_train.tolist() == [[[1, 0]], [[5, 6]]]
    assert data.classes.tolist() == ["a", "b"]
    with pytest.warns(UserWarning, match="2 channels of only 1 time point"):
        datasets.load(
            npz(tmp_path, X_train=GOOD["X_train"][:, :, :1], X_test=GOOD["X_test"][:, :, :1])
        )


def test_missing_values_as_zero_when_asked(tmp_path: Path) -> None:
    ts_folder(tmp_path, ["1,?:a", "NaN,6:b"], ["0,1:b"])
    assert datasets.load(tmp_path, nan_to_zero=True).X_train.tolist() == [[[1, 0]], [[0, 6]]]
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"lines_{split}.csv").write_text("a,1,?,NaN,2\nb, ,3,4,\n")
    data = datasets.load(tmp_path / "lines_TRAIN.csv", nan_to_zero=True)
    assert data.X_train.tolist() == [[[1, 0, 0, 2]], [[0, 3, 4, 0]]]
    X = np.where(np.arange(60).reshape(6, 2, 5) % 7 == 0, np.nan, 1.0)
    data = datasets.load(npz(tmp_path, X_train=X), nan_to_zero=True)
    np.testing.assert_array_equal(data.X_train, np.nan_to_num(X))


def test_a_folder_with_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = ts_folder(tmp_path / "GunPoint", ["1,2:a", "5,6:b"], ["0,1:b"])
    for path in (Path("GunPoint"), "./GunPoint", str(own / "toy_TRAIN.ts")):
        assert datasets.load(path).X_train.tolist() == [[[1, 2]], [[5, 6]]]
    assert datasets.load("GunPoint").X_train.shape == (50, 1, 150)


def test_of_several_pairs_the_one_with_the_folder_s_name(tmp_path: Path) -> None:
    ts_folder(tmp_path, ["1:a", "2:b"], ["1:a"])
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"b_{split}.ts").write_text((tmp_path / f"toy_{split}.ts").read_text())
    with pytest.raises(ValueError, match=r"but found b_TRAIN.ts, toy_TRAIN.ts; put each data set"):
        datasets.load(tmp_path)
    assert datasets.load(tmp_path.rename(tmp_path.with_name("b"))).name == "b"
    (tmp_path.with_name("b") / "b_TEST.ts").unlink()
    with pytest.raises(ValueError, match=r"b_TEST\.ts is missing: a data set is a pair of files"):
        datasets.load(tmp_path.with_name("b") / "b_TRAIN.ts")
