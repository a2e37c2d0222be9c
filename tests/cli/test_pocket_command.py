"""``python -m sparseconv train --model pocket``, and what reads its results folder."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aeon", reason="aeon is not installed")

import sparseconv as sc
from sparseconv import datasets
from sparseconv.cli.main import main
from sparseconv.estimators.pocket import POCKETClassifier
from sparseconv.training.run_folder import POCKET

SMALL = ["--model", "pocket", "--n-kernels", "40", "--threads", "1"]


@pytest.fixture
def run_folder(data: str, out: Path) -> Path:
    assert main(["train", data, "--out", str(out), *SMALL, "--quiet", "--keep", "10"]) == 0
    return out


def test_the_defaults_are_the_classifiers() -> None:
    parameters = inspect.signature(POCKETClassifier).parameters
    for name, default in POCKET.items():
        assert name == "seed" or parameters[name].default == default


def test_the_folder_and_its_model(
    data: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(path.name for path in run_folder.iterdir()) == [
        "config.json", "model.npz", "summary.md",
    ]  # fmt: skip
    read = datasets.load(data)
    classifier = POCKETClassifier(n_kernels=40, keep=10, random_state=0)
    expected = read.classes[classifier.fit(read.X_train, read.y_train).predict(read.X_test)]
    for path in (run_folder, run_folder / "model.npz"):
        run = sc.load_run(path)
        assert run.epoch is None
        assert run.model.bank == classifier.bank_
        assert run.classes.tolist() == read.classes.tolist()
        assert np.array_equal(run.predict(read.X_test), expected)
    config = json.loads((run_folder / "config.json").read_text())
    assert config["model"] == "pocket"
    assert config["pocket"] == POCKET | {"n_kernels": 40, "keep": 10}
    assert config["data"]["n_train"] == len(read.X_train)
    accuracy = float((expected == read.classes[read.y_test]).mean())
    assert f"{accuracy:.4f}" in (run_folder / "summary.md").read_text()
    with pytest.raises(ValueError, match=r"expected X of shape \(n_cases, 1"):
        run.predict(np.zeros((2, 2, read.n_timepoints)))
    with pytest.raises(ValueError, match="those that the kernels were drawn for"):
        run.predict(read.X_test[:, :, :-1])


def test_every_option(data: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--kernels", "minirocket", "--n-kernels", "84", "--keep", "cv", "--k", "cv"]
    words += ["--n-iter", "2", "--no-refit", "--seed", "3"]
    assert main(["train", data, "--out", str(out), *SMALL[:2], *words]) == 0
    found = json.loads((out / "config.json").read_text())["pocket"]
    assert found == {
        "kernels": "minirocket", "n_kernels": 84, "keep": "cv", "k": "cv", "n_iter": 2,
        "refit": False, "seed": 3,
    }  # fmt: skip
    printed = capsys.readouterr()
    assert "minirocket, threads: " in printed.out
    assert "features kept" in printed.out
    assert "selection" in printed.err  # the progress bar
    summary = (out / "summary.md").read_text()
    assert "## Folds" in summary
    assert "| 1000 " in summary


def test_info(run_folder: Path, data: str, tmp_path: Path, capsys: Any, refused: Any) -> None:
    capsys.readouterr()
    assert main(["info", str(run_folder)]) == 0
    printed = capsys.readouterr().out
    assert "KernelBank('rocket', 10 kernels" in printed
    assert "n_kernels=40, keep=10\n" in printed
    other = tmp_path / "b"
    words = ["--epochs", "1", "--nf", "4", "--depth", "1", "--quiet", "--out", str(other)]
    assert main(["train", data, *words]) == 0
    capsys.readouterr()
    assert main(["info", str(other)]) == 0
    printed = capsys.readouterr().out
    assert "of epoch 1\n" in printed
    assert "nf=4, depth=1, epochs=1\n" in printed
    refused(["info", str(tmp_path / "c")], "is not a results folder")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--nf", "4"], "--nf is not for --model pocket; omit it"),
        (["--epochs", "4"], "--epochs is not for --model pocket; omit it"),
        (["--resume"], "no epochs to resume"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--keep", "41"], "keep must be a share in (0, 1] (a float), a number from 1 to 40"),
        (["--k", "0"], 'k must be a positive number or "cv"'),
        (["--n-iter", "0"], "n_iter must be at least 1"),
        (["--seed", "-1"], "must lie in [0, 2**32), but got -1"),
        (["--out", "/proc/pocket"], "/proc/pocket cannot be written"),
    ],
)
def test_what_is_refused(
    data: str, out: Path, refused: Any, words: list[str], expected: str
) -> None:
    refused(["train", data, "--out", str(out), *SMALL, "--quiet", *words], expected)
    assert not out.exists()


def test_a_share_that_is_a_word(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", data, *SMALL, "--keep", "a third"])
    said = "argument --keep: must be a share, a number or \"cv\", but got 'a third'"
    assert said in capsys.readouterr().err


def test_one_run_at_a_time(data: str, out: Path, refused_while_claimed: Any) -> None:
    refused_while_claimed(["train", data, *SMALL, "--quiet"], out)


def test_models_are_told_apart(data: str, run_folder: Path, refused: Any, tmp_path: Path) -> None:
    refused(["train", data, "--out", str(tmp_path / "c"), "--keep", "3"], "not for --model dsn")
    refused(["train", data, "--out", str(run_folder), "--resume"], "holds a pocket model")
    refused(["train", data, "--out", str(run_folder), *SMALL], "run already; choose another")
    refused(["profile", str(run_folder)], "holds random kernels")
    with pytest.raises(ValueError, match="expected backend='auto'"):
        sc.load_run(run_folder, backend="cpp")
    with pytest.raises(ValueError, match=r"other.npz does not exist"):
        sc.load_run(run_folder / "other.npz")
    (run_folder / "model.npz").write_bytes(b"no")
    refused(["info", str(run_folder)], "model.npz is no sparseconv rocket model")
    (run_folder / "model.npz").unlink()
    refused(["info", str(run_folder)], "model.npz does not exist; a run of --model pocket")
    config = json.loads((run_folder / "config.json").read_text())
    for wrong in ({**config, "model": "forest"}, {**config, "pocket": {}}):
        (run_folder / "config.json").write_text(json.dumps(wrong))
        refused(["info", str(run_folder)], "is not the config.json of a run")
