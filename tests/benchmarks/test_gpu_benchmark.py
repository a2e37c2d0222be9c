"""The GPU benchmark, tried where there is no GPU: on a fake one, and its processes on a CPU."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda_graph import FakeCudaGraph
from fake_gpu import MACHINE, FakeGpu

from benchmarks import gpu, gpu_checks, gpu_layer, gpu_tables
from benchmarks.gpu_target import PRECISIONS, TRIAL, Target
from sparseconv import available_backends
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.ops import calls as ops
from sparseconv.ops.backends import NEVER_ON_A_GPU

DENSE = ("dense", "dense 16/16", "dense slices")  # channels as a trial has them
OPTIONS = gpu.Options([537, 2709], [150, 2709], 20, 2, 60.0)
Document = dict[str, Any]


def namespace(out: Path, seconds: float = 60.0, device: str = "cuda") -> argparse.Namespace:
    return argparse.Namespace(device=device, seconds=seconds, out=out, part=None)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program in the place of compute-sanitizer."""

    def put(script: str) -> None:
        file = tmp_path / "compute-sanitizer"
        file.write_text(f"#!{sys.executable}\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(gpu_checks, "sanitizer", lambda: str(file))

    return put


@pytest.fixture
def found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str], None]
) -> Document:
    """Everything that a run on a fake GPU writes."""
    FakeCudaGraph(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    monkeypatch.setattr(gpu, "machine", lambda _: MACHINE)
    program("import sys; print(f'========= {sys.argv[2].upper()} SUMMARY: 0 errors')")
    target = FakeGpu()

    def inline(
        part: gpu.Part, arguments: argparse.Namespace, options: gpu.Options, keep: gpu.Keep
    ) -> str:
        keep([json.loads(json.dumps(r)) for r in gpu.records(target, part, options)])
        return ""

    out = tmp_path / "results" / "gpu.json"
    document = gpu.measure(namespace(out, 3600.0), OPTIONS, inline)  # however busy this machine is
    assert json.loads(out.read_text()) == document
    assert target.captures > 50
    return document


def test_every_part_runs(found: Document, tmp_path: Path) -> None:
    assert {name: part["state"] for name, part in found["parts"].items()} == {
        part.name: "done" for part in gpu.PARTS
    }
    layer = gpu_tables.of_kind(found, "layer")
    names = [("cuda", kind) for kind in ("fp32", "bf16")]
    names += [(name, kind) for name in DENSE for kind in PRECISIONS]
    for length in OPTIONS.lengths:
        for computation in COMPUTATIONS:
            (row,) = (r for r in layer if (r["length"], r["computation"]) == (length, computation))
            wanted = {f"{n} {kind} {mode}" for n, kind in names for mode in ("eager", "graph")}
            assert set(row["samples_ms"]) == wanted
            assert all(len(s) == OPTIONS.rounds and min(s) > 0 for s in row["samples_ms"].values())
            # An error stands beside each time, and tells the precision.
            assert set(row["error"]) == {f"{name} {kind}" for name, kind in names}
            for name, error in row["error"].items():
                assert 0 < error < 1e-5 or (name.endswith("bf16") and 1e-3 < error < 1e-2)
    for row in gpu_tables.of_kind(found, "step"):
        both = {f"{n} {kind} {mode}" for n in ("cuda", "dense") for kind in ("fp32", "TF32")
                for mode in ("eager", "graph")}  # fmt: skip
        assert set(row["samples_ms"]) == both | {"dense bf16 eager", "dense bf16 graph"}
        assert row["error"]["cuda fp32"] < 1e-4
    kernels = gpu_tables.of_kind(found, "kernels")
    assert set(kernels[0]["samples_ms"]) == {*gpu_layer.KERNELS, "chosen"}
    compiled = gpu_tables.of_kind(found, "compiled")
    steps = [row for row in compiled if row["computation"] == "training step"]
    assert [(row["length"], set(row["samples_ms"])) for row in steps] == [
        (length, {f"cuda {kind} graph", f"dense {kind} compiled", f"dense {kind} graph"})
        for length, kind in ((150, "fp32"), (2709, "fp32"), (150, "TF32"))
    ]
    layer = {(row["length"], row["computation"], kind): row for row in compiled
             for kind in PRECISIONS if f"dense {kind} compiled" in row["samples_ms"]
             and row not in steps}  # fmt: skip
    assert len(layer) == len(OPTIONS.lengths) * len(COMPUTATIONS) * len(PRECISIONS)
    goals = [gpu_tables.is_goal(length, kind, name) for length, name, kind in layer]
    assert goals == [True] * 10 + [False] * 8  # should time end, these are what it has ended after
    for (_, _, kind), row in layer.items():
        names = {f"{name} {kind} compiled" for name in DENSE}
        assert set(row["samples_ms"]) == names | {"cuda fp32 eager", "cuda fp32 graph"}
        assert set(row["error"]) == names | {"cuda fp32"}
    (epoch,) = gpu_tables.of_kind(found, "train")
    assert len(epoch["samples_ms"]["cuda TF32 graph"]) == TRIAL.epochs - 2
    checks = {check["check"]: check["ok"] for check in found["checks"]}
    assert checks.pop("triton") is None
    assert set(checks.values()) == {True}
    assert {"cuda, L = 1024: bits of replayed graphs are those of eager", "initcheck, cuda",
            "graphed training has the bits of eager"} < set(checks)  # fmt: skip

    goals = gpu_tables.goals(found)
    assert not [goal for goal in goals if goal.verdict in ("not run", "not finished")]
    trial = found | {"machine": found["machine"] | {"device": "cpu"}}
    assert "met" not in {goal.verdict for goal in gpu_tables.goals(trial)}
    assert len(goals) == 6 + 3 + 1 + 3
    text = "\n".join(gpu_tables.section(tmp_path / "results" / "gpu.json"))
    for part in ("Fake (sm_90)", "CUDA 13.0", "**The layer**", "**A training step**", "| TF32 ",
                 "slices", " compiled |", "**Checks.**", "**Goals on a GPU**",
                 "clean (MEMCHECK"):  # fmt: skip
        assert part in text
    assert "What was not finished" not in text
    assert all(isinstance(table, str) for table in gpu_tables.report(found))


def test_processes(tmp_path: Path) -> None:
    """A part's records come back; one that takes too long or fails takes nothing along."""
    kept: list[dict[str, Any]] = []
    arguments, options = namespace(tmp_path, device="cpu"), OPTIONS._replace(cases=2, seconds=120.0)
    assert gpu.spawn(gpu.PARTS[0], arguments, options, kept.extend) == ""
    assert [record["check"] for record in kept] == [
        "cpp: random cases", "cpp: cases of the benchmark",
    ]  # fmt: skip
    assert all(record["ok"] for record in kept)
    slow = options._replace(seconds=0.1)
    assert gpu.spawn(gpu.PARTS[0], arguments, slow, kept.extend) == "stopped after 0 s"
    if not torch.cuda.is_available():
        why = gpu.spawn(gpu.PARTS[0], namespace(tmp_path), options, kept.extend)
        assert why.startswith("failed with code 1: ")
        assert f"there is nothing to measure: {available_backends()['cuda']}" in why
    assert len(kept) == 2


def test_what_goes_wrong_stands_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "machine", lambda _: MACHINE)
    out, seen = tmp_path / "gpu.json", []

    def run(part: gpu.Part, arguments: Any, options: gpu.Options, keep: gpu.Keep) -> str:
        seen.append((part.name, options.seconds))
        keep([{"check": f"{part.name}: 1", "ok": part.name != "right", "result": "so"}])
        assert json.loads(out.read_text())["checks"][-1]["check"] == f"{part.name}: 1"
        return "stopped after 120 s" if part.name == "compute-sanitizer" else ""

    found = gpu.measure(namespace(out, 300), OPTIONS, run)
    states = {name: (part["state"], part["why"]) for name, part in found["parts"].items()}
    assert states["right"] == ("failed", "")
    assert states["layer"] == ("not run", "'right' failed")  # a wrong kernel is not timed
    assert states["triton"] == ("done", "")
    assert states["compute-sanitizer"] == ("stopped", "stopped after 120 s")
    assert [name for name, _ in seen] == ["right", "compute-sanitizer", "triton"]
    assert "What was not finished" in "\n".join(gpu_tables.section(out))
    seen.clear()
    found = gpu.measure(namespace(out, 9), OPTIONS, run)
    assert seen == []
    assert {part["why"] for part in found["parts"].values()} == {"no time was left of 9 s"}
    gpu.measure(namespace(out, 50), OPTIONS, run)
    assert all(seconds <= 50 for _, seconds in seen)
    assert {goal.verdict for goal in gpu_tables.goals(found)} == {"not run"}


