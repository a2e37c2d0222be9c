"""Exported programs under emulation, and the GPU benchmark on a CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_figures import quick_figures  # noqa: F401 (a fixture of every test here)
from toy_run import SMALL, write_data

from benchmarks.bench.run import COMPUTATIONS
from benchmarks.edge import __main__ as command
from benchmarks.edge import targets
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import layer
from benchmarks.gpu.target import PRECISIONS
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


def test_each_part_is_measured_printed_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/gpu.md says: with ``--device cpu`` every part is tried without a GPU."""
    monkeypatch.setattr(torch, "compile", lambda module: module)  # takes half a minute

    def refuse(*_: object, **__: object) -> Any:
        raise RuntimeError("cuDNN has no algorithm")

    monkeypatch.setitem(layer.RIVALS, "dense padded", refuse)
    monkeypatch.setitem(gpu.CHECKS, "memcheck", ("sh", "-c", "echo an illegal access; exit 9"))
    monkeypatch.setitem(gpu.CHECKS, "racecheck", ("no-such-tool",))
    out = tmp_path / "gpu.json"
    words = ["--out", str(out), "--device", "cpu", "--rounds", "2", "--lengths", "24", "--parts"]
    assert gpu.main([*words, *gpu.PARTS, "memcheck", "racecheck"]) == 1
    found = json.loads(out.read_text())
    rows = {part: [row for row in found["rows"] if row["part"] == part] for part in gpu.PARTS}

    forms = {f"{name} {kind}" for name in layer.RIVALS for kind in PRECISIONS} | {"FFT fp32"}
    forms |= {"cpp fp32", "cpp bf16"}
    assert [row["computation"] for row in rows["layer"]] == list(COMPUTATIONS)
    for row in rows["layer"]:
        assert all(name.startswith("dense padded") for name in row["absent"])
        named = row["samples_ms"].keys() | row["absent"].keys()
        assert named == {f"{form} eager" for form in forms}
        for name, error in row["error"].items():
            assert len(row["samples_ms"][name]) == 2
            assert 0 < error < 1e-5 or ("bf16" in name and 1e-3 < error < 1e-2), name
    for part, most in (("step", 1e-2), ("blocks", 1e-2), ("blocks, step", 1e-1)):
        for row in rows[part]:
            assert all(0 < error < most for error in row["error"].values())
    for part, name in {
        "step": "cpp TF32 eager with update",
        "blocks": "cpp TF32 eager",
        "blocks, step": "cpp bf16 eager with update",
        "density": "cpp",
        "update": "gradient, blocks",
        "networks": "8 networks, a stream each",
        "norm": "compiled",
    }.items():
        assert name in rows[part][0]["samples_ms"]
    assert [check["ok"] for check in found["checks"]] == [False, False]
    assert "an illegal access" in found["checks"][0]["result"]
    printed = capsys.readouterr().out
    assert "RuntimeError: cuDNN has no algorithm" in printed
    assert "no-such-tool" in printed
