"""The CUDA kernels' own code, run on the CPU under sanitizers against the float64 oracle.

Every instance that can compute a case does, twice: with its threads in ascending and in descending
order. Shared memory and outputs are filled with NaN before, so an element that nothing wrote shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from cuda_host import (
    COMPUTATIONS,
    SHARED,
    STATIC_SHARED,
    Calls,
    Results,
    build,
    missing,
    most_shared,
)
from torch import Tensor

from sparseconv import KernelCSR
from sparseconv.bench.cases import CASES
from sparseconv.core.geometry import Geometry
from sparseconv.ops import calls as ops
from sparseconv.ops import cuda_plans
from sparseconv.ops.backends import extension
from sparseconv.testing import (
    LAYOUTS,
    PATTERNS,
    Case,
    Expected,
    Tensors,
    conv1d_oracle,
    expected_dgrad,
    expected_fprop,
    expected_wgrad,
    random_case,
)

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

EXPECTED = dict(zip(COMPUTATIONS, (expected_fprop, expected_dgrad, expected_wgrad), strict=True))
Compute = Callable[[Calls], list[Results]]


@pytest.fixture(scope="module")
def compute(tmp_path_factory: pytest.TempPathFactory) -> Compute:
    """Run calls under the sanitizers."""
    folder = tmp_path_factory.mktemp("cuda_host")
    program = build(folder)
    return lambda calls: calls.run(program, folder)


def all_of(compute: Compute, cases: list[Case]) -> Iterator[tuple[str, Case, Tensors, Results]]:
    calls, asked = Calls(), []
    for case in cases:
        tensors = case.tensors()
        for name in COMPUTATIONS:
            calls.add(name, case, tensors)
            asked.append((name, case, tensors))
    for (name, case, tensors), results in zip(asked, compute(calls), strict=True):
        yield name, case, tensors, results


def check(compute: Compute, cases: list[Case], exact: bool = False) -> None:
    """Every instance within the computed bound; of fprop and dgrad, all with the same bits."""
    for name, case, tensors, results in all_of(compute, cases):
        wanted: Expected = EXPECTED[name](case, tensors)
        first = next(iter(results.values()))
        for instance, got in results.items():
            error = (got.double() - wanted.exact).abs()
            bound = torch.zeros(()) if exact else wanted.bound
            assert (error <= bound).all(), f"{name} {instance}, {error.max():.3g} off: {case!r}"
            assert name == "wgrad" or got.equal(first), f"{name} {instance}: {case!r}"


@pytest.mark.parametrize("seed", range(4))
def test_random_cases_within_the_computed_bound(seed, compute, count_cases):
    rng = random.Random(seed)
    cases = [random_case(rng) for _ in range(50)]
    check(compute, cases)
    count_cases(sum(case.n > 0 and case.make_pattern().nnz > 0 for case in cases))


# Where a tile, a lane, a warp's rows, a block's rows or the channels loaded together end.
BOUNDARIES = [
    *(Case(2, 1, 2, 5, length, padding=2) for length in (16, 17, 18, 30, 31, 32, 61, 62, 63)),
    *(Case(n, 1, 1, 3, 40, density=0.9) for n in (1, 15, 16, 17, 31, 32, 33)),
    *(Case(1, 1, rows, 3, 9, density=0.9) for rows in (7, 8, 9, 16, 17)),
    *(Case(1, 1, 1, 3, length, density=0.9) for length in (545, 546, 547, 993, 994, 995, 1500)),
    Case(3, 70, 3, 39, 70, padding=(0, 38), padding_mode="replicate", density=0.1),
    Case(1, 12, 3, 9, 300, stride=4, density=0.2, dtype="float64"),
    Case(2, 9, 27, 3, 20, groups=3, density=0.5),
    Case(2, 24, 24, 3, 20, groups=24, density=0.8),
    Case(2, 2, 3, 7, 40, stride=9, dilation=2, padding=5),
    Case(2, 2, 3, 40, 60, density=0.5),  # one row more than registers hold
    Case(2, 2, 3, 39, 60, pattern="full"),  # more active weights than a warp has lanes
]


def test_every_boundary(compute, count_cases):
    check(compute, [replace(case, integers=True) for case in BOUNDARIES], exact=True)
    count_cases(len(BOUNDARIES))


def test_windows_that_no_shared_memory_holds(compute, count_cases):
    cases = [
        Case(1, 2, 2, 3, 14001, dilation=7000, padding=3, padding_mode=mode, dtype=dtype)
        for mode, dtype in (("zeros", "float32"), ("circular", "float16"))
    ]
    for _, case, _, results in all_of(compute, cases):
        assert list(results) == ["direct 0 17"], case
    check(compute, cases)
    count_cases(len(cases))


def test_named_patterns(compute, count_cases):
    cases = [
        Case(2, 6, 9, 5, 33, stride, (2, 3), dilation, groups, mode, pattern=pattern)
        for pattern in PATTERNS
        for mode in ("reflect", "circular")
        for stride, dilation, groups in ((1, 1, 1), (3, 2, 3))
    ]
    check(compute, cases)
    count_cases(len(cases))


def test_which_instance_is_launched(compute):
    """Registers for DSN's layers, narrow ones where there are few warps; else tiles."""
    long = CASES["dsn_evolved_L1024"]
    wanted = {
        CASES["dsn_evolved_L128"]: ("registers 39 17", "registers 39 17", "registers 39 31"),
        long: ("registers 39 31", "registers 39 17", "registers 39 31"),
        replace(long, length=2709): ("registers 39 31",) * 3,
        replace(long, kernel_size=26): ("registers 26 31", "registers 26 17", "registers 26 31"),
        replace(long, dtype="bfloat16"): ("registers 39 31", "registers 39 17", "registers 39 31"),
        replace(long, dtype="float64"): ("tiled 0 17",) * 3,
        replace(long, pattern="random", density=0.02): ("tiled 0 17",) * 3,
        Case(8, 16, 16, 5, 500, stride=2): ("tiled 0 17", "registers 13 17", "tiled 0 17"),
        Case(8, 16, 16, 64, 500): ("tiled 0 17",) * 3,
        Case(8, 16, 16, 3, 9000, dilation=4000): ("tiled 0 17", "tiled 0 17", "direct 0 17"),
    }
    calls = Calls()
    for case in wanted:
        for name in COMPUTATIONS:
            calls.add_choice(name, case)
    answers = iter([next(iter(answer)) for answer in compute(calls)])
    for case, names in wanted.items():
        assert tuple(next(answers) for _ in names) == names, case


