"""``profile`` finds the times that a user's own loop of calls takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import sparseconv as sc
from sparseconv.measure.machine import threads
from sparseconv.profiling import stopwatch

pytestmark = pytest.mark.serial
X = torch.randn(8, 64, 256, generator=torch.Generator().manual_seed(0))


def plain_loops(layer: sc.SparseConv1d) -> dict[str, Callable[[], object]]:
    """What a user writes, the gradient of the loss aside."""
    gradient = torch.ones_like(layer(X))

    def inference() -> None:
        with torch.no_grad():
            layer(X)

    def training() -> None:
        layer.zero_grad()
        layer(X).backward(gradient)

    return {"plain inference": inference, "plain training": training}


def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Return milliseconds as profiled, and of the plain loop that took turns with it."""
    torch.manual_seed(0)
    layer = sc.SparseConv1d(64, 64, 33, density=0.1)
    loops = plain_loops(layer)
    turns: list[dict[str, float]] = []
    real = stopwatch.interleave

    def interleave(candidates: Any, context: Any, **options: Any) -> Any:
        times = real(
            {**candidates, **loops},
            context=lambda name: nullcontext() if name in loops else context(name),
            **options,
        )
        turns.append({name: 1e3 * float(statistics.median(times.pop(name))) for name in loops})
        return times

    monkeypatch.setattr(stopwatch, "interleave", interleave)
    report = sc.profile(layer, X, rounds=20, least_seconds=1e-3)
    found = {}
    for which, times in report.layers[0].times.items():
        found[f"layer {which}"] = times.after.median, turns[0][f"plain {which}"]
        found[f"model {which}"] = report.model[which].ms.median, turns[1][f"plain {which}"]
    return found


def test_times_are_those_of_a_plain_loop_within_a_tenth() -> None:
    """Each figure must agree once: a machine is disturbed at times, a wrong measurement always."""
    wrong = {"layer inference", "layer training", "model inference", "model training"}
    for _ in range(10):
        with threads(1), pytest.MonkeyPatch.context() as monkeypatch:
            figures = measured(monkeypatch)
        wrong &= {name for name, (found, plain) in figures.items() if abs(found / plain - 1) > 0.1}
        if not wrong:
            return
    pytest.fail(f"{wrong} never within 10 % (measured, plain loop): {figures}")
