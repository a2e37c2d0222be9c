"""``profile`` finds the times that a user's own loop of calls takes."""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import sparseconv as sc
from sparseconv.measure.machine import threads
from sparseconv.profiling import stopwatch

pytestmark = pytest.mark.serial


def test_times_are_those_of_a_plain_loop_within_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each figure must agree once: a machine is disturbed at times, a wrong measurement always."""
    layer, x = sc.SparseConv1d(64, 64, 33, density=0.1), torch.randn(8, 64, 256)
    gradient, real = torch.ones_like(layer(x)), stopwatch.interleave
    plain: list[dict[str, float]] = []

    def training() -> None:
        layer.zero_grad()
        layer(x).backward(gradient)

    def interleave(candidates: Any, context: Any, **options: Any) -> Any:
        """Let the user's loops take turns with the layer, then with the model."""
        loops = {"inference": torch.no_grad()(lambda: layer(x)), "training": training}
        times = real(
            candidates | loops,
            context=lambda name: nullcontext() if name in loops else context(name),
            **options,
        )
        plain.append({name: 1e3 * float(statistics.median(times.pop(name))) for name in loops})
        return times

    monkeypatch.setattr(stopwatch, "interleave", interleave)
    wrong = {(what, which) for what in ("layer", "model") for which in ("inference", "training")}
    for _ in range(10):
        plain.clear()
        with threads(1):
            report = sc.profile(layer, x, rounds=20, least_seconds=1e-3)
        for which, times in report.layers[0].times.items():
            found = {"layer": times.after.median, "model": report.model[which].ms.median}
            for loops, (what, ms) in zip(plain, found.items(), strict=True):
                if abs(ms / loops[which] - 1) < 0.1:
                    wrong.discard((what, which))
        if not wrong:
            return
    pytest.fail(f"never within 10 % of a plain loop: {wrong}")
