"""What belongs to the repository: the demo."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo
from sparseconv import datasets
from sparseconv.measure.table import with_thousands
from sparseconv.models import DSN
from sparseconv.ops.backends import extension


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
def test_the_demo_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = datasets.load(demo.DATASET)
    short = replace(whole, X_train=whole.X_train[..., :30], X_test=whole.X_test[..., :30])
    trained, train = [], demo.train
    monkeypatch.setattr(demo, "train", lambda *all: trained.append(train(*all)) or trained[-1])
    monkeypatch.setattr(datasets, "load", lambda name: short)
    monkeypatch.setattr(demo, "ROUNDS", 6)
    monkeypatch.setattr(demo, "DSN", partial(demo.DSN, nf=6, kernel_size=9, depth=2))
    assert demo.main(["--epochs", "2", "--out", str(tmp_path)]) == 0
    assert [len(result.history) for result in trained] == [2, 2, 2]
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if "|" in line}
    assert rows.keys() > demo.NETWORKS.keys()
    dense = DSN(1, 2, nf=6, kernel_size=9, depth=2, sparsity=0).cost(30)
    assert f" {with_thousands(dense.params)} |" in rows["dense"]
    (sentence,) = (line for line in printed.splitlines() if line.startswith("With "))
    assert sentence in (tmp_path / "report.html").read_text(encoding="utf-8")
