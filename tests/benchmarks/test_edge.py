"""Exported programs under emulation: rows that are measured once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quick_figures import quick_figures  # noqa: F401 (a fixture of every test here)
from toy_run import SMALL, write_data

from benchmarks.edge import __main__ as command
from benchmarks.edge import targets
from benchmarks.recording import read_lines
from sparseconv.cli.main import main


def test_a_run_is_measured_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = write_data(tmp_path), tmp_path / "run"
    assert main(["train", data, "--epochs", "2", "--out", str(run), *SMALL]) == 0
    words = ["--run", str(run), "--data", data]
    out = run / "edge.jsonl"
    if targets.TARGETS[0].missing():
        pytest.skip("gcc is not installed")
    assert command.main(words) == 0
    found = read_lines(out)
    assert {(r["weights"], r["target"]) for r in found} == {
        (weights, target.name)
        for weights in ("float32", "int8")
        for target in targets.TARGETS
        if not target.missing()
    }
    for r in found:
        assert r["n_predicted"] == r["n_test"] == 6
        assert r["weights"] == "int8" or r["labels_differ"] == 0
        if "instructions" in r:
            assert r["dense"]["instructions"]["all"] > r["instructions"]["all"]
    assert len({r["bits"] for r in found if r["weights"] == "int8"}) == 1
    before = out.read_text()
    assert command.main(words) == 0
    assert out.read_text() == before
    printed = capsys.readouterr().out
    assert re.search(r"\| int8 +\| x86-64 +\| 6 of 6 ", printed)


def test_straightforward_loops_compute_the_layer(tmp_path: Path) -> None:
    """At least the loads of all weights and samples of the layer."""
    board = targets.TARGETS[1]
    if board.missing():
        pytest.skip(f"{board.name}: apt-get install {board.missing()}")
    products = 141 * 47 * 39 * 150
    for is_int8 in (True, False):
        assert 3 * products < targets.straightforward(board, tmp_path, is_int8) < 12 * products
