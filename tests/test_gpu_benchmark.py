"""The GPU benchmark's script, tried where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_checks
from sparseconv import available_backends

LENGTH = 24


def test_the_script_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "gpu.json"
    arguments = ["--device", "cpu", "--lengths", str(LENGTH), "--cases", "4", "--out", str(out)]
    assert gpu.main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["checks"] == {"random cases": 4}
    rows = {(r["computation"], r["candidate"], r["precision"]): r for r in found["rows"]}
    dense = ("dense", "dense 48/144", "dense slices")
    assert set(rows) >= {
        (computation, candidate, kind)
        for computation in gpu.COMPUTATIONS
        for candidates, kinds in ((("sparse",), ("fp32", "bf16")), (dense, gpu.PRECISIONS))
        for candidate in candidates
        for kind in kinds
    }
    assert all(row["ms"] > 0 for row in found["rows"])
    for (computation, candidate, kind), row in rows.items():
        if computation != "training step":  # an error stands beside each time, and tells precision
            half = rows[computation, candidate, "bf16"]["error"]
            assert 0 < row["error"] < half < 1 or kind == "bf16"
    assert "| sparse " in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert available_backends()["cuda"] in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_goals_are_judged() -> None:
    def row(candidate: str, precision: str, ms: float) -> gpu.Row:
        return {"length": 537, "computation": "fprop", "candidate": candidate,
                "precision": precision, "mode": "eager", "ms": ms, "error": 1e-7}  # fmt: skip

    rows = [row("sparse", "fp32", 1.0), row("dense", "fp32", 4.0), row("dense", "TF32", 1.1)]
    assert gpu.goals(rows).rows == [
        ("fprop, L = 537, eager", "dense fp32 eager", "4.00x", "4x", "met"),
        ("fprop, L = 537, eager", "dense TF32 eager", "1.10x", "1.2x", "missed"),
    ]


def test_checks_find_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_checks.sparse_conv1d
    monkeypatch.setattr(gpu_checks, "sparse_conv1d", lambda *a, **k: right(*a, **k) * 1.001)
    with pytest.raises(AssertionError, match="expected_fprop: Case"):
        gpu_checks.random_cases(torch.device("cpu"), "cpp", 3)
