"""The Triton kernels in Triton's interpreter; ``test_triton.py`` runs this file in a process of its
own, because Triton decides when it is imported whether to interpret.

An interpreted program takes milliseconds, so the cases are small. On a GPU ``test_kernels.py`` runs
the same kernels, compiled.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from any_kernels import (
    MODES,
    check_integers,
    check_layout,
    check_special_input,
    poisoned_memory,  # noqa: F401
    test_empty_row_gives_exactly_the_bias,  # noqa: F401
    test_nothing_to_do,  # noqa: F401
    test_relu_is_that_of_torch,  # noqa: F401
    test_wrong_tensors_are_refused,  # noqa: F401
)
from engines import Engine, check, compute, expected
from layouts import LAYOUTS
from torch.utils.flop_counter import FlopCounterMode
from transposed_cases import check as check_transposed
from transposed_cases import random_transposed

from sparseconv import KernelCSR, sparse_conv1d
from sparseconv.core.geometry import Geometry
from sparseconv.ops import triton
from sparseconv.ops.flops import teach_counters
from sparseconv.ops.schemas import KERNELS
from sparseconv.ops.triton import launch
from sparseconv.testing import PATTERNS, Case, random_case

assert triton.INTERPRETED, "run this file through test_triton.py"

if tuple(map(int, version("triton").split(".")[:2])) >= (3, 7):  # before, interpreters round twice
    from any_kernels import test_multiply_add_rounds_once  # noqa: F401

ENGINE = Engine("triton")
SLOW = pytest.mark.campaign("Triton interprets it for seconds")


@pytest.fixture
def engines():
    return lambda: iter([ENGINE])


def small_case(rng: random.Random, draw: Callable[..., Case] = random_case, **fixed: Any) -> Case:
    while True:
        case = draw(rng, **fixed)
        programs = case.out_channels + case.in_channels * case.stride
        if case.n > 0 and programs <= 20 and 0 < case.make_pattern().nnz <= 30:
            return case


@pytest.mark.parametrize("seed", range(3))
def test_random_cases_within_the_computed_bound(seed, engines, campaign, count_cases):
    rng, cases = random.Random(seed), campaign(3, 70)
    for _ in range(cases):
        check(small_case(rng), engines)
    count_cases(cases)


@pytest.mark.parametrize("seed", range(2))
def test_transposed_within_the_computed_bound(seed, engines, campaign, count_cases):
    rng, cases = random.Random(seed), campaign(3, 70)
    for _ in range(cases):
        check_transposed(small_case(rng, random_transposed, bias=True), engines)
    count_cases(cases)


def test_integers_are_exact(engines, campaign, count_cases):
    rng, counted = random.Random(99), 0
    while counted < campaign(3, 15):
        counted += check_integers(small_case(rng, integers=True, dtype="float32"), engines)
    count_cases(counted)


@pytest.mark.parametrize(("number", "pattern"), [*enumerate(PATTERNS)])
def test_named_patterns(number, pattern, engines, count_cases):
    """Each pattern in one padding mode, or it would take a minute; the random cases mix them."""
    mode = MODES[number % 4]
    stride, dilation, groups = ((1, 1, 1), (2, 1, 3), (1, 3, 1), (3, 2, 3))[number % 4]
    check(Case(2, 3, 6, 4, 11, stride, (2, 3), dilation, groups, mode, pattern=pattern), engines)
    count_cases(1)


@SLOW
@pytest.mark.parametrize("mode", MODES)
def test_tiles_inside_and_at_the_ends(mode, engines, count_cases):
    """Series of several tiles; only where all taps stay inside is a tile computed the fast way.

    At length 258 the last whole tile of fprop and of wgrad ends inside the series, but its taps
    do not; at 262 they do.
    """
    sizes = ((16, 258, 1), (9, 300, 2), (16, 262, 1), (1, 1100, 1), (3, 270, 1))
    for n, length, stride in sizes:
        case = Case(n, 2, 2, 5, length, stride, (3, 4), 2, 1, mode, seed=n, integers=True)
        assert check_integers(case, engines)
        count_cases(1)


@SLOW
def test_wgrad_adds_chunks(monkeypatch, count_cases):
    case = Case(2, 1, 1, 3, 9000, padding=1, pattern="full", integers=True)
    tensors = case.tensors()
    exact = expected(case, tensors)[2].exact
    for least in (1, 2, 16):
        monkeypatch.setattr(launch, "_LEAST_TILES", least)
        assert compute(case, tensors, ENGINE)[2].equal(exact.float())
    count_cases(3)


@SLOW
def test_bits_do_not_depend_on_the_batch(count_cases):
    case = Case(5, 2, 3, 5, 40, padding=(1, 4), padding_mode="replicate", density=0.6)
    tensors = case.tensors()
    y, dx, dw = compute(case, tensors, ENGINE)
    assert compute(case, tensors, ENGINE)[2].equal(dw)
    for i in range(case.n):
        one = tensors._replace(input=tensors.input[i : i + 1], grad=tensors.grad[i : i + 1])
        y_i, dx_i, _ = compute(case, one, ENGINE)
        assert y_i.equal(y[i : i + 1])
        assert dx_i.equal(dx[i : i + 1])
    count_cases(case.n)


@SLOW
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_does_not_change_a_bit(name, engines, count_cases):
    case = Case(3, 2, 2, 2, 7, padding=1, dtype="float32", density=0.7)
    count_cases(check_layout(case, name, engines))


@pytest.mark.parametrize(("mode", "special"), [*zip(MODES, ("nan", "inf") * 2, strict=True)])
def test_nan_and_inf_travel_along_active_weights_only(mode, special, engines, count_cases):
    case = Case(1, 2, 3, 3, 10, 2, (2, 1), 1, 1, mode, pattern="empty_row", density=0.4)
    check_special_input(case, float(special), engines, every=13)
    count_cases(1)


def test_ops_are_what_their_schemas_say():
    geometry = Geometry.of((4, 1, 3), 2, (2, 1), 1, 2, "reflect")
    pattern = KernelCSR.random(geometry.shape, 6)
    x, grad = torch.randn(2, 2, 9), torch.randn(2, 4, geometry.output_length(9))
    values, bias = torch.randn(6), torch.randn(4)
    context = pattern.crow_indices, pattern.col_indices, geometry
    ops: dict[str, tuple[Any, ...]] = {
        "fprop": (x, values, bias, *context, True),
        "dgrad": (grad, values, *context, 9),
        "wgrad": (grad, x, *context),
    }
    teach_counters()  # as a call of the library does
    for name, args in ops.items():
        op: Callable[..., Any] = getattr(torch.ops.sparseconv, f"triton_{name}").default
        torch.library.opcheck(op, args)
        with FlopCounterMode(display=False) as counter:
            op(*args)
        assert counter.get_total_flops() == 2 * 6 * 2 * grad.shape[2]


def test_a_wrong_geometry_and_too_long_a_series_are_refused():
    with pytest.raises(ValueError, match="geometry"):
        KERNELS["triton"].fprop(torch.ones(1, 1, 3), *[torch.ones(1)] * 4, (4, 3))
    x = torch.ones(1).expand(1, 1, 2**31)
    pattern = KernelCSR.full((1, 1, 1))
    with pytest.raises(NotImplementedError, match=r"below 2\*\*31.*backend='reference'"):
        sparse_conv1d(x, torch.ones(1), pattern, stride=2**20, backend="triton")
