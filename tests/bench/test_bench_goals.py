"""Goals are judged by the worst row that they speak of, and only where there is one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sparseconv.bench import goals
from sparseconv.bench.cases import CASES

COMPUTATIONS = ("fprop", "dgrad", "wgrad")


def row(name: str, computation: str = "fprop", threads: int = 1, **fields: Any) -> dict[str, Any]:
    """A row of a case as the command writes it, of a machine that meets every goal."""
    case = CASES[name]
    pattern = case.make_pattern()
    outputs = case.n * case.output_length
    return {
        "case": name, "suite": case.suite, "computation": computation, "threads": threads,
        "isa": case.isa or "avx512", "dtype": case.dtype, "length": case.length, "batch": case.n,
        "output_length": case.output_length, "nnz": pattern.nnz, "density": pattern.density,
        "ms": {"sparse": 1e-6 * (1 + pattern.nnz) * outputs},
        "ratio": {"conv1d": [10.0, 9.0, 11.0], "conv2d_channels_last": [7.0, 6.0, 8.0]},
        "share_of_peak": 0.9,
    } | fields  # fmt: skip


def network(mode: str, length: int, ms: float = 10.0, ratio: float = 8.0) -> dict[str, Any]:
    return {
        "model": "DSN", "mode": mode, "length": length, "batch": 16, "in_channels": 1, "threads": 1,
        "ms": {"sparse": ms}, "ratio": {"masked_dense": [ratio, ratio, ratio]}
        | ({"plain_step": [0.5, 0.4, 0.6]} if mode == "update" else {}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    suites = ("layer", "density", "batch", "channels", "kernel", "options", "dtype", "isa")
    names = [case.name for case in CASES.values() if case.suite in suites]
    rows = [row(name, c, t) for name in names for c in COMPUTATIONS for t in (1, 2)]
    nrows = [network(mode, n) for mode in ("train", "inference", "update") for n in (24, 128, 512)]
    return {"rows": rows, "network": nrows}


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {goal.goal: goal.verdict for goal in goals.judge(document)}


def test_all_goals_are_judged_and_met(document: dict[str, Any]) -> None:
    found = verdicts(document)
    assert len(found) == 6 + 2 + 2 + 4 + 7  # layer, shapes, density, others, network
    assert found.pop("bfloat16, float16: stated") == "stated"
    assert set(found.values()) == {"met"}, found


@pytest.mark.parametrize(
    ("goal", "change", "verdict"),
    [
        ("fprop, dgrad, L = 128-1024: ≥ 8x", {"conv1d": 6.0}, "missed by 25%"),
        ("fprop, dgrad, L = 128-1024: ≥ 80%", {"share_of_peak": 0.6}, "missed by 25%"),
        ("against channels_last conv2d: ≥ 6x", {"conv2d_channels_last": 3.0}, "missed by 50%"),
    ],
)
def test_one_bad_row_of_many_decides(
    document: dict[str, Any], goal: str, change: dict[str, float], verdict: str
) -> None:
    rows = list(document["rows"])
    index = next(
        i for i, r in enumerate(rows)
        if (r["case"], r["computation"], r["threads"]) == ("dsn_prefix_L512", "dgrad", 2)
    )  # fmt: skip
    bad = dict(rows[index])
    if "share_of_peak" in change:
        bad |= change
    else:
        bad["ratio"] = bad["ratio"] | {name: [x, x, x] for name, x in change.items()}
    rows[index] = bad
    (found,) = [g for g in goals.judge(document | {"rows": rows}) if g.goal.startswith(goal)]
    assert found.verdict == verdict
    assert "dsn_prefix_L512 dgrad, 2 threads" in found.measured
    others = [g.verdict for g in goals.judge(document | {"rows": rows}) if g.goal != found.goal]
    assert sum(v.startswith("missed") for v in others) == 0


def test_time_per_element_is_compared_with_sixteen_series() -> None:
    rows = [row("batch_16", ms={"sparse": 1.6}), row("batch_1", ms={"sparse": 0.15})]
    (goal,) = goals.judge({"rows": rows, "network": []})
    assert goal.measured == "1.50x (batch_1 fprop, 1 thread)"
    assert goal.verdict == "missed by 17%"
    rows[1]["threads"] = 2  # nothing to compare with
    assert goals.judge({"rows": rows, "network": []}) == []


def test_time_beyond_linear_leaves_the_packing_out() -> None:
    base = row("dsn_S80", ms={"sparse": 1.1})
    dense = row("uniform_100", ms={"sparse": 0.1 + 1.5 * 258453 / 34459}, ratio={})
    rows = [row("packing", ms={"sparse": 0.1}), base, dense]
    (goal,) = goals.judge({"rows": rows, "network": []})
    assert goal.measured == "1.50x (uniform_100 fprop, 1 thread)"
    assert goal.verdict == "missed by 13%"


def test_break_even() -> None:
    assert goals.break_even([]) is None
    assert goals.break_even([(0.5, 0.9), (1.0, 0.5)]) == 0.5  # dense is faster everywhere
    assert goals.break_even([(1.0, 0.25), (0.5, 4.0)]) == 0.75
    assert math.isinf(goals.break_even([(0.5, 2.0), (1.0, 1.0)]) or 0)
    rows = [row(f"uniform_{p}", ratio={"conv1d": [r, r, r]}) for p, r in ((50, 4.0), (100, 0.25))]
    (goal,) = goals.judge({"rows": rows, "network": []})
    assert goal.goal.startswith("break-even")
    assert goal.measured == "75% (fprop, 1 thread)"
    assert goal.verdict == "missed by 17%"


def test_slower_than_dense_is_a_miss_at_low_density_only() -> None:
    slow = {"ratio": {"conv1d": [0.9, 0.9, 0.9]}}
    others = [row("kernel_3"), row("channels_1")]  # the goal speaks of all three suites
    dense, sparse = row("pointwise_dense", **slow), row("pointwise", **slow)
    (goal,) = goals.judge({"rows": [dense, *others], "network": []})
    assert goal.verdict == "met"
    (goal,) = goals.judge({"rows": [sparse, *others], "network": []})
    assert goal.verdict == "missed by 10%"
    assert goals.judge({"rows": [sparse], "network": []}) == []


def test_the_network() -> None:
    slow = network("update", 128, 35.0)
    slow["ratio"]["plain_step"] = [1 / 3.5, 0.25, 0.3]
    rows = [network("train", 128, 10.0, 4.0), slow]
    update, step = goals.judge({"rows": [], "network": rows})
    assert "2 steps longer than one without" in update.goal
    assert update.measured == "2.50 steps (L = 128, 1 thread)"  # beyond the step itself
    assert update.verdict == "missed by 20%"
    assert step.verdict == "missed by 20%"
    other = network("train", 128) | {"in_channels": 12}
    assert goals.judge({"rows": [], "network": [other]}) == []
    assert goals.table({"rows": [], "network": rows}).markdown().count("\n") == 3
