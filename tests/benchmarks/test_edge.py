"""Exported programs under emulation: rows that are measured once, and what is made of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from quick_figures import quick_figures  # noqa: F401 (a fixture of every test here)
from toy_run import SMALL, write_data

from benchmarks.edge import __main__ as command
from benchmarks.edge import measure, report, targets
from benchmarks.recording import read_lines
from sparseconv.cli.main import main


def row(target: str, weights: str, sparsity: float) -> dict[str, Any]:
    steps = {"all": 100, "0": 20, "1": 10, "2": 40, "3": 5, "4": 5}
    dense = {"all": 500, "0": 100, "1": 10, "2": 300, "3": 5, "4": 5}
    return {
        "dataset": "GunPoint", "sparsity": sparsity, "weights": weights, "target": target,
        "n_test": 150, "n_predicted": 150, "n_channels": 1, "n_timepoints": 150, "classes": 2,
        "accuracy": 0.97, "accuracy_pytorch": 0.98, "labels_differ": 0, "of_bound": 0.5,
        "bits": "same", "size": {"text": 90_000, "data": 0, "bss": 50_000},
        "instructions": steps, "straightforward": 400,
        "dense": {"instructions": dense, "size": {"text": 300_000, "data": 0, "bss": 9}},
        "machine": {"date": "today", "commit": "abc"},
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    return [
        row(target.name, weights, sparsity)
        for target in targets.TARGETS
        for weights in ("float32", "int8")
        for sparsity in measure.SPARSITIES
    ]


def test_section(tmp_path: Path) -> None:
    text = report.section(rows(), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert "| GunPoint | 1 x 150 |" in text
    assert "float32 1 on x86-64, 1 on Cortex-M4" in text
    cells = [line.split("|") for line in text.splitlines() if line.startswith("| int8")]
    ratios = {row[2].strip(): (row[6].strip(), row[7].strip()) for row in cells}
    assert ratios["80%"] == ("5.00", f"{400 / 60:.2f}")  # of the network, in sparse layers
    assert "changes the mean accuracy by -1.00 points" in text
    assert "bit-identical on all processors for 1 of the 1 data sets" in text
    assert "Of 150 test series, float32 classifies 0 differently from PyTorch, and int8 0." in text
    assert "at most 0.50 times the bound" in text


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
