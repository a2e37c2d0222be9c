"""Layers in the kernels' own order compute what they compute one by one, on every ISA."""

from __future__ import annotations

import itertools
import math
import random
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layouts import LAYOUTS
from ordered import Conv, NormRelu, Pointwise, results, run_ordered
from torch import Tensor

from sparseconv import KernelCSR, sparse_conv1d
from sparseconv.core.geometry import Geometry
from sparseconv.measure.machine import threads

SHAPES = [(1, 1), (1, 128), (2, 24), (3, 251), (6, 24), (11, 7), (16, 29), (17, 60), (33, 5)]


def random_conv(rng: random.Random, channels: int, dtype: torch.dtype) -> Conv:
    taps, dilation = rng.choice((1, 3, 8, 39)), rng.choice((1, 1, 2, 5, 20, 70))
    span = dilation * (taps - 1)
    mode = rng.choice(("zeros", "replicate"))
    left = rng.choice((0, span // 2, span))
    rows = rng.choice((2, 5, 17))
    mask = torch.rand(rows, channels, taps) < rng.choice((0.0, 0.1, 0.4, 1.0))
    pattern = KernelCSR.from_mask(mask)
    geometry = Geometry.of(pattern.shape, 1, (left, span - left), dilation, 1, mode)
    bias = torch.randn(rows, dtype=dtype) if rng.random() < 0.5 else None
    return Conv(torch.randn(pattern.nnz, dtype=dtype), bias, pattern, geometry, rng.random() < 0.3)


def random_stages(rng: random.Random, channels: int, n: int, dtype: torch.dtype) -> list[Any]:
    stages: list[Any] = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.choice(("conv", "conv", "pointwise", "norm" if n > 1 else "pointwise"))
        if kind == "conv":
            stages.append(random_conv(rng, channels, dtype))
            channels = stages[-1].pattern.shape[0]
        elif kind == "pointwise":
            rows = rng.choice((1, 4, 13))
            bias = torch.randn(rows, dtype=dtype) if rng.random() < 0.5 else None
            stages.append(Pointwise(torch.randn(rows, channels, 1, dtype=dtype), bias))
            channels = rows
        else:
            weight, bias = torch.randn(2, channels, dtype=dtype).unbind()
            stages.append(NormRelu(weight, bias, None, None, 0.0, 0.1))
    return stages


def one_by_one(x: Tensor, stages: list[Any], backend: str = "reference") -> Tensor:
    """By torch and the dense reference, or the sparse kernels alone."""
    for stage in stages:
        if isinstance(stage, Conv):
            geometry = stage.geometry
            x = sparse_conv1d(
                x, stage.values, stage.pattern, stage.bias, padding=geometry.padding,
                dilation=geometry.dilation, padding_mode=geometry.padding_mode,
                backend=backend, relu=stage.relu,
            )  # fmt: skip
        elif isinstance(stage, Pointwise):
            x = F.conv1d(x, *stage[:2])
        else:
            x = F.relu(F.batch_norm(x, None, None, *stage[:2], True, 0.0, stage.eps))
    return x


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(8))
def test_what_the_layers_compute(seed: int, isas: Any, campaign: Any, count_cases: Any) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for n, length in SHAPES * campaign(1, 100):
        channels = rng.choice((1, 3, 20))
        stages = random_stages(rng, channels, n * length, torch.float64)
        x = torch.randn(n, channels, length, dtype=torch.float64)
        y = one_by_one(x, stages)
        grad = torch.randn_like(y)
        wanted = results(x, stages, grad, one_by_one)
        for isa in isas():
            got = results(x, stages, grad)
            for a, b in zip(got, wanted, strict=True):
                # Sums of at most a few thousand terms of each layer, in float64.
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=f"{isa}: {stages}")
        count_cases(1)


@pytest.mark.promise("P3")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_do_not_depend_on_threads_or_isa(dtype: torch.dtype, isas: Any) -> None:
    rng = random.Random(2)
    torch.manual_seed(2)
    for n, length in (*SHAPES, (16, 300)):
        stages = random_stages(rng, 5, n * length, dtype)
        x = torch.randn(n, 5, length, dtype=dtype)
        grad = torch.randn_like(run_ordered(x, stages).detach())
        first = None
        for count in (1, 2):
            with threads(count):
                for isa in isas():
                    got = results(x, stages, grad)
                    first = first or got
                    for a, b in zip(got, first, strict=True):
                        assert a.equal(b), (isa, count, n, length, stages)


