"""How runs compare, and tables of DSN, from rows made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from paper_rows import SETS, dsn_facts, on, row
from scipy.stats import hypergeom, wilcoxon

from benchmarks.paper import figures
from benchmarks.paper.archives import published_accuracy
from benchmarks.paper.comparison import (
    PEERS,
    by_set,
    frame,
    holm,
    interval,
    on_one_machine,
    versus,
)
from benchmarks.paper.tables import dsn
from benchmarks.paper.tables.cells import DIFFERENCE, p_text


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


def test_times_compare_on_one_machine() -> None:
    rows = [
        row("a", "x", 0, **on("slow"), train_seconds=40.0),
        row("a", "x", 1, **on("fast"), train_seconds=20.0),
        row("a", "y", 0, **on("slow"), train_seconds=1e9),
        row("a", "z", 0, **on("fast"), train_seconds=30.0),
        *(row("b", name, 0, **on("fast"), train_seconds=10.0) for name in "xyz"),
    ]

    def seconds(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        both = on_one_machine(frame(rows), "a", "b")
        return [by_set(both, run, "train_seconds").to_dict() for run in ("a", "b")]

    assert seconds(rows) == [{"z": 30.0}, {"z": 10.0}], "of x no seed was trained by both"
    slow = [row(run, "w", 0, **on("slow"), train_seconds=50.0) for run in "ab"]
    assert seconds([*rows, *slow])[0] == {"z": 30.0, "w": 50.0}, "each pair has its machine"
    rows += [row("b", "x", 1, **on("fast"), train_seconds=30.0)]
    assert seconds(rows) == [{"x": 20.0, "z": 30.0}, {"x": 30.0, "z": 10.0}], "whatever seed 0 took"
    here = {"isas": "avx512, avx2", "date": "2026-11-23 23:59 UTC"}
    for other in ({"isas": "avx2"}, {"date": "2026-11-24 00:01 UTC"}):  # one name, two machines
        apart = [row("a", "x", **on("EPYC", **here)), row("b", "x", **on("EPYC", **here | other))]
        assert seconds(apart) == [{}, {}]


def test_table_1() -> None:
    theirs = published_accuracy("OS-CNN")
    rows = [
        row("DSN", name, seed, (theirs[name] + 1 + seed) / 100) for name in SETS for seed in (0, 2)
    ]
    table = dsn.against_published(frame([*rows, row("DSN", "ACSF1", 0, 0.1)]))
    found = dict(zip(table.header, table.rows[2], strict=True))
    assert found["published"] == "OS-CNN"
    assert found["DSN wins/ties/losses"] == "6/0/0", "the set of 2018 is left out"
    scaled, p = found["in the paper, scaled; p"].split("; ")
    assert scaled == "3.5/0.2/2.3"  # of 49/3/33 in 85
    assert p == p_text(2 * hypergeom.pmf(6, 85, 49, 6)), "nothing is farther than six of six"
    assert [cells[3].partition(";")[0] for cells in table.rows] == (
        ["3.7/0.2/2.0", "2.8/0.4/2.8", "3.5/0.2/2.3"]  # the paper's 53/3/29, 40/5/40
    )
    assert found["sets"] == "6"
    assert found[DIFFERENCE] == "+2.00 [+2.00, +2.00]; +2.00"
    assert found["its accuracy %"] == f"{np.mean([theirs[name] for name in SETS]):.2f}"
    ours = theirs[SETS] + 2
    p = [versus(ours, published_accuracy(peer)).p for peer in PEERS]
    assert [cells[-1] for cells in table.rows] == list(map(p_text, holm(p)))


def test_costs_need_another_run_and_their_times_one_machine() -> None:
    apart = frame([row("a", "x", **dsn_facts(nf=4)), row("b", "x", params=3000, **on("another"))])
    _, second = dsn.costs(apart, ("a", "b"), "a").rows
    assert second[7:9] == ("3.00, 1.00", "-, 2.00"), "3000 and 1000 weights; 2e6 FLOPs"
    assert second[-1] == "-", "two machines trained them"
    assert dsn.costs(apart, ("not run",), "a").rows == []
    assert dsn.costs(apart, ("a",), "a").rows == [], "nothing to compare"


def test_costs_count_each_set_alike() -> None:
    """However many seeds it has: else a run with more seeds of the easy sets looks better."""
    rows = [
        *(row(run, "easy", seed, 0.9) for run in "ab" for seed in (0, 1, 2)),
        *(row(run, "hard", 0, 0.5) for run in "ab"),
        row("b", "hard", 1, 0.1),  # which the other run has not
    ]
    table = dsn.costs(frame(rows), ("a", "b"), "a")
    assert [cells[1:3] for cells in table.rows] == [("2, 4", "70.00"), ("2, 4", "70.00, 70.00")]


def test_times_in_tables_are_of_sets_that_both_were_timed_on() -> None:
    def timed(run: str, dataset: str, step: float) -> dict[str, Any]:
        return {**row(run, dataset, 0), "forward_ms": step / 4, "step_ms": step}

    rows = [timed("a", "x", 8.0), timed("a", "y", 2.0), timed("a", "z", 1e9), row("a", "z", 1)]
    rows += [timed("b", "x", 4.0), timed("b", "y", 4.0), row("b", "z", 0), row("b", "z", 1)]
    first, second = dsn.costs(frame(rows), ("a", "b"), "a").rows
    assert first[-2] == "-"
    assert second[-4:-1] == ("1.00, 1.00", "4.00, 4.00", "1.00 [0.50, 2.00] (2)")
    rows = [row("a", "x", 0), timed("b", "x", 1.0)]
    assert dsn.costs(frame(rows), ("a", "b"), "a").rows[1][-4:-1] == ("-", "-", "-")


def test_equal_seeds_are_compared() -> None:
    """A mean over several seeds does not match a single one, which may be the lucky one."""
    rows = [row("a", "x", seed, accuracy) for seed, accuracy in enumerate((0.9, 0.5, 0.4))]
    rows += [row("b", "x", 0, 0.8), row("b", "y", 0, 0.1)]
    runs = frame(rows)
    assert figures.less(runs, "b", "a").to_dict() == {"x": pytest.approx(-10)}
    (cells,) = dsn.against(runs, "a", ("b",)).rows
    assert cells[:5] == ("b", "1, 1", "80.00", "90.00", "0/0/1")
    assert cells[-1] == "+20.00 (1)", "to the mean of all three"
    _, costs = dsn.costs(runs, ("a", "b"), "a").rows
    assert costs[6] == "+20.00 (1)"
