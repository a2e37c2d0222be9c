"""The GPU benchmark where there is no GPU: on a fake one, whose graphs run their call again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from one_thread import one_thread  # noqa: F401 (a fixture of every test here)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks, layer, step, tables
from benchmarks.gpu.target import PRECISIONS, Target
from sparseconv import available_backends
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.ops import calls

WORDS = ("--device", "cpu", "--cases", "5", "--rounds", "2", "--lengths", "24", "--step-lengths")
DENSE = {f"{form} {kind}" for form in layer.RIVALS for kind in PRECISIONS} | {"FFT fp32"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Let a CPU pass for a GPU with graphs and tools; compile with what takes no time."""
    counter, compile_ = CompileCounterWithBackend("aot_eager"), torch.compile
    target = Target("cpu")
    target.graphs = True

    def capture(call: Callable[[], Tensor], times: int = 1) -> tuple[Callable[[], object], Tensor]:
        result = call().clone()
        return lambda: [result.copy_(call()) for _ in range(times)], result

    def make(call: Any, *, mode: str, dynamic: bool) -> Any:
        assert mode == "reduce-overhead"
        return compile_(call, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(target, "capture", capture)
    monkeypatch.setattr(step, "GraphedStep", lambda model, function, optimizer: function)
    monkeypatch.setattr(torch, "compile", make)
    monkeypatch.setattr(gpu, "Target", lambda device: target)
    # Adam asks for a GPU where it is to be captured.
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, capturable: adam(p, lr=lr))
    monkeypatch.setattr("sparseconv.measure.timing.gc.collect", lambda *_: 0)
    return counter


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each outside tool tell its arguments, and racecheck find something."""
    for name in ("ncu", "compute-sanitizer", "cuobjdump", "nvidia-smi"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text('#!/bin/sh\necho "$@"\ncase "$@" in *racecheck*) exit 9;; esac\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


def run(out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    return gpu.main(["--out", str(out), *WORDS, *words]), json.loads(out.read_text())


@pytest.mark.usefixtures("tools")
def test_everything_is_measured(
    fake: CompileCounterWithBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(tmp_path / "gpu.json", "24")
    assert (found["failed"], [row["absent"] for row in found["rows"]]) == ([], [{}] * 10)
    assert (code, found["left_out"]) == (1, [])
    assert {check["check"]: check["ok"] for check in found["checks"]} == {
        "machine code": True, "cpp: random cases": True, "cpp, L = 24: the same bits": True,
        "ncu": True, "memcheck": True, "racecheck": False, "synccheck": True, "initcheck": True,
    }  # fmt: skip
    assert "--set full" in (tmp_path / "gpu.ncu.txt").read_text()
    parts = [row["part"] for row in found["rows"]]
    assert parts == [*["ceilings"] * 2, *["kernels"] * 3, *["step"] * 2, *["layer"] * 3]
    sparse = {f"cpp {kind} {mode}" for kind in ("fp32", "bf16") for mode in ("eager", "graph")}
    dense = {f"{name} {mode}" for name in DENSE for mode in ("eager", "graph")}
    for row, computation in zip(found["rows"][2:5] + found["rows"][7:], COMPUTATIONS * 2,
                                strict=True):  # fmt: skip
        assert row["computation"] == computation
        assert set(row["samples_ms"]) == (sparse if row["part"] == "kernels" else sparse | dense)
        for name, error in row["error"].items():
            assert len(row["samples_ms"][name]) == 2
            assert 0 < error < 1e-5 or ("bf16" in name and 1e-3 < error < 1e-2), name
    ceilings, products, planning, steps = (found["rows"][i] for i in (0, 1, 5, 6))
    assert (len(ceilings["samples_ms"]), len(products["samples_ms"])) == (2, 3)
    assert set(planning["samples_ms"]) == {"cpp new pattern", "cpp known pattern"}
    assert set(steps["samples_ms"]) == {
        *(f"dense {kind} {how}" for kind in PRECISIONS for how in ("eager", "graph", "compiled")),
        *(f"cpp {kind} {how}{update}" for kind in ("fp32", "TF32") for how in ("eager", "graph")
          for update in ("", " with update")),
    }  # fmt: skip
    assert all(error < 1e-2 for error in steps["error"].values())
    assert fake.frame_count >= 3
    assert len(found["profiles"]) == 3 * (2 + len(DENSE)) + 2
    assert all("Self CPU" in profile["text"] for profile in found["profiles"])
    shown = capsys.readouterr().out
    assert "dense padded TF32 graph" in shown
    assert "--query-gpu=clocks.sm" in shown
    assert "5 within the computed bounds" in shown
    model = {"rows": [{"computation": "dgrad", "length": 24, "backend": "cpp", "us": 1234.5}]}
    lines = [line for line in str(tables.times(found, model).markdown()).split("\n")
             if "1.234" in line]  # fmt: skip
    assert len(lines) == 4
    assert all("dgrad" in line and "cpp fp32" in line for line in lines)


def test_what_fails_takes_nothing_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise RuntimeError("cuDNN has no algorithm")

    monkeypatch.setitem(layer.RIVALS, "dense padded", refuse)
    monkeypatch.setattr(checks, "sparse_conv1d", refuse)
    code, found = run(tmp_path / "gpu.json", "24", "--only", "right", "layer", "step")
    assert code == 1
    assert [failure["job"] for failure in found["failed"]] == ["cpp: random cases"]
    assert "cuDNN has no algorithm" in found["failed"][0]["why"]
    *steps, one, two, three = found["rows"]
    assert [row["absent"] for row in steps] == [{}] * 2
    for row in (one, two, three):
        assert set(row["absent"]) == {f"dense padded {kind}" for kind in PRECISIONS}
        assert len(row["samples_ms"]) == 2 + len(DENSE) - 3
    assert "RuntimeError: cuDNN has no algorithm" in tables.times(found, tables.read()).markdown()


def test_dense_needs_no_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"cpp": "the C++ extension cannot be loaded"}
    monkeypatch.setattr("benchmarks.gpu.target.available_backends", lambda: states)
    code, found = run(tmp_path / "gpu.json", "24", "--only", "kernels", "layer", "step")
    assert code == 0, found["failed"]
    assert found["left_out"] == [{"part": "", "job": "cpp", "why": states["cpp"]}]
    assert {len(row["samples_ms"]) for row in found["rows"]} == {0, len(DENSE), len(PRECISIONS)}
    monkeypatch.setenv("PATH", "")
    _, found = run(tmp_path / "gpu.json", "24", "--only", "watched", "right", "layer",
                   "--seconds", "0")  # fmt: skip
    why = [job["why"] for job in found["left_out"][1:]]
    needed = ["needs compute-sanitizer, which is not here"] * 4
    assert why == ["0 seconds were over"] * 3 + needed


def test_what_only_a_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line once, on a CUDA that does nothing: graphs, and what the times are of."""
    monkeypatch.setattr(torch, "cuda", cuda := MagicMock())
    cuda.get_device_capability.return_value = (9, 0)
    cuda.get_device_name.return_value = "H200"
    calls = []
    replay, result = Target("cpu").capture(lambda: calls.append(1) or torch.ones(2), 20)
    assert (len(calls), result.sum(), replay) == (23, 2, cuda.CUDAGraph().replay)
    assert gpu.machine(torch.device("cuda"))["device"] == "H200 (sm_90)"
    Target("cuda").clock()
    assert cuda.synchronize.called


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
