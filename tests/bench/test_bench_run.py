"""No figure without a check in the same run, and rows that follow from the measured times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dense_kernels import dense_ops, one_wrong
from torch import Tensor

from sparseconv.bench import growth, rivals, run
from sparseconv.bench.cases import CASES, Case, Problem, layer_problem
from sparseconv.measure import peaks, timing
from sparseconv.models import DSN
from sparseconv.ops import calls as ops
from sparseconv.ops.backends import extension

needs_extension = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
TINY = Case(2, 3, 4, 5, 20, padding=2, name="tiny", suite="layer")
PEAK = {"threads": 1, "isa": "avx512", "dtype": "float32", "fma_gflops": 2.0, "stream_gbs": 0.5}


@pytest.fixture(scope="module")
def small() -> Problem:
    torch.manual_seed(0)
    model = DSN(1, 2, nf=5, kernel_size=9, depth=2)
    return layer_problem(model.sparse_layers()[1], batch=3, length=20)


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_check_passes_right_kernels(small: Problem, mode: str) -> None:
    run.check(dense_ops(), small._replace(geometry=small.geometry._replace(padding_mode=mode)))


@pytest.mark.parametrize("name", run.COMPUTATIONS)
@pytest.mark.parametrize(
    "fault", [one_wrong, torch.zeros_like, lambda r: r * float("nan"), lambda r: r[:1]]
)
def test_check_refuses_a_wrong_kernel(
    small: Problem, name: str, fault: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(run.WrongResultError, match=f"{name} is wrong"):
        run.check(dense_ops(**{name: fault}), small)


@pytest.mark.parametrize("name", run.COMPUTATIONS)
def test_a_missing_term_does_not_hide_inside_the_bound_of_a_long_sum(name: str) -> None:
    """Without the last sample of the last series, a sum of 40 000 terms hardly changes."""
    right = dense_ops()

    def without_the_last(first: Tensor, *rest: Any) -> Tensor:
        first = first.clone()
        first[-1, :, -1] = 0
        return getattr(right, name)(first, *rest)

    wrong = SimpleNamespace(**(vars(right) | {name: without_the_last}))
    problem = replace(TINY, n=16, length=2500).build()
    with pytest.raises(run.WrongResultError, match=f"{name} is wrong"):
        run.check(wrong, problem)
    if name == "wgrad":
        exact, bound, terms = run.expected(problem)[name]
        assert terms == 40_000
        error = (wrong.wgrad(problem.grad, problem.x, *problem[3:]).double() - exact).abs()
        assert (error <= bound).all()


def test_a_check_leaves_the_problem_as_it_was() -> None:
    problem = replace(TINY, dtype="float64").build()
    run.check(dense_ops(), problem)
    assert not any(t.requires_grad for t in problem[:3])


@pytest.mark.parametrize("name", run.COMPUTATIONS)
def test_a_wrong_kernel_is_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "interleave", lambda *a, **k: pytest.fail("timed a wrong kernel"))
    wrong = dense_ops(**{name: one_wrong})
    with pytest.raises(run.WrongResultError, match=f"{name} is wrong"):
        run.measure(TINY, wrong)
    with pytest.raises(run.WrongResultError, match=f"{name} is wrong"):
        growth.measure("batch", wrong, cases=[TINY, replace(TINY, n=3)])


@needs_extension
def test_a_wrong_module_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseconv import SparseConv1d

    case = CASES["tiny_module"]
    forward = SparseConv1d.forward
    monkeypatch.setattr(SparseConv1d, "forward", lambda self, x: one_wrong(forward(self, x)))
    with pytest.raises(run.WrongResultError, match="SparseConv1d is wrong"):
        run.measure(case, ops)


@needs_extension
def test_a_module_has_the_rivals_that_were_asked_for() -> None:
    for names, found in ((["fft"], set()), (["fft", "conv1d"], {"conv1d"})):
        (line,) = run.measure(CASES["tiny_module"], ops, rival_names=names, rounds=3)
        assert set(line["ratio"]) == found


@needs_extension
def test_rows_follow_from_the_measured_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine twice as slow at the end; conv1d takes four times as long as the kernels."""

    def fake(
        calls: dict[str, Callable[[], Tensor]], *, rounds: int, least_seconds: float
    ) -> timing.Times:
        for call in calls.values():
            call()
        slower = np.linspace(1, 2, rounds)
        taken = {"sparse": 1e-3, "conv1d": 4e-3, "fma peak": peaks.loop(peak).flops / 2e9}
        return {name: taken[name] * slower for name in calls}

    monkeypatch.setattr(timing, "interleave", fake)
    peak = PEAK | {"isa": extension.isa()}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = run.measure(TINY, ops, rival_names=["conv1d"], rounds=9, machine_peaks=[peak])
    finally:
        torch.set_num_threads(before)
    assert [row["computation"] for row in rows] == list(run.COMPUTATIONS)
    nnz = TINY.make_pattern().nnz
    for row in rows:
        assert (row["case"], row["suite"], row["checked"]) == ("tiny", "layer", "float64 bound")
        assert (row["batch"], row["in_channels"], row["out_channels"]) == (2, 3, 4)
        assert row["nnz"] == nnz
        assert row["flops"] == 2 * nnz * 2 * 20
        assert row["dense_flops"] == 2 * 60 * 2 * 20
        assert row["bytes"] == 4 * (2 * 3 * 20 + 2 * 4 * 20 + nnz) + 4 * (nnz + 4 * 3 + 1)
        assert row["ms"] == pytest.approx({"sparse": 1.5, "conv1d": 6.0})
        assert row["ratio"]["conv1d"] == pytest.approx([4, 4, 4])
        assert row["gflops"] == pytest.approx(1e-9 * row["flops"] / 1.5e-3)
        # 2 GFLOP/s at first, when the kernels took 1 ms, and both half as fast at the end.
        assert row["share_of_peak"] == pytest.approx(1e-9 * row["flops"] / 1e-3 / 2.0)
        roof = 0.5 * row["flops"] / row["bytes"]
        assert roof < 1.0
        assert row["share_of_roof"] == pytest.approx(row["gflops"] / roof)
        assert row["drift"] == pytest.approx(1.875 / 1.125)
        assert row["absent"] == {}


