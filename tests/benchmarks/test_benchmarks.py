"""What belongs to the repository: the demo."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import demo
from sparseconv import datasets
from sparseconv.measure.table import with_thousands
from sparseconv.measure.timing import Estimate
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


@pytest.mark.parametrize(
    ("right", "ratio", "said"),
    [
        ((90, 99), (0.5, 0.4, 0.6), "slower than dense: it took 2.0x the time, and accuracy was "
         "9.0 points lower (90.0 against 99.0 % of 100 series: significant, p = 0.0039)."),
        ((99, 98), (5.0, 4.0, 6.0), "5.0x as fast as dense [4.0, 6.0], and accuracy was 1.0 points "
         "higher (99.0 against 98.0 % of 100 series: not significant, p = 1)."),
        ((98, 98), (1.0, 0.9, 1.1), "not clearly faster or slower than dense (1.00 [0.90, 1.10]), "
         "and accuracy was equal (98.0 against 98.0 % of 100 series: not significant, p = 1)."),
    ],
)  # fmt: skip
def test_the_demo_admits_it_where_dense_wins(
    right: tuple[int, int], ratio: tuple[float, ...], said: str
) -> None:
    network = DSN(1, 2, nf=4)
    sparse, dense = (
        demo.Trained(network, network.cost(30), 1.0, torch.arange(100) < n) for n in right
    )
    assert demo.conclusion(sparse, dense, Estimate(*ratio)).endswith(f"a training step was {said}")
