"""What belongs to the repository: the demo and the accuracy runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo
from benchmarks.paper import accuracy
from sparseconv.bench.network import compare
from sparseconv.ops.backends import extension


def test_without_the_extension_the_demo_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from sparseconv.ops import backends

    monkeypatch.setattr(backends, "extension", None)
    monkeypatch.setattr(backends, "_missing_reason", "the C++ extension is not built (why)")
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "not built (why)" in shown.err
    assert shown.out == ""
    assert not out.exists()


def test_accuracy_runs_once_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done: list[tuple[Any, ...]] = []

    def fake(*key: Any, progress: bool) -> dict[str, Any]:
        done.append(key)
        result = dict(zip(accuracy.KEY, key, strict=True))
        return result | {"accuracy": 0.9 + 0.01 * key[2], "train_seconds": 1.0}

    monkeypatch.setattr(accuracy, "run", fake)
    out = tmp_path / "new" / "accuracy.jsonl"
    common = ["--epochs", "7", "--out", str(out), "--datasets", "GunPoint", "ACSF1"]
    assert accuracy.main([*common, "--seeds", "0"]) == 0
    assert accuracy.main([*common, "--seeds", "0", "1", "--masked-dense", "GunPoint"]) == 0
    assert len(done) == len(set(done)) == 2 + 4
    assert len(accuracy.finished(out)) == 6
    text = capsys.readouterr().out
    assert "90.50 ± 0.71 (2)" in text
    assert "99.07" in text
    assert "91.60" in text


def test_published_figures_exist_for_every_set() -> None:
    runs = [
        {"dataset": name, "epochs": 1, "kind": "sparse", "accuracy": 1}
        for name in accuracy.SETTINGS
    ]
    assert len(accuracy.table(runs).rows) == 7


@pytest.mark.parametrize("kind", ["sparse", "masked dense"])
def test_accuracy_trains_both_kinds(kind: str) -> None:
    pytest.importorskip("aeon")
    result = accuracy.run("ItalyPowerDemand", kind, 0, 10, progress=False)
    assert 0.8 < result["accuracy"] <= 1  # half of the cases are of one class
    assert result["active_weights"] == 732 + 3 * 34459
    assert (result["itop_rate"] is None) == (kind == "masked dense")
    json.dumps(result)


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
def test_the_demo_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "profile", partial(demo.profile, rounds=6))
    monkeypatch.setattr(compare, "training_row", partial(compare.training_row, rounds=3))
    words = ["--epochs", "6", "--epochs-without-groups", "6", "--out", str(tmp_path)]
    assert demo.main(words) == 0
    assert "training step" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results.json").read_text())
