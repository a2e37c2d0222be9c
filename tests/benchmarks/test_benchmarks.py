"""What belongs to the repository: the demo."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo, unpruned
from sparseconv import datasets
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
@pytest.mark.parametrize(
    ("main", "words", "says"),
    [
        (demo.main, ["--out", "file"], "file/report.html cannot be written"),
        (demo.main, ["--epochs", "0"], "--epochs must be at least 1, but got 0"),
        (demo.main, ["--epochs-without-groups", "0"], "--epochs-without-groups must be at least"),
        (demo.main, ["--threads", "0"], "--threads must be at least 1, but got 0"),
        (unpruned.main, ["--out", "file/rows"], "file/rows cannot be written"),
        (unpruned.main, ["--out", "file"], "file, line 1, is not a row"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(
    main: Any, words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no row\n")
    for module, work in ((demo, "measured"), (unpruned, "measure")):
        monkeypatch.setattr(module, work, lambda *_: pytest.fail("worked"))
    assert main(words) == 2
    assert f"error: {says}" in capsys.readouterr().err


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
def test_the_demo_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datasets.load(demo.DATASET)
    short = replace(whole, X_train=whole.X_train[..., :30], X_test=whole.X_test[..., :30])
    monkeypatch.setattr(datasets, "load", lambda name: short)
    monkeypatch.setattr(demo, "profile", partial(demo.profile, rounds=6))
    monkeypatch.setattr(compare, "training_row", partial(compare.training_row, rounds=3))
    words = ["--epochs", "6", "--epochs-without-groups", "6", "--out", str(tmp_path)]
    assert demo.main(words) == 0
    assert "training step" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results.json").read_text())
