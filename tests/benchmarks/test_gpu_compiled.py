"""What the GPU benchmark has torch.compile make, tried with a backend that takes no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda_graph import FakeCudaGraph
from fake_gpu import FakeGpu
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks import gpu_layer, gpu_step
from benchmarks.gpu_target import PRECISIONS
from sparseconv.bench.run import COMPUTATIONS

DENSE = ("dense", "dense 16/16", "dense slices")  # channels as a trial has them


def test_torch_compile_takes_every_dense_form_whole(
    monkeypatch: pytest.MonkeyPatch, count_cases: Callable[[int], None]
) -> None:
    """One graph for each, made once; with another backend, for the usual one takes seconds."""
    seen, make = [], torch.compile

    def made(call: Any, *, mode: str, dynamic: bool) -> Any:
        assert mode == "reduce-overhead"
        seen.append(counter := CompileCounterWithBackend("aot_eager"))
        return make(call, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(torch, "compile", made)
    layer = gpu_layer.Layer(FakeGpu(), 24, 2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for precision in PRECISIONS:
            for computation in COMPUTATIONS:
                row = layer.compiled_row(precision, computation)
                assert row["absent"] == {}
                for name in DENSE:
                    error = row["error"][f"{name} {precision} compiled"]
                    assert 0 < error < (1e-2 if precision == "bf16" else 1e-5), (name, row)
                    count_cases(1)
    assert [counter.frame_count for counter in seen] == [1] * 27


def test_a_compiled_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    make, seen = torch.compile, CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", lambda call, **_: make(call, backend=seen))
    FakeCudaGraph(monkeypatch)
    found = gpu_step.step_row(FakeGpu(), 24, ["cuda"], ["fp32"], 2, "compiled")
    assert set(found["samples_ms"]) == {"cuda fp32 graph", "dense fp32 compiled",
                                        "dense fp32 graph"}  # fmt: skip
    assert found["absent"] == {}
    assert seen.frame_count == 1
