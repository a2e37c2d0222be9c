"""Baselines: each computes the same convolution, and one that does not is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bench_rows import shrunk
from torch import Tensor

from benchmarks.bench import run
from benchmarks.bench.baselines import BASELINES, Calls
from benchmarks.bench.cases import CASES, Problem

OF = {name: set(run.COMPUTATIONS) for name in BASELINES} | {"fft_prepared": {"fprop", "dgrad"}}
# Every option, pattern and dtype; the other suites vary sizes.
SOME = [case.name for case in CASES.values() if case.suite in ("options", "adversarial", "trained")]


def all_right(problem: Problem) -> None:
    wanted = run.exact_results(problem)
    for name in BASELINES:
        right, absent = run.checked_baseline(name, problem, wanted)
        before, after = problem.geometry.padding
        two_ways = problem.geometry.padding_mode == "zeros" and before == after > 0
        computations = OF[name] if two_ways or not name.endswith("_padded") else set()
        assert set(right) == computations, (name, absent)


@pytest.mark.parametrize("name", [*SOME, "float64", "uci_HAR_dense"])
def test_every_baseline_is_right_on_every_kind_of_case(name: str) -> None:
    all_right(shrunk(CASES[name], outputs=24).build())


@pytest.fixture(scope="module")
def small() -> Problem:
    return shrunk(CASES["stride_2"], outputs=16).build()


@pytest.mark.parametrize(("name", "computation"), [("conv1d", "dgrad"), ("fft_prepared", "fprop")])
@pytest.mark.parametrize(
    "fault",
    [
        lambda r: 1.1 * r,
        lambda r: r.roll(1, -1),
        lambda r: r * float("nan"),
        lambda r: r[..., :1],
        lambda r: r.index_fill(-1, torch.tensor(0), 0.0),  # one output of a series
    ],
)
def test_a_wrong_baseline_is_left_out_with_the_reason(
    small: Problem,
    name: str,
    computation: str,
    fault: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = BASELINES[name]

    def wrong(problem: Problem) -> Calls:
        calls = right(problem)
        call = calls[computation]
        return calls | {computation: lambda: fault(call())}

    monkeypatch.setitem(BASELINES, name, wrong)
    calls, absent = run.checked_baseline(name, small, run.exact_results(small))
    assert set(calls) == OF[name] - {computation}
    assert set(absent) == {computation}
    assert "wrong" in absent[computation]
