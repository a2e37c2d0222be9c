"""The GPU benchmark where there is no GPU: on a fake one, whose graphs run their call again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks, layer, tables
from benchmarks.gpu.target import PRECISIONS, Target
from sparseconv import available_backends
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.ops import calls

WORDS = ("--device", "cpu", "--cases", "5", "--rounds", "2", "--lengths", "24", "--step-lengths")
DENSE = {f"{form} {kind}" for form in ("dense", "dense padded") for kind in PRECISIONS}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Let a CPU pass for a GPU with graphs; compile with what takes no time."""
    counter, compile_ = CompileCounterWithBackend("aot_eager"), torch.compile
    target = Target("cpu")
    target.graphs = True

    def capture(call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        result = call().clone()
        return lambda: result.copy_(call()), result

    def make(call: Any, *, mode: str, dynamic: bool) -> Any:
        assert mode == "reduce-overhead"
        return compile_(call, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(target, "capture", capture)
    monkeypatch.setattr(target, "graphed_step", lambda model, step, optimizer: step)
    monkeypatch.setattr(torch, "compile", make)
    monkeypatch.setattr(gpu, "Target", lambda device: target)
    # Adam asks for a GPU where it is to be captured.
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, capturable: adam(p, lr=lr))
    monkeypatch.setattr("sparseconv.measure.timing.gc.collect", lambda *_: 0)
    return counter


def run(out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    return gpu.main(["--out", str(out), *WORDS, *words]), json.loads(out.read_text())


def test_everything_is_measured(
    fake: CompileCounterWithBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(tmp_path / "gpu.json", "24")
    assert code == 0, found
    assert (found["failed"], [row["absent"] for row in found["rows"]]) == ([], [{}] * 4)
    assert [check["ok"] for check in found["checks"]] == [True] * 2
    *layers, step = found["rows"]
    assert tuple(row["computation"] for row in layers) == COMPUTATIONS
    both = {f"{name} {mode}" for name in (*DENSE, "cpp fp32", "cpp bf16")
            for mode in ("eager", "graph")}  # fmt: skip
    for row in layers:
        assert set(row["samples_ms"]) == both | {f"dense {kind} compiled" for kind in PRECISIONS}
        for name, error in row["error"].items():
            assert len(row["samples_ms"][name]) == 2
            assert 0 < error < 1e-5 or ("bf16" in name and 1e-3 < error < 1e-2), name
    modes = {
        f"dense {kind} {mode}" for kind in PRECISIONS for mode in ("eager", "graph", "compiled")
    }
    modes |= {f"cpp {kind} {mode}" for kind in ("fp32", "TF32") for mode in ("eager", "graph")}
    assert set(step["samples_ms"]) == modes
    assert all(error < 1e-2 for error in step["error"].values())
    assert fake.frame_count >= 9 + 3
    shown = capsys.readouterr().out
    assert "dense padded TF32 graph" in shown
    assert "5 within the computed bounds" in shown


def test_what_fails_takes_nothing_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise RuntimeError("cuDNN has no algorithm")

    right = layer.dense_calls

    def unpadded(problem: Any, dtype: torch.dtype, more: Any = None) -> Any:
        return dict.fromkeys(COMPUTATIONS, refuse) if more else right(problem, dtype)

    monkeypatch.setattr(layer, "dense_calls", unpadded)
    monkeypatch.setattr(checks, "sparse_conv1d", refuse)
    code, found = run(tmp_path / "gpu.json", "24")
    assert code == 1
    assert [failure["job"] for failure in found["failed"]] == ["cpp: random cases"]
    assert "cuDNN has no algorithm" in found["failed"][0]["why"]
    *layers, step = found["rows"]
    for row in layers:
        assert set(row["absent"]) == {f"dense padded {kind}" for kind in PRECISIONS}
        assert len(row["samples_ms"]) == 2 + 3
    assert step["absent"] == {}
    assert "RuntimeError: cuDNN has no algorithm" in tables.times(found).markdown()


def test_checks_find_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    target, right = Target("cpu"), checks.sparse_conv1d
    monkeypatch.setattr(checks, "sparse_conv1d", lambda *a, **k: right(*a, **k) * 1.001)
    with pytest.raises(AssertionError, match="expected_fprop: Case"):
        checks.random_cases(target, "cpp", 3)
    dgrad, drift = calls.dgrad, iter((1, 1, 1 + 2.0**-23, 1))
    monkeypatch.setattr(calls, "dgrad", lambda *a: dgrad(*a) * next(drift))
    with pytest.raises(AssertionError, match="dgrad"):
        checks.same_bits(target, "cpp", 24)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert available_backends()["cuda"] in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_readme_says_what_never_ran(tmp_path: Path) -> None:
    (text,) = tables.section(tmp_path / "gpu.json")
    assert "nothing was ever run" in text
    about = dict.fromkeys(("device", "torch", "cuda", "cudnn", "date", "commit"), "H200")
    document = {"machine": about, "rows": [], "checks": []}
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    assert "on H200, torch H200" in tables.section(tmp_path / "gpu.json")[0]
    (tmp_path / "gpu.json").write_text(json.dumps(document | {"machine": {"device": "cpu"}}))
    with pytest.raises(ValueError, match="trial on a CPU"):
        tables.section(tmp_path / "gpu.json")
