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
from engines import NAMES, Engine, check, compute, expected
from test_kernels import (  # noqa: F401  tests that are as small
    count,
    poisoned_memory,
    test_empty_row_gives_exactly_the_bias,
    test_nothing_to_do,
    test_values_are_read_afresh,
)
from torch.utils.flop_counter import FlopCounterMode

from sparseconv import KernelCSR, SparseConv1d, sparse_conv1d
from sparseconv.core.geometry import Geometry
from sparseconv.ops import triton
from sparseconv.ops.triton import launch, plan
from sparseconv.testing import LAYOUTS, PATTERNS, Case, Tensors, random_case

assert triton.INTERPRETED, "run this file through test_triton.py"

if tuple(map(int, version("triton").split(".")[:2])) >= (3, 7):  # before, interpreters round twice
    from test_kernels import test_multiply_add_rounds_once_on_every_isa  # noqa: F401

ENGINE = Engine("triton")
MODES = ("zeros", "replicate", "reflect", "circular")
SMALL = Case(2, 2, 3, 3, 9, padding=2, density=0.5, dtype="float64")


@pytest.fixture
def engines():
    return lambda: iter([ENGINE])


def small_case(rng: random.Random, **fixed: Any) -> Case:
    while True:
        case = random_case(rng, **fixed)
        programs = case.out_channels + case.in_channels * case.stride
        if case.n > 0 and programs <= 20 and 0 < case.make_pattern().nnz <= 50:
            return case


@pytest.mark.parametrize("seed", range(14))
def test_random_cases_within_the_computed_bound(seed, engines, count_cases):
    rng = random.Random(seed)
    for _ in range(15):
        check(small_case(rng), engines)
    count_cases(15)


def test_integers_are_exact(count_cases):
    rng, counted = random.Random(99), 0
    while counted < 15:
        case = small_case(rng, integers=True, dtype="float32")
        tensors = case.tensors()
        wanted = [exact for exact, _ in expected(case, tensors)]
        if (wanted[0] == 0).double().mean() > 0.7:
            continue  # a result of zeros proves nothing
        for name, got, exact in zip(NAMES, compute(case, tensors, ENGINE), wanted, strict=True):
            assert got.equal(exact.float()), f"{name}: {case!r}"
        counted += 1
    count_cases(counted)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_named_patterns(pattern, engines, count_cases):
    for mode, options in zip(MODES, ((1, 1, 1), (2, 1, 3), (1, 3, 1), (3, 2, 3)), strict=True):
        stride, dilation, groups = options
        check(
            Case(2, 3, 6, 4, 11, stride, (2, 3), dilation, groups, mode, pattern=pattern), engines
        )
    count_cases(4)


@pytest.mark.parametrize("mode", MODES)
def test_tiles_inside_and_at_the_ends(mode, engines, count_cases):
    """Series of several tiles; only where all taps stay inside is a tile computed the fast way.

    At length 258 the last whole tile of fprop and of wgrad ends inside the series, but its taps
    do not; at 262 they do.
    """
    sizes = ((16, 258, 1), (16, 262, 1), (9, 300, 2), (1, 1100, 1), (3, 270, 1))
    for n, length, stride in sizes:
        case = Case(n, 2, 2, 5, length, stride, (3, 4), 2, 1, mode, seed=n, integers=True)
        tensors = case.tensors()
        wanted = [exact for exact, _ in expected(case, tensors)]
        for name, got, exact in zip(NAMES, compute(case, tensors, ENGINE), wanted, strict=True):
            assert got.equal(exact.float()), f"{name}: {case!r}"
    count_cases(len(sizes))


def test_wgrad_adds_chunks(monkeypatch, count_cases):
    case = Case(2, 1, 1, 3, 9000, padding=1, pattern="full", integers=True)
    tensors = case.tensors()
    exact = expected(case, tensors)[2].exact
    for least in (1, 2, 16):
        monkeypatch.setattr(launch, "_LEAST_TILES", least)
        assert compute(case, tensors, ENGINE)[2].equal(exact.float())
    count_cases(3)


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


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_does_not_change_a_bit(name, count_cases):
    case = Case(3, 2, 2, 2, 7, padding=1, dtype="float32", density=0.7)
    plain = case.tensors()
    for field in Tensors._fields:
        odd = plain._replace(**{field: LAYOUTS[name](getattr(plain, field))})
        even = odd._replace(**{field: getattr(odd, field).contiguous().clone()})
        both = (compute(case, tensors, ENGINE) for tensors in (odd, even))
        for what, a, b in zip(NAMES, *both, strict=True):
            assert a.equal(b), f"{what} with {name} {field}: {case!r}"
    count_cases(len(Tensors._fields))


