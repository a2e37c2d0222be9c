"""``python -m sparseconv export``: the folder that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from c_program import Program
from toy_run import SMALL

import sparseconv as sc
from sparseconv import datasets


def test_export(data: str, out: Path, command: Any) -> None:
    command("train", data, "--epochs", 2, "--out", out, *SMALL)
    X = datasets.load(data).X_test
    for words, folder in (([], "c-float32"), (["--int8"], "c-int8")):
        printed = command("export", out, "--data", data, "--name", "toy", *words)
        assert f"{folder} holds README.md, toy.c, toy.h, toy_test.c" in printed
        assert "classes, from 0: fast, slow" in printed
        labels = np.array(["fast", "slow"])[Program(out / folder, "toy").labels(X)]
        if not words:
            assert (labels == sc.load_run(out).predict(X)).all()