def test_no_launch_asks_for_more_shared_memory_than_a_block_has(tmp_path, count_cases):
    """Whatever the shape; direct kernels for a stage alone, those of registers for a small tile."""
    found, tile = most_shared(tmp_path), 24 * 1024
    assert len(found) == 17  # instances
    for name, most in found.items():
        # fprop and dgrad store through the tile's memory, when that has done its duty.
        wgrad, size = name.startswith("wgrad"), 8 if name.endswith("double") else 4
        stage = size * 4 * 32 * (33 if wgrad else 17)
        assert 0 < most.bytes <= SHARED - STATIC_SHARED, (name, most)
        if "registers" in name:
            assert most.bytes <= tile + stage * wgrad, (name, most)
        if "direct" in name:
            assert most.bytes == stage, (name, most)
        assert most.launches > 2000, name
        count_cases(1)
    # Shapes that use up what tiling.h allows are among them.
    assert max(most.bytes for most in found.values()) > SHARED - 2 * 1024


def test_bits_are_those_of_the_cpu_kernels(compute, count_cases):
    """One chain of multiply-adds per output, in the same order, whatever the machine."""
    if extension is None:
        pytest.skip("the C++ extension is not built")
    rng = random.Random(7)
    cases = [random_case(rng, batched=True, dtype="float32") for _ in range(25)]
    for name, case, (x, values, bias, _), results in all_of(compute, cases):
        if name == "fprop":
            pattern = case.make_pattern()
            geometry = Geometry(pattern.shape, *case.geometry)
            y = ops.fprop(x, values, bias, pattern, geometry)
            assert all(got.equal(y) for got in results.values()), case
            count_cases(case.n > 0)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_layout_does_not_change_a_bit(dtype, compute, count_cases):
    case = Case(3, 4, 6, 5, 37, 2, (3, 2), 1, 2, "circular", dtype, density=0.5)
    plain, calls = case.tensors(), Calls()
    for layout in LAYOUTS.values():
        # Some layouts repeat elements: each is compared with its own contiguous copy.
        odd = plain._replace(input=layout(plain.input), grad=layout(plain.grad))
        odd = odd._replace(input=odd.input.resolve_neg(), grad=odd.grad.resolve_neg())
        even = odd._replace(input=odd.input.contiguous(), grad=odd.grad.contiguous())
        for tensors in (odd, even):
            for name in COMPUTATIONS:
                calls.add(name, case, tensors)
    results = compute(calls)
    n = len(COMPUTATIONS)
    for i in range(0, len(results), 2 * n):
        for a, b in zip(results[i : i + n], results[i + n : i + 2 * n], strict=True):
            assert all(a[instance].equal(b[instance]) for instance in a), list(LAYOUTS)[
                i // (2 * n)
            ]
    count_cases(len(LAYOUTS))


