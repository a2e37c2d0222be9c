"""What belongs to the repository: the demo."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks import demo
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


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
def test_the_demo_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "profile", partial(demo.profile, rounds=6))
    monkeypatch.setattr(compare, "training_row", partial(compare.training_row, rounds=3))
    words = ["--epochs", "6", "--epochs-without-groups", "6", "--out", str(tmp_path)]
    assert demo.main(words) == 0
    assert "training step" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results.json").read_text())
