"""What belongs to the repository: the demo."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import demo
from sparseconv import datasets
from sparseconv.bench.network import compare
from sparseconv.ops.backends import extension


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
def test_the_demo_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datasets.load(demo.DATASET)
    short = replace(whole, X_train=whole.X_train[..., :30], X_test=whole.X_test[..., :30])
    monkeypatch.setattr(datasets, "load", lambda name: short)
    monkeypatch.setattr(demo, "profile", partial(demo.profile, rounds=6))
    monkeypatch.setattr(compare, "training_row", partial(compare.training_row, rounds=3))
    monkeypatch.setattr(demo.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(demo, "DSN", partial(demo.DSN, nf=6, kernel_size=9, depth=2))
    assert demo.main(["--epochs", "2", "--out", str(tmp_path)]) == 0
    assert "training step" in (tmp_path / "report.html").read_text(encoding="utf-8")
