"""``python -m sparseconv export``: the folder that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from c_program import Program
from toy_run import SMALL

import sparseconv as sc
from sparseconv import datasets
from sparseconv.cli.main import main


def test_export(data: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", data, "--epochs", "2", "--out", str(out), *SMALL]) == 0
    capsys.readouterr()
    X = datasets.load(data).X_test
    predicted = sc.load_run(out).predict(X)
    for words, folder in (([], "c-float32"), (["--int8"], "c-int8")):
        assert main(["export", str(out), "--data", data, "--name", "toy", *words]) == 0
        printed = capsys.readouterr().out
        assert f"{folder} holds README.md, toy.c, toy.h, toy_test.c" in printed
        assert "classes, from 0: fast, slow" in printed
        labels = np.array(["fast", "slow"])[Program(out / folder, "toy").labels(X)]
        if not words:
            assert (labels == predicted).all()