def test_parts_fit_into_ten_minutes() -> None:
    important = ("right", "layer", "step", "reproducible", "compute-sanitizer")
    assert tuple(part.name for part in gpu.PARTS)[:5] == important
    assert sum(part.seconds for part in gpu.PARTS if part.name in important) <= 540 + 10
    # What is compiled comes after them, and cannot take what they need.
    compiled = [part for part in gpu.PARTS if part.name.startswith("compiled")]
    assert len(compiled) == 2
    assert sum(part.seconds for part in compiled) <= 0.4 * 540


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert available_backends()["cuda"] in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])  # would overwrite what was measured
    assert "is no result" in capsys.readouterr().err


def test_the_readme_says_what_never_ran(tmp_path: Path) -> None:
    (text,) = gpu_tables.section(tmp_path / "gpu.json")
    assert "nothing was ever run" in text
    document = {"machine": MACHINE | {"device": "cpu"}, "rows": [], "checks": [], "parts": {}}
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="trial on a CPU"):
        gpu_tables.section(tmp_path / "gpu.json")


def test_what_never_ran_is_said_until_it_did() -> None:
    """One constant, for as long as no result is there; what is typed by hand agrees with it."""
    found = json.loads(gpu.RESULTS.read_text()) if gpu.RESULTS.exists() else {"rows": []}
    ran = {name.split()[0] for row in found["rows"] for name in row["samples_ms"]}
    assert set(NEVER_ON_A_GPU) == {"cuda", "triton"} - ran
    for file, words in (
        ("README.md", "Not yet run on a GPU"),
        ("csrc/cuda/kernels.h", "NONE OF THIS HAS RUN ON A GPU YET"),
        ("sparseconv/graphed.py", "Never yet run on a GPU."),
        ("benchmarks/gpu.py", "Nobody has run it on a GPU yet."),
    ):
        text = (Path(gpu.__file__).parent.parent / file).read_text()
        assert (words in text) == ("cuda" in NEVER_ON_A_GPU), file