@needs_extension
def test_a_row_without_its_peak_has_no_share() -> None:
    rows = run.measure(TINY, ops, rival_names=[], rounds=3, machine_peaks=[PEAK | {"threads": 99}])
    assert all(row["share_of_peak"] is row["share_of_roof"] is None for row in rows)


@needs_extension
def test_a_case_forces_its_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSECONV_CPU_ISA", raising=False)
    best = extension.isa()
    rows = run.measure(replace(TINY, isa="baseline"), ops, rival_names=["conv1d"], rounds=3)
    assert {row["isa"] for row in rows} == {"baseline"}
    assert extension.isa() == best
    with pytest.raises(ValueError, match="sse9"):
        run.measure(replace(TINY, isa="sse9"), ops)
    assert extension.isa() == best


@needs_extension
def test_absent_rivals_are_in_no_row_but_named() -> None:
    rows = run.measure(replace(TINY, dtype="bfloat16"), ops, rival_names=["fft"], rounds=3)
    for row in rows:
        assert set(row["ms"]) == {"sparse"}
        assert not row["ratio"]
        assert "BFloat16" in row["absent"]["fft"]


@needs_extension
def test_every_rival_stands_in_a_real_row() -> None:
    rows = run.measure(TINY, ops, rounds=3)
    for row in rows:
        assert set(row["ms"]) == {"sparse", *rivals.RIVALS}
        assert all(0 < low <= median <= high for median, low, high in row["ratio"].values())


def test_exponents_of_known_curves() -> None:
    sizes = [1, 2, 4, 8]
    assert growth.exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    rng = np.random.default_rng(0)
    samples = np.array(sizes) ** 2.0 * rng.lognormal(0, 0.1, (200, 4))
    low, high = growth.exponent_range(sizes, samples)
    assert low < 2 < high
    assert high - low < 0.1
    low, high = growth.exponent_range(sizes, np.tile(samples[:1], (5, 1)))
    assert low == pytest.approx(high)  # no noise, no range


def test_peak_memory_of_known_calls() -> None:
    assert growth.peak_bytes(lambda: torch.zeros(1000)) == 4000
    assert growth.peak_bytes(lambda: (torch.zeros(1000) + 1).sum()) >= 8000
    assert growth.peak_bytes(lambda: [torch.zeros(1000).sum() for _ in range(50)]) < 4 * 4000


def test_growth_of_the_dense_path() -> None:
    """Sizes and memory are those of the cases; the result of fprop grows with the batch."""
    batches = [replace(TINY, n=n) for n in (1, 2, 4)]
    fits = growth.measure("batch", dense_ops(), cases=batches, rounds=3)
    assert [fit["computation"] for fit in fits] == list(run.COMPUTATIONS)
    for fit in fits:
        assert [point[0] for point in fit["points"]] == [1, 2, 4]
        assert all(ms > 0 and peak > 0 for _, ms, peak in fit["points"])
        low, high = fit["exponent_range"]
        assert low <= high
        assert np.isfinite([fit["exponent"], fit["memory_exponent"]]).all()
    memory = [peak for _, _, peak in fits[0]["points"]]
    assert all(b > a for a, b in itertools.pairwise(memory))


@pytest.mark.parametrize("quantity", growth.SERIES)
def test_series_grow_from_small_to_large(quantity: str) -> None:
    patterns = [case.make_pattern() for case in growth.SERIES[quantity]]
    sizes = {
        "nnz": [p.nnz for p in patterns],
        "batch": [c.n for c in growth.SERIES[quantity]],
        "length": [c.length for c in growth.SERIES[quantity]],
        "in_channels": [p.shape[1] for p in patterns],
    }[quantity]
    assert all(b > a for a, b in itertools.pairwise(sizes))
    assert sizes[-1] >= 32 * sizes[0]
