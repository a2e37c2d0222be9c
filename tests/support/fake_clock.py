"""``profile`` and ``convert`` without measuring: every call runs once and has a given time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from sparseconv.profiling import stopwatch


class FakeClock:
    """Time passes only in the calls that it hands out."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds()

        return call


def fake_clock(
    monkeypatch: pytest.MonkeyPatch,
    milliseconds: Callable[[str, int], ArrayLike] = lambda name, turn: 1.0,
) -> list[set[str]]:
    """Let the candidate ``name`` of the ``turn``-th measurement last ``milliseconds(name, turn)``.

    Returns:
        The names of each measurement, filled while they are asked for.
    """
    asked: list[set[str]] = []

    def interleave(
        candidates: Mapping[str, Callable[[], object]], *, rounds: int, context: Any, **_: Any
    ) -> dict[str, Any]:
        times = {}
        for name, call in candidates.items():
            with context(name):
                assert torch.is_grad_enabled() == name.endswith("training")
                call()
            given = milliseconds(name, len(asked))
            times[name] = 1e-3 * np.resize(np.asarray(given, dtype=float), rounds)
        asked.append(set(candidates))
        return times

    monkeypatch.setattr(stopwatch, "interleave", interleave)
    monkeypatch.setattr(stopwatch, "collector_paused", nullcontext)
    return asked