def test_checks_find_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    target, right = Target("cpu"), gpu_checks.sparse_conv1d
    monkeypatch.setattr(gpu_checks, "sparse_conv1d", lambda *a, **k: right(*a, **k) * 1.001)
    first = next(gpu_checks.right(target, 3))
    assert not first["ok"]
    assert first["result"].startswith("expected_fprop: Case")


def test_checks_find_bits_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = ops.dgrad, iter(range(10**6))

    def drifting(*args: Any) -> torch.Tensor:
        return right(*args) * (1 + (next(calls) == 7) * 2.0**-23)

    monkeypatch.setattr(ops, "dgrad", drifting)
    found = list(gpu_checks.reproducible_layer(FakeGpu(), "cuda", 24))
    assert [record["ok"] for record in found] == [True, False, True]
    assert found[1]["result"].startswith("dgrad")


@pytest.mark.parametrize(
    ("script", "ok", "words"),
    [
        ("print('========= RACECHECK SUMMARY: 0 hazards displayed')", True, "clean (RACECHECK"),
        ("print('========= Invalid __global__ read', flush=True); exit(9)", False, "Invalid __gl"),
        ("print('========= Error: Device not supported'); exit(1)", None, "does not support"),
        ("print('no summary')", False, "no summary"),
        ("import time; time.sleep(60)", None, "not finished after 2 s"),
    ],
)
def test_what_compute_sanitizer_says(
    script: str, ok: bool | None, words: str, program: Callable[[str], None]
) -> None:
    program(script)
    found = list(gpu_checks.sanitized(FakeGpu(), 2))
    assert [record["check"] for record in found] == ["memcheck, cuda", "racecheck, cuda",
                                                     "initcheck, cuda"]  # fmt: skip
    assert {record["ok"] for record in found} == {ok}
    assert all(words in record["result"] for record in found)


def test_without_compute_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "sanitizer", lambda: "")
    found = list(gpu_checks.sanitized(FakeGpu(("cuda", "triton")), 2))
    assert len(found) == 6
    assert {record["ok"] for record in found} == {None}
    assert "not installed" in found[0]["result"]


def test_what_dense_cannot_run_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("cuDNN has no algorithm")

    monkeypatch.setattr(gpu_layer, "sliced_calls", lambda *_: dict.fromkeys(COMPUTATIONS, refuse))
    first = next(gpu_layer.Layer(FakeGpu(), 24, 1).rows())
    assert first["absent"] == {f"dense slices {kind}": "cuDNN has no algorithm"
                               for kind in PRECISIONS}  # fmt: skip
    assert not any("slices" in name for name in first["samples_ms"])
    assert not any(math.isnan(error) for error in first["error"].values())