@pytest.mark.promise("P4")
def test_nan_travels_along_active_weights_only(isas: Any) -> None:
    """Idle rows and lanes are next to samples of other series, and 0 x NaN is NaN."""
    pattern = KernelCSR.from_mask(torch.tensor([[[1, 0, 1]], [[0, 1, 0]]]).bool())
    for padding, mode in itertools.product(((0, 2), (1, 1), (2, 0)), ("zeros", "replicate")):
        stages = [
            Conv(torch.rand(3), None, pattern, Geometry.of((2, 1, 3), 1, padding, 1, 1, mode))
        ]
        for n, length in ((3, 10), (5, 7), (2, 33), (17, 4)):
            for at in (0, length // 2, length - 1):
                x, mark = torch.randn(n, 1, length), torch.zeros(n, 1, length)
                x[1, 0, at], mark[1, 0, at] = float("nan"), 1
                ones = [stages[0]._replace(values=torch.ones(3))]
                hit, _, weights = results(mark, ones, torch.ones(n, 2, length), one_by_one)
                for isa in isas():
                    y, dx, dw = results(x, stages, torch.rand(n, 2, length))
                    assert y.isnan().equal(hit > 0), (isa, n, length, at, mode)
                    assert dw.isnan().equal(weights > 0), (isa, n, length, at, mode)
                    assert dx.isfinite().all()


@pytest.mark.promise("P4")
@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("which", ["weight", "bias", "weight after a convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_special_weights_of_1x1_stay_in_their_series(
    dtype: torch.dtype, which: str, special: float, isas: Any
) -> None:
    """Also where the order has idle positions, which the next convolution reads as its padding."""
    torch.manual_seed(0)
    for n, length in (*SHAPES, (1, 100), (20, 11), (3, 5)):
        taps = torch.rand(4, 4, 5) < 0.5
        pattern = KernelCSR.from_mask(taps)
        geometry = Geometry.of((4, 4, 5), 1, "same", 1, 1, "zeros")
        conv = Conv(torch.rand(pattern.nnz).to(dtype) + 0.1, None, pattern, geometry, True)
        weight, bias = torch.rand(4, 3, 1).to(dtype) + 0.1, torch.rand(4).to(dtype)
        later = torch.rand(4, 4, 1).to(dtype) + 0.1
        {"weight": weight, "bias": bias}.get(which, later)[0] = special
        stages = [Pointwise(weight, bias), conv, Pointwise(later), conv]
        x = torch.rand(n, 3, length).to(dtype) + 0.1
        grad = torch.rand(n, 4, length).to(dtype)
        wanted = results(x, stages, grad, partial(one_by_one, backend="cpp"))
        for isa in isas():
            for a, b in zip(results(x, stages, grad), wanted, strict=True):
                assert a.isfinite().equal(b.isfinite()), (isa, n, length)
                if dtype == torch.float64:
                    torch.testing.assert_close(a, b, equal_nan=True, msg=f"{isa} {n} {length}")


@pytest.mark.promise("P6")
@pytest.mark.parametrize("name", LAYOUTS)
def test_strides_do_not_change_a_bit(name: str) -> None:
    torch.manual_seed(0)
    rng = random.Random(4)
    x, grad = torch.randn(5, 4, 37), LAYOUTS[name](torch.randn(5, 3, 37))
    if name != "imaginary":  # a negated view runs module by module
        x = LAYOUTS[name](x)
    conv = random_conv(rng, 4, torch.float32)
    stages = [conv, Pointwise(torch.randn(3, conv.pattern.shape[0], 1))]
    plain = x.detach().contiguous().clone(), stages, grad.contiguous().clone()
    for a, b in zip(results(x, stages, grad), results(*plain), strict=True):
        assert a.equal(b)


SUMMED = 64 + 8  # samples that are added in float32 before double continues, and across the lanes


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("n", "length"), [(4, 3000), (1, 5000), (33, 700)])
def test_statistics_of_samples_far_from_zero(n: int, length: int, isas: Any) -> None:
    """The mean to its last bits, and the variance as if it had been subtracted exactly."""
    torch.manual_seed(0)
    x = 1000 + torch.randn(n, 3, length)
    exact = x.double().transpose(0, 1).flatten(1)
    for isa in isas():
        mean, var = torch.zeros(3), torch.zeros(3)
        run_ordered(x, [NormRelu(None, None, mean, var, 1.0, 1e-5)])
        unit = torch.finfo(torch.float32).eps
        torch.testing.assert_close(mean.double(), exact.mean(1), rtol=unit, atol=0, msg=isa)
        torch.testing.assert_close(var.double(), exact.var(1), rtol=SUMMED * unit, atol=0, msg=isa)


@pytest.mark.promise("P1")
def test_statistics_of_sums_that_leave_the_range(isas: Any) -> None:
    torch.manual_seed(0)
    x = 2e38 + 1e37 * torch.randn(3, 2, 100)
    assert x.sum().isinf()
    exact = x.double() - x.double().mean((0, 2), keepdim=True)
    wanted = F.relu(exact / exact.square().mean((0, 2), keepdim=True).sqrt()).float()
    for isa in isas():
        y = run_ordered(x, [NormRelu(None, None, None, None, 0.0, 1e-5)])
        # The mean may be off by its last bit, which is a hundred thousandth of the deviation.
        unit = 2e38 * torch.finfo(torch.float32).eps / 1e37
        torch.testing.assert_close(y, wanted, rtol=SUMMED * 2**-23, atol=2 * unit, msg=isa)