def test_relu_is_that_of_torch(compute, count_cases):
    case, calls = Case(2, 3, 5, 7, 50, padding=3), Calls()
    x, values, bias, grad = case.tensors()
    x[0, 0, 0] = float("nan")
    tensors = Tensors(x, values, bias, grad)
    calls.add("fprop", case, tensors)
    calls.add("fprop", case, tensors, relu=True)
    plain, relu = compute(calls)
    for instance, y in plain.items():
        assert y.isnan().any()
        assert relu[instance].equal(y.relu()) or torch.allclose(
            relu[instance], y.relu(), rtol=0, atol=0, equal_nan=True
        )
    count_cases(1)


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_nan_and_inf_travel_along_active_weights_only(special, compute, count_cases):
    for kernel_size, mode in ((3, "reflect"), (20, "zeros")):
        case = Case(1, 2, 4, kernel_size, 25, 1, (2, 1), 1, 1, mode, pattern="empty_row")
        plain, calls, marks = case.tensors(), Calls(), []
        for at in range(0, plain.input.numel(), 7):
            x, mark = plain.input.clone(), torch.zeros_like(plain.input)
            x.view(-1)[at], mark.view(-1)[at] = special, 1
            calls.add("fprop", case, plain._replace(input=x))
            marks.append(mark)
        ones = torch.ones_like(plain.values)
        for mark, results in zip(marks, compute(calls), strict=True):
            hit: Tensor = conv1d_oracle(mark, ones, case.make_pattern(), None, *case.geometry) > 0
            assert all((~y.isfinite()).equal(hit) for y in results.values()), case
        count_cases(len(marks))


def test_wrong_patterns_touch_no_memory_outside(compute, count_cases):
    """The sanitizers watch: nothing is checked on a GPU, since it would have to wait for it."""
    rng, calls = random.Random(3), Calls(patterns=False)
    for _ in range(40):
        case = random_case(rng)
        for name in COMPUTATIONS:
            calls.add(name, case, case.tensors())
    count_cases(len(compute(calls)))


@pytest.mark.parametrize("seed", range(30))
def test_the_transposed_pattern_is_that_of_the_cpu(seed):
    case = random_case(random.Random(seed))
    pattern = case.make_pattern()
    pointers, rows, source = cuda_plans.dgrad_plan(pattern, case.stride, case.dilation, case.groups)
    wanted = torch.ops.sparseconv.plan_dgrad(
        pattern.crow_indices, pattern.col_indices, pattern.shape, case.stride, case.dilation,
        case.groups,
    )  # fmt: skip
    assert pointers.equal(wanted[0])
    assert rows.dtype == source.dtype == torch.int32
    for begin, end in zip(pointers.tolist(), pointers.tolist()[1:], strict=False):
        assert source[begin:end].sort().values.equal(wanted[2][begin:end])
        assert (rows[begin:end].diff() > 0).all()
    positions = pattern.col_indices[source.long()] * case.dilation
    phase = positions % case.stride
    span = (case.dilation * (case.kernel_size - 1) - phase) // case.stride
    assert rows.equal((span - positions // case.stride).int())


def test_a_reach_beyond_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below 2\*\*31 on CUDA, but got 4294967297"):
        cuda_plans.fprop_rows(KernelCSR.full((1, 1, 5)), dilation=2**30)
