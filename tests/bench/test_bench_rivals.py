"""Rivals: each computes the same convolution, and one that does not is none."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from dense_kernels import dense_ops
from torch import Tensor

from sparseconv import testing
from sparseconv.bench import rivals, run
from sparseconv.bench.cases import CASES, Case, Problem

OWN = ("float16", "bfloat16")  # half types: what each rival makes of them is recorded, not promised


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].dtype not in OWN])
def test_every_rival_is_right_on_every_case(name: str) -> None:
    problem = CASES[name].shrunk(outputs=24).build()
    wanted = run.expected(problem)
    for rival in rivals.RIVALS:
        right, absent = run.check_rival(rival, problem, wanted)
        assert set(right) == set(run.COMPUTATIONS), (rival, absent)


@pytest.mark.parametrize("seed", range(60))
def test_every_rival_is_right_on_random_cases(seed: int) -> None:
    """All padding modes, pads that differ, strides that leave samples over, groups."""
    rng = random.Random(seed)
    while True:
        drawn = testing.random_case(
            rng, batched=True, bias=False, dtype=rng.choice(("float32", "float64")),
            pattern=rng.choice(("random", "empty_row", "full")),
        )  # fmt: skip
        if drawn.n and drawn.make_pattern().nnz:
            break
    problem = Case(**vars(drawn), name="drawn", suite="options").build()
    wanted = run.expected(problem)
    for rival in rivals.RIVALS:
        right, absent = run.check_rival(rival, problem, wanted)
        assert set(right) == set(run.COMPUTATIONS), (rival, absent, drawn)


@pytest.fixture(scope="module")
def small() -> Problem:
    return CASES["stride_2"].shrunk(outputs=16).build()


def _nothing(problem: Problem) -> rivals.Calls:
    return {name: lambda: torch.zeros(()) for name in run.COMPUTATIONS}


@pytest.mark.parametrize("rival", rivals.RIVALS)
@pytest.mark.parametrize("computation", run.COMPUTATIONS)
@pytest.mark.parametrize(
    "fault", [lambda r: 1.1 * r, lambda r: r.roll(1, -1), lambda r: r * float("nan")]
)
def test_a_wrong_rival_is_left_out_with_the_reason(
    small: Problem,
    rival: str,
    computation: str,
    fault: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = rivals.RIVALS[rival]

    def wrong(problem: Problem) -> rivals.Calls:
        calls = right(problem)
        call = calls[computation]
        return calls | {computation: lambda: fault(call())}

    monkeypatch.setitem(rivals.RIVALS, rival, wrong)
    calls, absent = run.check_rival(rival, small, run.expected(small))
    assert set(calls) == set(run.COMPUTATIONS) - {computation}
    assert set(absent) == {computation}
    assert "wrong" in absent[computation]


def test_a_rival_that_cannot_run_is_left_out_with_the_reason(small: Problem) -> None:
    half = CASES["bfloat16"].shrunk(outputs=8).build()
    calls, absent = run.check_rival("fft", half, run.expected(half))
    assert not calls
    assert all("BFloat16" in absent[name] for name in run.COMPUTATIONS)


def test_a_wrong_shape_is_wrong(small: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals.RIVALS, "conv1d", _nothing)
    calls, absent = run.check_rival("conv1d", small, run.expected(small))
    assert not calls
    assert set(absent) == set(run.COMPUTATIONS)


def test_the_rivals_are_what_they_are_called(small: Problem) -> None:
    """Each runs the operator that its name promises."""
    operators = {
        "conv1d": "aten::conv1d",
        "conv2d_channels_last": "aten::conv2d",
        "masked_dense": "aten::mul",
        "im2col_csr": "aten::addmm",
        "fft": "aten::fft_rfft",
    }
    assert set(operators) == set(rivals.RIVALS)
    for name, operator in operators.items():
        call = rivals.RIVALS[name](small)["fprop"]
        with torch.autograd.profiler.profile() as profiler:
            call()
        assert operator in {event.name for event in profiler.function_events}, name


def test_channels_last_stays_channels_last(small: Problem) -> None:
    fprop = rivals.conv2d_channels_last(small)["fprop"]
    assert fprop().unsqueeze(2).is_contiguous(memory_format=torch.channels_last)


def test_the_dense_kernels_of_the_tests_are_right(small: Problem) -> None:
    run.check(dense_ops(), small)
