"""The GPU benchmark where there is no GPU: its parts on a CPU that passes for one, and stubs."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from one_thread import one_thread  # noqa: F401 (a fixture of every test here)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import layer, parts, step, tables
from benchmarks.gpu.target import PRECISIONS, Candidate, Target
from sparseconv import available_backends
from sparseconv.bench.run import COMPUTATIONS

DENSE = {f"{form} {kind}" for form in layer.RIVALS for kind in PRECISIONS} | {"FFT fp32"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Let a CPU pass for a GPU with graphs; compile with what takes no time."""
    counter, compile_ = CompileCounterWithBackend("aot_eager"), torch.compile

    def capture(
        self: Target, call: Callable[[], Tensor], times: int = 1
    ) -> tuple[Callable[[], object], Tensor]:
        assert times in (1, self.sizes.replays)
        return lambda: [call() for _ in range(times)], call()

    def make(call: Any, *, mode: str, dynamic: bool) -> Any:
        assert mode == "reduce-overhead"
        return compile_(call, dynamic=dynamic, backend=counter)

    begin = Target.__init__
    monkeypatch.setattr(
        Target, "__init__", lambda self, *a: (begin(self, *a), setattr(self, "graphs", True))[0]
    )
    monkeypatch.setattr(Target, "capture", capture)
    monkeypatch.setattr(step, "GraphedStep", lambda model, function, optimizer: function)
    monkeypatch.setattr(torch, "compile", make)
    # Adam asks for a GPU where it is to be captured.
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, capturable: adam(p, lr=lr))
    monkeypatch.setattr("sparseconv.measure.timing.gc.collect", lambda *_: 0)
    return counter


def part(folder: Path, name: str) -> dict[str, Any]:
    out = folder / f"{name}.json"
    words = ("--out", str(out), "--device", "cpu", "--rounds", "2", "--lengths", "24")
    assert parts.main([name, *words]) == 0
    return dict(json.loads(out.read_text()))


def test_every_part(fake: CompileCounterWithBackend, tmp_path: Path) -> None:
    ceilings, products = part(tmp_path, "ceilings")["rows"]
    assert (len(ceilings["samples_ms"]), len(products["samples_ms"])) == (2, 3)
    found = part(tmp_path, "layer")
    forms = {"cpp fp32", "cpp bf16", *DENSE}
    for row, computation in zip(found["rows"], COMPUTATIONS, strict=True):
        assert (row["computation"], row["absent"]) == (computation, {})
        assert set(row["samples_ms"]) == {f"{f} {how}" for f in forms for how in ("eager", "graph")}
        for name, error in row["error"].items():
            assert len(row["samples_ms"][name]) == 2
            assert 0 < error < 1e-5 or ("bf16" in name and 1e-3 < error < 1e-2), name
    (steps,) = part(tmp_path, "step")["rows"]
    assert set(steps["samples_ms"]) == {
        *(f"dense {kind} {how}" for kind in PRECISIONS for how in ("eager", "graph")),
        *(f"cpp {kind} {how}{update}" for kind in ("fp32", "TF32") for how in ("eager", "graph")
          for update in ("", " with update")),
    }  # fmt: skip
    assert all(error < 1e-2 for error in steps["error"].values())
    assert fake.frame_count == 0
    (steps,) = part(tmp_path, "compiled")["rows"]
    assert set(steps["samples_ms"]) == {
        f"dense {kind} {how}" for kind in PRECISIONS for how in ("graph", "compiled")
    }
    assert fake.frame_count >= 3
    for row, computation in zip(part(tmp_path, "density")["rows"], COMPUTATIONS, strict=True):
        assert row["computation"] == f"{computation}, (4, 3, 5), 1 a kernel"
        assert list(row["samples_ms"]) == ["cpp"]
    texts = part(tmp_path, "profile")["texts"]
    assert len(texts) == len(forms) + 2
    assert all("Self CPU" in text["text"] for text in texts)
    assert part(tmp_path, "once")["texts"] == [{"of": "once", "text": "3 calls"}]


def test_a_candidate_that_fails_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise RuntimeError("cuDNN has no algorithm")

    monkeypatch.setitem(layer.RIVALS, "dense padded", refuse)
    states = {"cpp": "the C++ extension cannot be loaded"}
    monkeypatch.setattr("benchmarks.gpu.target.available_backends", lambda: dict(states))
    found = part(tmp_path, "layer")
    assert found["texts"] == [{"of": "cpp", "text": states["cpp"]}]
    for row in found["rows"]:
        assert set(row["absent"]) == {f"dense padded {kind}" for kind in PRECISIONS}
        assert len(row["samples_ms"]) == len(DENSE) - 3
    assert "RuntimeError: cuDNN has no algorithm" in tables.times(found).markdown()


def test_times_are_of_one_call_at_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph holds many; NaN, which JSON has not, is no error."""
    seen = []

    def interleave(calls: Any, *, context: Any, **_: Any) -> Any:
        for name, call in calls.items():
            with context(name):
                call()
        return dict.fromkeys(calls, np.array([1.0]))

    monkeypatch.setattr("sparseconv.measure.timing.interleave", interleave)
    call = lambda: seen.append(torch.backends.cudnn.allow_tf32)  # noqa: E731
    made = {"one": Candidate(call, True), "many": Candidate(call, False, 20)}
    row = Target("cpu").row("fprop", 24, {"": lambda: (made, float("nan"))}, 1)
    assert row["samples_ms"] == {"one": [1000.0], "many": [50.0]}
    assert (seen, row["error"]) == ([True, False] * 2, {"one": None, "many": None})


# A part that answers, breaks (with CUDA C++) or hangs.
STUB = """
import json, sys, time
name, out = sys.argv[1], sys.argv[sys.argv.index("--out") + 1]
row = {"part": name, "computation": "fprop", "length": 24, "samples_ms": {}, "absent": {},
       "clocks": [], "flop": 0}
