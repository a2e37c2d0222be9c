"""``profile`` and ``convert`` find the times that a user's own loop of calls takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv.measure.machine import threads
from sparseconv.profiling import profiler, stopwatch

pytestmark = pytest.mark.serial
X = torch.randn(8, 64, 256, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"rounds": 20, "least_seconds": 1e-3}
Figures = dict[str, tuple[float, float]]  # milliseconds measured, and of the plain loop


def plain(name: str, model: nn.Module) -> dict[str, Callable[[], object]]:
    """What a user writes, the gradient of the loss aside."""
    gradient = torch.ones_like(model(X))

    def inference() -> None:
        with torch.no_grad():
            model(X)

    def training() -> None:
        model.zero_grad()
        model(X).backward(gradient)

    return {f"plain {name} inference": inference, f"plain {name} training": training}


def beside(monkeypatch: pytest.MonkeyPatch, loops: Mapping[str, Any]) -> list[dict[str, float]]:
    """Let plain loops take turns with all that is measured; median milliseconds, by turn."""
    found: list[dict[str, float]] = []
    real = stopwatch.interleave

    def interleave(candidates: Any, context: Any, **options: Any) -> Any:
        @contextmanager
        def checked(name: str) -> Iterator[None]:
            with nullcontext() if name in loops else context(name):
                # Recording gradients costs too little here to be seen in the time.
                assert name in loops or torch.is_grad_enabled() == name.endswith("training")
                yield

        times = real({**candidates, **loops}, context=checked, **options)
        found.append({name: 1e3 * float(statistics.median(times.pop(name))) for name in loops})
        return times

    monkeypatch.setattr(stopwatch, "interleave", interleave)
    return found


def converted(monkeypatch: pytest.MonkeyPatch) -> Figures:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(64, 32, 17, padding=8), nn.BatchNorm1d(32), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", 0.9)
    sparse, _ = sc.convert(model, layers=["0"])
    turns = beside(monkeypatch, plain("before", model) | plain("after", sparse))
    _, report = sc.convert(model, example_input=X, layers=["0"], **QUICK)
    return {
        f"{when} {which}": (getattr(times, when).median, turns[-1][f"plain {when} {which}"])
        for which, times in report.times.items()
        for when in ("before", "after")
    }


def profiled(monkeypatch: pytest.MonkeyPatch) -> Figures:
    torch.manual_seed(0)
    layer = sc.SparseConv1d(64, 64, 33, density=0.1)
    turns = beside(monkeypatch, plain("layer", layer))
    monkeypatch.setattr(profiler, "_fma_peak", lambda dtype: None)
    report = sc.profile(layer, X, **QUICK)
    found = {}
    for which, measured in report.layers[0].times.items():
        found[f"layer {which}"] = (measured.after.median, turns[0][f"plain layer {which}"])
        found[f"model {which}"] = (report.model[which].ms.median, turns[1][f"plain layer {which}"])
    return found


@pytest.mark.parametrize("measure", [converted, profiled])
def test_times_are_those_of_a_plain_loop_within_a_tenth(
    measure: Callable[[pytest.MonkeyPatch], Figures],
) -> None:
    """Each figure must agree once: a machine is disturbed at times, a wrong measurement always."""
    wrong: set[str] | None = None
    for _ in range(10):
        with threads(1), pytest.MonkeyPatch.context() as monkeypatch:
            figures = measure(monkeypatch)
        assert len(figures) == 4
        off = {name for name, (found, plain) in figures.items() if abs(found / plain - 1) > 0.1}
        wrong = off if wrong is None else wrong & off
        if not wrong:
            return
    pytest.fail(f"{wrong} never within 10 % (measured, plain loop): {figures}")
