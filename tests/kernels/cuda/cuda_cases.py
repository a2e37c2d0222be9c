"""The CUDA kernels emulated on the CPU; ``test_cuda.py`` runs this file in a process of its own,
whose only kernels are those of ``emulated.cpp``, compiled under sanitizers.

Each case runs with every kernel that can compute it, and with threads and blocks in ascending and
in descending order. On a GPU ``test_kernels.py`` runs the same kernels.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from any_kernels import (
    check_integers,
    check_layout,
    check_special_input,
    digest,
    poisoned_memory,  # noqa: F401
    test_empty_row_gives_exactly_the_bias,  # noqa: F401
    test_nothing_to_do,  # noqa: F401
    test_relu_is_that_of_torch,  # noqa: F401
)
from engines import Engine, check, compute

from sparseconv import SparseConv1d
from sparseconv.core.geometry import Geometry
from sparseconv.functional import conv
from sparseconv.ops import calls, cuda_plans
from sparseconv.ops.backends import extension
from sparseconv.testing import LAYOUTS, PATTERNS, Case, random_case

assert extension is None, "run this file through test_cuda.py"

KERNEL, ORDER = "SPARSECONV_CUDA_KERNEL", "EMULATED_DESCENDING"


def with_fallback(op: Any) -> Callable[..., Any]:
    """A kernel that cannot compute a problem leaves it to the one that would be chosen."""

    def call(*args: Any) -> Any:
        try:
            return op(*args)
        except ValueError as error:
            if "cannot compute this problem" not in str(error):
                raise
        name = os.environ.pop(KERNEL)
        try:
            return op(*args)
        finally:
            os.environ[KERNEL] = name

    return call


torch.ops.load_library(os.environ["EMULATED_CUDA"])
conv.resolve_backend = lambda name, device: "cuda"
calls._cpu_fprop = lambda pattern, stride, dilation: cuda_plans.fprop_rows(pattern, dilation)
calls._cpu_wgrad = lambda *args: (calls._cpu_fprop(*args), None)
calls._cpu_dgrad = lambda *args: calls.DgradPlan(*cuda_plans.dgrad_plan(*args))
for op in ("_fprop", "_dgrad", "_wgrad"):
    setattr(calls, op, with_fallback(getattr(calls, op)))


@pytest.fixture
def engines(monkeypatch):
    def switch():
        for kernel in ("", "direct", "tiled", "narrow", "wide"):
            for order in ("", "1"):
                monkeypatch.setenv(KERNEL, kernel)
                monkeypatch.setenv(ORDER, order)
                yield Engine("cuda", isa=f"{kernel} {order}")

    return switch


@pytest.mark.parametrize("seed", range(4))
def test_random_cases_within_the_computed_bound(seed, engines, count_cases):
    rng = random.Random(seed)
    for _ in range(25):
        check(random_case(rng), engines)
    count_cases(25)


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
    # Windows that no shared memory holds.
    Case(1, 2, 2, 3, 14001, dilation=7000, padding=3),
    Case(1, 2, 2, 3, 14001, dilation=7000, padding=3, padding_mode="circular", dtype="float16"),
]


def test_every_boundary(engines, count_cases):
    for case in BOUNDARIES:
        check_integers(replace(case, integers=True), engines)
    count_cases(len(BOUNDARIES))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_named_patterns(pattern, engines, count_cases):
    for mode, stride, dilation, groups in (("reflect", 1, 1, 1), ("circular", 3, 2, 3)):
        options = (stride, (2, 3), dilation, groups, mode)
        check(Case(2, 6, 9, 5, 33, *options, pattern=pattern), engines)
    count_cases(2)


def test_bits_do_not_depend_on_the_kernel_or_on_the_order(engines, count_cases):
    rng = random.Random(7)
    for _ in range(10):
        case = random_case(rng)
        results = [compute(case, case.tensors(), engine) for engine in engines()]
        for y, dx, _ in results:
            assert y.equal(results[0][0]), case
            assert dx.equal(results[0][1]), case
        for i in range(0, len(results), 2):
            assert digest(results[i][2]) == digest(results[i + 1][2]), case
    count_cases(10)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_does_not_change_a_bit(name, engines, count_cases):
    case = Case(3, 4, 6, 5, 37, 2, (3, 2), 1, 2, "circular", "bfloat16", density=0.5)
    count_cases(check_layout(case, name, engines))


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kernel_size", "mode", "weights"),
    [
        (3, "reflect", True),
        (20, "zeros", False),
        pytest.param(
            20, "zeros", True,
            marks=pytest.mark.xfail(reason="wgrad reads beyond the last output, times zero"),
        ),
    ],
)  # fmt: skip
def test_nan_and_inf_travel_along_active_weights_only(
    special, kernel_size, mode, weights, engines, count_cases
):
    case = Case(1, 2, 4, kernel_size, 25, 1, (2, 1), 1, 1, mode, pattern="empty_row")
    check_special_input(case, special, engines, every=13, weights=weights)
    count_cases(1)


def test_wrong_indices_touch_no_memory_outside(engines, monkeypatch, count_cases):
    """The sanitizers watch: nothing is checked on a GPU, since that would have to wait for it."""
    rng, generator = random.Random(3), torch.Generator().manual_seed(0)
    wild = torch.tensor([-(2**31), -1, 0, 1, 7, 100, 2**31 - 1], dtype=torch.int32)

    def spoilt(plan):
        def call(*args):
            first, rows, *source = plan(*args)  # torch checks where dgrad's `source` points
            index = [torch.randint(7, t.shape, generator=generator) for t in (first, rows)]
            return (*(wild[i] for i in index), *source)

        return call

    for name in ("_fprop_plan", "_dgrad_plan_for", "_wgrad_plan"):
        monkeypatch.setattr(calls, name, spoilt(getattr(calls, name)))
    for _ in range(20):
        case = random_case(rng)
        for engine in engines():
            compute(case, case.tensors(), engine)
    count_cases(20)


def test_a_layer_trains():
    layer = SparseConv1d(3, 5, 9, padding=4, density=0.3)
    layer(torch.randn(2, 3, 30)).square().sum().backward()  # the gradient of the bias, too
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


def test_wrong_arguments_are_refused(monkeypatch):
    case = Case(2, 4, 6, 3, 20)
    x, values, bias, grad = case.tensors()
    pattern = case.make_pattern()
    g = Geometry(pattern.shape, *case.geometry)
    for call in (
        lambda: calls.fprop(x[:, 1:], values, bias, pattern, g),
        lambda: calls.fprop(x, values[1:], bias, pattern, g),
        lambda: calls.fprop(x.double(), values, bias, pattern, g),
        lambda: calls.fprop(x, values, bias[1:], pattern, g),
        lambda: calls.dgrad(grad[:, :, 1:], values, pattern, g, 20),
        lambda: calls.wgrad(grad[1:], x, pattern, g),
        lambda: calls.wgrad(grad.double(), x, pattern, g),
    ):
        with pytest.raises((ValueError, TypeError), match="expected"):
            call()
    monkeypatch.setenv(KERNEL, "fast")
    with pytest.raises(ValueError, match="direct, tiled, narrow or wide, but got 'fast'"):
        calls.fprop(x, values, bias, pattern, g)