rows = [row, row | {"length": 25}]
broken = name == "layer" and "--without" not in sys.argv
with open(out, "w") as file:
    json.dump({"machine": {"device": "H200"}, "rows": rows[: 2 - broken], "texts": []}, file)
if name == "step":
    time.sleep(60)
sys.exit("an illegal memory access" if broken else 0)
"""


def test_a_part_that_fails_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ncu", "compute-sanitizer", "cuobjdump"):  # each tells its arguments
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text('#!/bin/sh\necho "$@"\ncase "$@" in *racecheck*) exit 9;; esac\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(gpu, "WORK", (sys.executable, str(tmp_path / "stub.py")))
    tests = gpu.Part(9, "", (sys.executable, "-c", "print('3 passed')"))
    changed = {
        "step": gpu.Part(2, "step"),
        **{f"tests of {name}": tests for name in ("cuda", "triton")},
    }
    monkeypatch.setattr(gpu, "PARTS", gpu.PARTS | changed)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["machine"] == {"device": "H200"}
    rows = [(row["part"], row["length"]) for row in found["rows"]]
    named = ("ceilings", "layer", "step", "profile", "compiled", "density")
    assert rows == [(name, length) for name in named for length in (24, 25)]
    assert {check["check"]: check["ok"] for check in found["checks"]} == {
        "layer": False, "step": False, "step --without cuda": False, "tests of cuda": True,
        "ncu": True, "memcheck": True, "racecheck": False, "registers": True,
        "tests of triton": True,
    }  # fmt: skip
    said = {check["check"]: check["result"] for check in found["checks"]}
    assert "an illegal memory access" in said["layer"]
    assert "stopped after 2 s" in said["step"]
    assert "--profile-from-start off" in said["ncu"]
    assert " once --out " in said["ncu"]
    assert "3 passed" in capsys.readouterr().out
    assert gpu.main(["--out", str(out), "--seconds", "0", "--parts", "layer", "ncu"]) == 0
    left_out = json.loads(out.read_text())["left_out"]
    assert [row["why"] for row in left_out] == ["0 s were over"] * 2
    monkeypatch.setenv("PATH", "")
    gpu.main(["--out", str(out), "--parts", "memcheck"])
    assert json.loads(out.read_text())["left_out"][0]["why"] == "needs compute-sanitizer"


def test_what_only_a_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line once, on a CUDA that does nothing: graphs, and what the times are of."""
    monkeypatch.setattr(torch, "cuda", cuda := MagicMock())
    cuda.get_device_capability.return_value = (9, 0)
    cuda.get_device_name.return_value = "H200"
    calls = []
    replay, result = Target("cpu").capture(lambda: calls.append(1) or torch.ones(2), 20)
    assert (len(calls), result.sum(), replay) == (23, 2, cuda.CUDAGraph().replay)
    assert parts.machine(torch.device("cuda"))["device"] == "H200 (sm_90)"
    Target("cuda").clock()
    assert cuda.synchronize.called


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_why(tmp_path: Path) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu.json"), "--parts", "ceilings"]) == 1
    said = json.loads((tmp_path / "gpu.json").read_text())["checks"][0]["result"]
    assert available_backends()["cuda"] in said


def test_the_readme_says_what_never_ran(tmp_path: Path) -> None:
    (text,) = tables.section(tmp_path / "gpu.json")
    assert "nothing was ever run" in text
    about = dict.fromkeys(("device", "torch", "cuda", "cudnn", "date", "commit"), "H200")
    document = {"machine": about, "rows": [], "checks": []}
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    assert "on H200, torch H200" in tables.section(tmp_path / "gpu.json")[0]
    graphs = {"cuda fp32": 2.0, "triton fp32": 9.0, "dense fp32": 7.0, "channels last fp32": 5.0,
              "dense TF32": 3.0, "FFT fp32": 4.0}  # fmt: skip
    shared = {"length": 24, "error": {}, "absent": {}, "clocks": [], "flop": 0}
    turns = {"cuda TF32 graph": [1.0] * 9, "dense TF32 graph": [2.0] * 9}
    document["rows"] = [
        {"part": "layer", "computation": "fprop", **shared,
         "samples_ms": {f"{name} graph": [ms] for name, ms in graphs.items()}
         | {"dense fp32 eager": [0.001]}},
        {"part": "step", "computation": "training step", **shared, "samples_ms": turns},
    ]  # fmt: skip
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    made = [part for part in tables.section(tmp_path / "gpu.json") if part.startswith("|")]
    cells = [re.split(r" *\| *", table.split("\n")[2]) for table in made]
    layer_cells = ["fprop", "24", "2000", "9000", "5000", "3000", "-", "4000", "2.5", "1.5"]
    assert cells[0][1:-1] == layer_cells
    assert cells[1][1:-1] == ["24", "1.000", "-", "2.000", "2.00 [2.00, 2.00]", "-"]
    (tmp_path / "gpu.json").write_text(json.dumps(document | {"machine": {"device": "cpu"}}))
    with pytest.raises(ValueError, match="trial on a CPU"):
        tables.section(tmp_path / "gpu.json")