@pytest.mark.parametrize("mode", MODES)
def test_nan_and_inf_travel_along_active_weights_only(mode, count_cases):
    case = Case(1, 2, 3, 3, 10, 2, (2, 1), 1, 1, mode, pattern="empty_row", density=0.4)
    plain = case.tensors()
    ones = Tensors(*(torch.ones_like(t) for t in plain))
    for special, at in ((float("nan"), 0), (float("inf"), 7), (-float("inf"), 19)):
        x, mark = plain.input.clone(), torch.zeros_like(plain.input)
        x.view(-1)[at], mark.view(-1)[at] = special, 1
        y, dx, dw = compute(case, plain._replace(input=x), ENGINE)
        assert (~y.isfinite()).equal(count(case, "fprop", mark, ones.values))
        assert dx.isfinite().all()
        assert (~dw.isfinite()).equal(count(case, "wgrad", ones.grad, mark))
    for special, at in ((float("nan"), 0), (float("inf"), plain.grad.numel() - 1)):
        grad, mark = plain.grad.clone(), torch.zeros_like(plain.grad)
        grad.view(-1)[at], mark.view(-1)[at] = special, 1
        _, dx, _ = compute(case, plain._replace(grad=grad), ENGINE)
        assert (~dx.isfinite()).equal(count(case, "dgrad", mark, ones.values))
    count_cases(5)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_every_order(mode):
    case = Case(1, 2, 2, 2, 4, 2, (1, 2), 1, 2, mode, "float64", density=0.6)
    inputs = [t.requires_grad_() for t in case.tensors()[:3]]
    pattern = case.make_pattern()

    def function(x, values, bias):
        return sparse_conv1d(x, values, pattern, bias, **case.options, backend="triton")

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_relu_is_that_of_torch():
    x, values, bias, grad = SMALL.tensors()
    x[0, 0, 4] = float("nan")
    pattern = SMALL.make_pattern()
    results = []
    for relu in (False, True):
        leaves = [t.detach().clone().requires_grad_() for t in (x, values, bias)]
        y = sparse_conv1d(
            leaves[0],
            leaves[1],
            pattern,
            leaves[2],
            **SMALL.options,
            backend="triton",
            relu=relu,
        )
        y = y if relu else y.relu()
        results.append((y, *torch.autograd.grad(y, leaves, grad)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert results[0][0].isnan().any()
    assert (results[0][0] == 0).any()


def layer_and_input() -> tuple[SparseConv1d, torch.Tensor]:
    torch.manual_seed(0)
    layer = SparseConv1d(2, 3, 3, 2, (1, 2), density=0.5, backend="triton")
    return layer, torch.randn(2, 2, 9, requires_grad=True)


def test_compiled_without_a_break():
    layer, x = layer_and_input()
    leaves = (x, *layer.parameters())
    y = layer(x)
    wanted = torch.autograd.grad(y.square().sum(), leaves)
    compiled = torch.compile(layer, fullgraph=True)(x)
    assert compiled.equal(y)
    for a, b in zip(torch.autograd.grad(compiled.square().sum(), leaves), wanted, strict=True):
        assert a.equal(b)


def test_exported():
    layer, x = layer_and_input()
    y = layer(x)
    assert torch.export.export(layer, (x,)).module()(x).equal(y)


def test_ops_are_what_their_schemas_say():
    geometry = Geometry((4, 1, 3), 2, (2, 1), 1, 2, "reflect")
    pattern = KernelCSR.random(geometry.shape, 6)
    x, grad = torch.randn(2, 2, 9), torch.randn(2, 4, geometry.output_length(9))
    values, bias = torch.randn(6), torch.randn(4)
    forward = plan.fprop(pattern, geometry, x.device)
    backward = plan.dgrad(pattern, geometry, x.device)
    blocks = plan.wgrad(pattern, x.device)
    ops: dict[str, tuple[Any, ...]] = {
        "fprop": (x, values, bias, *forward, *geometry, True),
        "dgrad": (grad, values, *backward, geometry.shape, 9, *geometry[1:]),
        "wgrad": (grad, x, blocks, forward.entries, *geometry),
    }
    for name, args in ops.items():
        op: Callable[..., Any] = getattr(torch.ops.sparseconv, f"triton_{name}").default
        torch.library.opcheck(op, args)
        with FlopCounterMode(display=False) as counter:
            op(*args)
        assert counter.get_total_flops() == 2 * 6 * 2 * grad.shape[2]


def test_plans_have_one_size_for_each_nnz():
    """So a pattern that changes while a network trains leaves every grid as it is."""
    geometry = Geometry((7, 5, 9), 2, (0, 0), 1, 1, "zeros")
    generator = torch.Generator().manual_seed(0)
    uneven = KernelCSR.from_positions(torch.arange(60), geometry.shape)
    device, shapes = torch.device("cpu"), set()
    for pattern in (uneven, *(KernelCSR.random(geometry.shape, 60, generator=generator),) * 3):
        blocks = plan.wgrad(pattern, device)
        plans = (*plan.fprop(pattern, geometry, device), *plan.dgrad(pattern, geometry, device))
        shapes.add(tuple(t.shape for t in (*plans, blocks)))
        taken = [e for _, begin, end in blocks.tolist() for e in range(begin, end)]
        assert taken == list(range(60)), "each entry in one block"
        assert plan.wgrad(pattern, device) is blocks
    assert len(shapes) == 1


def test_too_long_a_series_is_refused():
    x = torch.ones(1).expand(1, 1, 2**31)
    pattern = KernelCSR.full((1, 1, 1))
    with pytest.raises(NotImplementedError, match=r"below 2\*\*31.*backend='reference'"):
        sparse_conv1d(x, torch.ones(1), pattern, stride=2**20, backend="triton")
