"""Goals are judged by the worst row that they speak of, and only where there is one."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
from bench_rows import network, random_kernels, row

from sparseconv.bench import goals, own_order, run
from sparseconv.bench import random_kernels as kernels
from sparseconv.bench.cases import CASES
from sparseconv.bench.network import compare
from sparseconv.rocket.bank import KINDS


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What a whole run measures."""
    rows = [row(name, c, t) for name in CASES for c in run.COMPUTATIONS for t in (1, 2)]
    rows += [row("tiny_module", "both passes")]
    nrows = [
        network(
            mode, n, batch=1 if mode == "latency" else compare.BATCH, threads=t,
            **({"plain_step": 0.5} if mode == "update" else {}),
        )
        for mode in compare.MODES
        for n in compare.LENGTHS
        for t in (1, 2)
    ]  # fmt: skip
    nrows += [
        network("train", n, batch=batch, in_channels=channels)
        for batch, n, channels in compare.RECIPE
    ]
    own = [row(f"dsn_evolved_L{n}", c) for n in own_order.LENGTHS for c in run.COMPUTATIONS]
    features = [random_kernels("rocket", kernels.BATCH, (1, 150), isa="avx2")]
    for kind, shape in itertools.product(KINDS, kernels.SHAPES):
        features += [random_kernels(kind, n, shape) for n in (kernels.BATCH, 1)]
        features += [random_kernels(kind, kernels.BATCH, shape, kept) for kept in kernels.KEPT]
    return {"rows": rows, "own_order": own, "network": nrows, "random_kernels": features}


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {goal.goal: goal.verdict for goal in goals.judge(document)}


def test_all_goals_are_judged_and_met(document: dict[str, Any]) -> None:
    found = verdicts(document)
    # Of the layer, order, shapes, density, others, network, random kernels.
    assert len(found) == 8 + 3 + 3 + 3 + 4 + 20 + 14
    assert found.pop("bfloat16, float16: stated") == "stated"
    assert set(found.values()) == {"met"}, found


def test_a_whole_run_has_rows_for_every_goal(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A goal without rows is left out silently, as it has to be in a part of a run."""
    asked: list[str] = []
    for name in ("_worst", "_each"):
        judge = getattr(goals, name)

        def noted(goal: str, *arguments: Any, judge: Any = judge, **options: Any) -> Any:
            asked.append(goal)
            return judge(goal, *arguments, **options)

        monkeypatch.setattr(goals, name, noted)
    judged = verdicts(document)
    assert asked
    assert [goal for goal in asked if goal not in judged] == []


@pytest.mark.parametrize(
    ("goal", "field", "value", "verdict"),
    [
        ("fprop, dgrad, L = 128-1024: ≥ 8x", "conv1d", 6.0, "missed by 25%"),
        ("every L: ≥ 6x conv2d", "conv2d_channels_last", 4.5, "missed by 25%"),
        ("every L: ≥ 3x the fastest baseline", "fft_prepared", 1.5, "missed by 50%"),
    ],
)
def test_one_bad_row_of_many_decides(
    document: dict[str, Any], goal: str, field: str, value: float, verdict: str
) -> None:
    rows = copy.deepcopy(document["rows"])
    (bad,) = [
        r for r in rows
        if (r["case"], r["computation"], r["threads"]) == ("dsn_prefix_L512", "dgrad", 2)
    ]  # fmt: skip
    if field in bad:
        bad[field] = value
    else:
        bad["ratio"][field] = [value] * 3
    missed = [g for g in goals.judge(document | {"rows": rows}) if g.verdict.startswith("missed")]
    assert [g.verdict for g in missed] == [verdict]
    assert missed[0].goal.startswith(goal)
    assert "dsn_prefix_L512 dgrad, 2 threads" in missed[0].measured


def test_time_per_element_is_compared_with_sixteen_series() -> None:
    rows = [row("batch_16", ms={"sparse": 1.6}), row("batch_1", ms={"sparse": 0.15})]
    (goal,) = goals.judge({"rows": rows, "network": []})
    assert goal.measured == "1.50x (batch_1 fprop, 1 thread)"
    assert goal.verdict == "missed by 20%"  # 1.5 of at most 1.25
    rows[1]["threads"] = 2  # nothing to compare with
    assert goals.judge({"rows": rows, "network": []}) == []


def test_time_beyond_linear_leaves_the_packing_out() -> None:
    base = row("dsn_S80", ms={"sparse": 1.1})
    dense = row("uniform_100", ms={"sparse": 0.1 + 1.5 * 258453 / 34459}, ratio={})
    rows = [row("packing", ms={"sparse": 0.1}), base, dense]
    (goal,) = goals.judge({"rows": rows, "network": []})
    assert goal.measured == "1.50x (uniform_100 fprop, 1 thread)"
    assert goal.verdict == "missed by 15%"  # 1.5 of at most 1.3


def test_break_even() -> None:
    assert goals.break_even([(0.5, 0.9), (1.0, 0.5)]) == 0.5  # dense is faster everywhere
    assert goals.break_even([(1.0, 0.25), (0.5, 4.0)]) == 0.75
    assert math.isinf(goals.break_even([(0.5, 2.0), (1.0, 1.0)]))
    rows = [row("uniform_50", conv1d=4.0, fft=2.0), row("uniform_100", conv1d=2.0, fft=0.5)]
    dense, fastest = goals.judge({"rows": rows, "network": []})
    assert dense.goal == "break-even with F.conv1d at a density ≥ 90%"
    assert (dense.measured, dense.verdict) == ("never below 100 % (fprop, 1 thread)", "met")
    assert fastest.goal == "break-even with the fastest baseline at a density ≥ 50%"
    assert (fastest.measured, fastest.verdict) == ("75% (fprop, 1 thread)", "met")
    rows[0]["ratio"]["im2col_csr"] = [0.5, 0.5, 0.5]
    assert goals.judge({"rows": rows, "network": []})[1].measured == "50% (fprop, 1 thread)"


def test_slower_than_another_is_a_miss_at_low_density_only() -> None:
    slow = {"conv1d": 1.5, "im2col_csr": 0.9}
    others = [row("kernel_3"), row("channels_1")]  # the goal is about all three suites
    dense, sparse = row("pointwise_dense", **slow), row("pointwise", **slow)
    found = goals.judge({"rows": [dense, *others], "network": []})
    assert [goal.verdict for goal in found] == ["met", "met"]
    found = goals.judge({"rows": [sparse, *others], "network": []})
    assert [goal.verdict for goal in found] == ["met", "missed by 10%"]
    assert goals.judge({"rows": [sparse], "network": []}) == []


def test_the_network() -> None:
    rows = [
        network("train", 128, masked_dense=4.0),
        network("update", 128, plain_step=1 / 3.5),
    ]
    update, step, best, never = goals.judge({"rows": [], "network": rows})
    assert best.measured == "4.0x, -"
    assert never.goal.endswith("never slower than any dense network")
    assert never.measured == "4.00x (train, L = 128, 1 thread)"
    assert "1.5 steps longer than one without" in update.goal
    assert update.measured == "2.50 steps (update, L = 128, 1 thread)"  # beyond the step itself
    assert update.verdict == "missed by 67%"  # 2.5 of at most 1.5
    assert (step.measured, step.verdict) == ("4.0x, -", "missed by 41%")  # of 6.8x
    other = network("train", 128) | {"in_channels": 12}
    assert goals.judge({"rows": [], "network": [other]}) == []
