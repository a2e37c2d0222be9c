"""What rows of trainings say of two networks, and against published accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from paper_rows import SETS, on, row
from scipy.stats import wilcoxon

from benchmarks.paper.comparison import Runs, holm, interval, published_accuracy, versus


def test_versus_published() -> None:
    theirs = published_accuracy("ResNet")
    ours = {
        name: theirs[name] + step for name, step in zip(SETS, (3, 1, 0, 0.004, -1, -2), strict=True)
    }
    found = versus(ours, theirs)
    assert found is not None
    assert (found.wins, found.ties, found.losses, found.sets) == (2, 2, 2, 6)
    steps = np.array([3, 1, 0, 0.004, -1, -2])
    assert found.difference == pytest.approx(steps.mean())
    assert found.interval is not None
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.p == pytest.approx(wilcoxon([3, 1, 0, 0, -1, -2]).pvalue)
    assert versus(ours, {}) is None
    noisy = {str(i): 80.0 + step / 3 for i, step in enumerate((-1, -1, 1, 0, 1, 1))}
    even = versus(
        {k: (v + v + v) / 3 + 1e-14 for k, v in noisy.items()}, dict.fromkeys(noisy, 80.0)
    )
    assert even is not None
    assert even.p == wilcoxon([-1, -1, 1, 0, 1, 1]).pvalue, "the noise of means is no difference"
    same = versus(ours, ours)
    assert same is not None
    assert (same.ties, same.p) == (6, None)
    one = versus({"a": 90.0}, {"a": 85.0})
    assert one is not None
    assert (one.wins, one.interval, one.p) == (1, None, None), "one set has no spread"


@pytest.mark.parametrize("count", [2, 12])
def test_interval_of_a_mean_holds_it_in_95_percent(count: int) -> None:
    drawn = np.random.default_rng(count).normal(5, 2, size=(400, count))
    holds = [low <= 5 <= high for low, high in map(interval, drawn)]
    assert np.mean(holds) == pytest.approx(0.95, abs=0.033)  # three deviations of 400 cases
    assert interval([2.0, 2.0]) == (2, 2)


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04, 0.01]) == [0.04, 0.02]


def test_times_compare_on_one_machine() -> None:
    rows = [
        row("a", "x", 0, **on("slow"), train_seconds=40.0),
        row("a", "x", 1, **on("fast"), train_seconds=20.0),
        row("a", "y", 0, **on("slow"), train_seconds=1e9),
        row("a", "z", 0, **on("fast"), train_seconds=30.0),
        *(row("b", name, 0, **on("fast"), train_seconds=10.0) for name in "xyz"),
    ]

    def seconds(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        runs = Runs(rows).on_one_machine("a", "b")
        return [runs.mean(run, "train_seconds") for run in ("a", "b")]

    assert seconds(rows) == [{"z": 30.0}, {"z": 10.0}], "of x no seed was trained by both"
    slow = [row(run, "w", 0, **on("slow"), train_seconds=50.0) for run in "ab"]
    assert seconds([*rows, *slow])[0] == {"z": 30.0, "w": 50.0}, "each pair has its machine"
    rows += [row("b", "x", 1, **on("fast"), train_seconds=30.0)]
    assert seconds(rows) == [{"x": 20.0, "z": 30.0}, {"x": 30.0, "z": 10.0}], "whatever seed 0 took"
    never = [row("a", "x", 0, **on("slow")), row("b", "x", 0, **on("fast"))]
    assert seconds(never) == [{}, {}]


@pytest.mark.parametrize("other", [{"isas": "avx2"}, {"date": "2026-11-24 00:01 UTC"}])
def test_times_of_one_name_are_of_one_machine(other: dict[str, str]) -> None:
    """One name stands for several generations of processors."""
    here = {"isas": "avx512, avx2", "date": "2026-11-23 23:59 UTC"}
    rows = [row("a", name, 0, **on("EPYC", **here)) for name in "xy"]
    rows += [row("b", "x", 0, **on("EPYC", **here | other))]
    assert Runs(rows).on_one_machine("a", "b").common("a", "b") == []
    rows += [row("b", "y", 0, **on("EPYC", **here | {"date": "2026-11-23 10:00 UTC"}))]
    assert Runs(rows).on_one_machine("a", "b").common("a", "b") == ["y"]
