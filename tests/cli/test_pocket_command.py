"""``python -m sparseconv train --model pocket``, and what reads its results folder."""

from __future__ import annotations

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
from sparseconv.rocket.bank import POCKET

SMALL = ["--model", "pocket", "--n-kernels", "40", "--threads", "1"]


@pytest.fixture
def run_folder(data: str, out: Path, command: Any) -> Path:
    command("train", data, "--out", out, *SMALL, "--quiet", "--keep", 0.25)
    return out


def test_the_folder_and_its_model(data: str, run_folder: Path) -> None:
    assert sorted(path.name for path in run_folder.iterdir()) == [
        "config.json", "model.npz", "summary.md",
    ]  # fmt: skip
    read = datasets.load(data)
    classifier = POCKETClassifier(n_kernels=40, keep=0.25, random_state=0)
    expected = read.classes[classifier.fit(read.X_train, read.y_train).predict(read.X_test)]
    for path in (run_folder, run_folder / "model.npz"):
        run = sc.load_run(path)
        assert run.epoch is None
        assert run.model.bank == classifier.bank_
        assert run.classes.tolist() == read.classes.tolist()
        assert np.array_equal(run.predict(read.X_test), expected)
        proba = classifier.predict_proba(read.X_test)
        assert np.array_equal(run.predict_proba(read.X_test), proba)
    config = json.loads((run_folder / "config.json").read_text())
    assert config["model"] == "pocket"
    assert config["pocket"] == POCKET | {"n_kernels": 40, "keep": 0.25, "seed": 0}
    assert config["data"]["n_train"] == len(read.X_train)
    accuracy = float((expected == read.classes[read.y_test]).mean())
    assert f"{accuracy:.4f}" in (run_folder / "summary.md").read_text()
    with pytest.raises(ValueError, match=r"expected series of shape \(n_cases, 1"):
        run.predict(np.zeros((2, 2, read.n_timepoints)))
    with pytest.raises(ValueError, match="the shape that the kernels were drawn for"):
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
    assert "folds" in printed.err  # the progress bar
    summary = (out / "summary.md").read_text()
    assert "## Folds" in summary
    assert "| 1000 " in summary
