"""How runs compare, and tables of DSN, from rows made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from paper_rows import SETS, dsn_facts, on, row
from scipy.stats import wilcoxon

from benchmarks.paper.archives import published_accuracy
from benchmarks.paper.comparison import (
    frame,
    interval,
    versus,
)
from benchmarks.paper.tables import dsn


def test_versus_published() -> None:
    theirs = published_accuracy("ResNet")
    steps = np.array([3, 1, 0, 0.004, -1, -2])
    ours = theirs[SETS] + steps
    found = versus(ours, theirs)
    assert (found.wins, found.ties, found.losses, found.sets) == (2, 2, 2, 6)
    assert found.difference == pytest.approx(steps.mean())
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.p == pytest.approx(wilcoxon([3, 1, 0, 0, -1, -2]).pvalue)
    assert versus(ours, theirs[[]]) is None
    noisy = 80.0 + pd.Series([-1, -1, 1, 0, 1, 1]) / 3
    even = versus((noisy + noisy + noisy) / 3 + 1e-14, 0 * noisy + 80.0)
    assert even.p == wilcoxon([-1, -1, 1, 0, 1, 1]).pvalue, "the noise of means is not a difference"
    same = versus(ours, ours)
    assert (same.ties, same.p) == (6, None)
    one = versus(pd.Series({"a": 90.0}), pd.Series({"a": 85.0}))
    assert (one.wins, one.interval, one.p) == (1, None, None), "one set has no spread"


@pytest.mark.parametrize("count", [2, 12])
def test_interval_of_a_mean_holds_it_in_95_percent(count: int) -> None:
    drawn = np.random.default_rng(count).normal(5, 2, size=(400, count))
    holds = [low <= 5 <= high for low, high in map(interval, drawn)]
    assert np.mean(holds) == pytest.approx(0.95, abs=0.033)  # three deviations of 400 cases
    assert interval([2.0, 2.0]) == (2, 2)


def test_costs_need_another_run_and_their_times_one_machine() -> None:
    apart = frame([row("a", "x", **dsn_facts(nf=4)), row("b", "x", params=3000, **on("another"))])
    _, second = dsn.costs(apart, ("a", "b"), "a").rows
    assert second[7:9] == ("3.00, 1.00", "-, 2.00"), "3000 and 1000 weights; 2e6 FLOPs"
    assert second[-1] == "-", "two machines trained them"
    assert dsn.costs(apart, ("not run",), "a").rows == []
    assert dsn.costs(apart, ("a",), "a").rows == [], "nothing to compare"
