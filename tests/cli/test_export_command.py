"""``python -m sparseconv export``: the folder that it writes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_program import Program
from toy_run import SMALL, files

import sparseconv as sc
from sparseconv import datasets
from sparseconv.cli.main import main


@pytest.fixture
def run(data: str, out: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["train", data, "--epochs", "2", "--out", str(out), *SMALL]) == 0
    capsys.readouterr()
    return out


def test_export(run: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    X = datasets.load(data).X_test
    predicted = sc.load_run(run).predict(X)
    for words, folder in (([], "c-float32"), (["--int8"], "c-int8")):
        assert main(["export", str(run), "--data", data, "--name", "toy", *words]) == 0
        printed = capsys.readouterr().out
        assert f"{folder} holds README.md, toy.c, toy.h, toy_test.c" in printed
        assert "classes, from 0: fast, slow" in printed
        labels = np.array(["fast", "slow"])[Program(run / folder, "toy").labels(X)]
        if not words:
            assert (labels == predicted).all()


def test_refusals(run: Path, data: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    before = files(tmp_path)
    refused(["export", str(tmp_path / "none")], "is not a results folder")
    refused(
        ["export", str(run)],
        "was trained on 'toy', which is not bundled; name its data with --data",
    )
    refused(["export", str(run), "--data", str(tmp_path / "b.npz")], "no data set")
    pytest.importorskip("aeon")
    refused(
        ["export", str(run), "--data", "GunPoint"],
        "is not what",
        "was trained on, its n_train is",
        "--data",
    )
    refused(["export", str(run), "--data", data, "--name", "1"], "C identifier")
    refused(["export", str(run), "--data", data, "--out", str(run)], "holds files")
    assert files(tmp_path) == before
