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
from torch import Tensor

from sparseconv import KernelCSR, SparseConv1d, sparse_conv1d
from sparseconv.core.geometry import Geometry
from sparseconv.functional.chain import Chain, Conv, NormRelu, Pointwise, keeps_order
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")

SHAPES = [(1, 1), (1, 128), (2, 24), (3, 251), (6, 24), (11, 7), (16, 29), (17, 60), (33, 5)]


def random_conv(rng: random.Random, channels: int, dtype: torch.dtype) -> Conv:
    taps, dilation = rng.choice((1, 3, 8, 39)), rng.choice((1, 1, 2))
    span = dilation * (taps - 1)
    mode = rng.choice(("zeros", "replicate"))
    left = rng.choice((0, span // 2, span))
    rows = rng.choice((2, 5, 17))
    mask = torch.rand(rows, channels, taps) < rng.choice((0.0, 0.1, 0.4, 1.0))
    pattern = KernelCSR.from_mask(mask)
    geometry = Geometry(pattern.shape, 1, (left, span - left), dilation, 1, mode)
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


def run_chain(x: Tensor, stages: list[Any]) -> Tensor:
    y = Chain()(x, stages)
    assert y is not None
    return y


def leaves(x: Tensor, stages: list[Any]) -> list[Tensor]:
    tensors = [x, *(t for stage in stages for t in stage[:2])]
    return [t.requires_grad_() for t in tensors if t is not None]


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


def results(x: Tensor, stages: list[Any], grad: Tensor, run: Any = run_chain) -> list[Tensor]:
    wanted = leaves(x, stages)
    y = run(x, stages)
    return [y.detach(), *torch.autograd.grad(y, wanted, grad, materialize_grads=True)]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(60))
def test_what_the_layers_compute(seed: int, isas: Any, count_cases: Any) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for n, length in SHAPES:
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


@pytest.mark.promise("P2")
def test_integers_are_exact(isas: Any, count_cases: Any) -> None:
    rng = random.Random(1)
    for n, length in SHAPES:
        conv = random_conv(rng, 3, torch.float32)
        sizes = (n, 3, length), (conv.pattern.nnz,), (2, conv.pattern.shape[0], 1), (n, 2, length)
        x, values, weight, grad = (torch.randint(-4, 5, size).float() for size in sizes)
        stages = [conv._replace(values=values, bias=None), Pointwise(weight)]
        wanted = results(x, stages, grad, one_by_one)
        for isa in isas():
            for a, b in zip(results(x, stages, grad), wanted, strict=True):
                assert a.equal(b), (isa, n, length, conv)
        count_cases(1)


@pytest.mark.promise("P3")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_do_not_depend_on_threads_or_isa(dtype: torch.dtype, isas: Any) -> None:
    rng = random.Random(2)
    torch.manual_seed(2)
    for n, length in (*SHAPES, (16, 300)):
        stages = random_stages(rng, 5, n * length, dtype)
        x = torch.randn(n, 5, length, dtype=dtype)
        grad = torch.randn_like(run_chain(x, stages).detach())
        first = None
        for count in (1, 2):
            with threads(count):
                for isa in isas():
                    got = results(x, stages, grad)
                    first = first or got
                    for a, b in zip(got, first, strict=True):
                        assert a.equal(b), (isa, count, n, length, stages)


@pytest.mark.promise("P3")
def test_convolutions_have_the_bits_that_they_have_alone(isas: Any) -> None:
    """fprop, dgrad and wgrad, in the kernels' own order and in (N, C, L)."""
    rng = random.Random(3)
    torch.manual_seed(3)
    for n, length in (*SHAPES, (40, 100)):
        for _ in range(3):
            conv = random_conv(rng, 4, torch.float32)
            x = torch.randn(n, 4, length)
            g, grad = conv.geometry, torch.randn(n, conv.pattern.shape[0], length)

            def alone(x: Tensor, stages: list[Any], g: Geometry = g) -> Tensor:
                (conv,) = stages
                return sparse_conv1d(
                    x, conv.values, conv.pattern, conv.bias, padding=g.padding,
                    dilation=g.dilation, padding_mode=g.padding_mode, relu=conv.relu,
                )  # fmt: skip

            for isa in isas():
                got, wanted = results(x, [conv], grad), results(x, [conv], grad, alone)
                for name, a, b in zip(("fprop", "dgrad", "wgrad"), got, wanted, strict=False):
                    assert a.equal(b), (name, isa, n, length, conv)


@pytest.mark.promise("P4")
def test_nan_travels_along_active_weights_only(isas: Any) -> None:
    """Idle rows and lanes are next to samples of other series, and 0 x NaN is NaN."""
    taps = [(0, 0), (0, 2), (1, 1)]  # (row, tap) of the active weights
    pattern = KernelCSR.from_mask(torch.tensor([[[1, 0, 1]], [[0, 1, 0]]]).bool())
    for padding, mode in itertools.product(((0, 2), (1, 1), (2, 0)), ("zeros", "replicate")):
        stages = [Conv(torch.rand(3), None, pattern, Geometry((2, 1, 3), 1, padding, 1, 1, mode))]
        for n, length in ((3, 10), (5, 7), (2, 33), (17, 4)):
            for at in (0, length // 2, length - 1):
                x = torch.randn(n, 1, length)
                x[1, 0, at] = float("nan")
                output, weights = torch.zeros(n, 2, length), torch.zeros(3)
                for i, (row, tap) in enumerate(taps):
                    for sample in range(length):
                        read = sample + tap - padding[0]
                        if mode == "replicate":
                            read = min(max(read, 0), length - 1)
                        if read == at:
                            output[1, row, sample] = weights[i] = 1
                for isa in isas():
                    y, dx, dw = results(x, stages, torch.rand(n, 2, length))
                    assert y.isnan().equal(output.bool()), (isa, n, length, at, mode)
                    assert dw.isnan().equal(weights.bool()), (isa, n, length, at, mode)
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
    for a, b in zip(
        results(x.detach(), stages, grad),
        results(x.detach().contiguous().clone(), stages, grad.contiguous().clone()),
        strict=True,
    ):
        assert a.equal(b)


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    pattern = KernelCSR.random((3, 2, 3), 9)
    geometry = Geometry(pattern.shape, 1, (0, 2), 1, 1, "replicate")
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    values, weight = torch.randn(9, dtype=torch.float64), torch.randn(2, 3, 1, dtype=torch.float64)
    scale, shift = torch.randn(2, 3, dtype=torch.float64).unbind()

    def run(x: Tensor, values: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
        norm = NormRelu(scale, shift, None, None, 0.0, 0.1)
        return run_chain(x, [Conv(values, None, pattern, geometry), norm, Pointwise(weight)])

    tensors = [t.requires_grad_() for t in (x, values, scale, shift, weight)]
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize("asked", ["x", "values", "weight"])
def test_only_what_is_asked_for_is_computed(asked: str) -> None:
    torch.manual_seed(0)
    conv = random_conv(random.Random(5), 4, torch.float32)._replace(bias=None)
    weight, x = torch.randn(3, conv.pattern.shape[0], 1), torch.randn(3, 4, 20)
    tensors = {"x": x, "values": conv.values, "weight": weight}
    for tensor in tensors.values():
        tensor.requires_grad_()
    y = run_chain(x, [conv, Pointwise(weight)])
    (alone,) = torch.autograd.grad(y.sum(), tensors[asked], retain_graph=True)
    y.sum().backward()
    assert alone.equal(tensors[asked].grad)


SUMMED = 64 + 8  # samples that are added in float32 before double goes on, and across the lanes


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("n", "length"), [(4, 3000), (1, 5000), (33, 700)])
def test_statistics_of_samples_far_from_zero(n: int, length: int, isas: Any) -> None:
    """The mean to its last bits, and the variance as if it had been subtracted exactly."""
    torch.manual_seed(0)
    x = 1000 + torch.randn(n, 3, length)
    exact = x.double().transpose(0, 1).flatten(1)
    for isa in isas():
        mean, var = torch.zeros(3), torch.zeros(3)
        assert Chain()(x, [NormRelu(None, None, mean, var, 1.0, 1e-5)]) is not None
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
        y = Chain()(x, [NormRelu(None, None, None, None, 0.0, 1e-5)])
        # The mean may be off by its last bit, which is a hundred thousandth of the deviation.
        unit = 2e38 * torch.finfo(torch.float32).eps / 1e37
        torch.testing.assert_close(y, wanted, rtol=SUMMED * 2**-23, atol=2 * unit, msg=isa)


def test_running_statistics_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x, (mean, var) = torch.randn(5, 3, 11, dtype=torch.float64), torch.rand(2, 3).double().unbind()
    other = mean.clone(), var.clone()
    weight, bias = torch.randn(2, 3, dtype=torch.float64).unbind()
    pattern = KernelCSR.from_mask(torch.eye(3).bool()[:, :, None])
    conv = Conv(torch.ones(3).double(), None, pattern, Geometry.of((3, 3, 1), 1, 0, 1, 1, "zeros"))
    y = run_chain(x, [conv, NormRelu(weight, bias, mean, var, 0.3, 1e-5)])
    wanted = F.relu(F.batch_norm(x, *other, weight, bias, True, 0.3, 1e-5))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close((mean, var), other)
    counter = torch.tensor(3)
    version = counter._version
    run_chain(x, [conv, NormRelu(weight, bias, mean, var, None, 1e-5, num_batches_tracked=counter)])
    F.batch_norm(x, *other, weight, bias, True, 1 / 4, 1e-5)  # over all batches
    torch.testing.assert_close((mean, var), other)
    assert (counter, counter._version) == (4, version + 1), "what was folded sees the version"
    y = run_chain(x, [conv, NormRelu(weight, bias, mean, var, 0.0, 1e-5, training=False)])
    torch.testing.assert_close(y, F.relu(F.batch_norm(x, mean, var, weight, bias, False)))
    torch.testing.assert_close((mean, var), other)


def test_which_convolutions_keep_the_order() -> None:
    def keeps(stride: int = 1, padding: Any = "same", mode: str = "zeros", **rest: int) -> bool:
        options = {"dilation": 1, "groups": 1, **rest}
        return keeps_order(Geometry.of((8, 4, 5), stride, padding, **options, padding_mode=mode))

    for options in ({}, {"padding": (4, 0)}, {"dilation": 3}, {"groups": 2}):
        assert keeps(**options), options
    for padding in ((0, 4), (4, 0), "same"):
        assert keeps(padding=padding, mode="replicate")
    for mode in ("reflect", "circular"):
        assert not keeps(mode=mode)
    for options in ({"padding": 0}, {"stride": 2, "padding": 2}):
        assert not keeps(**options), options
    assert not keeps(dilation=1000), "no sample between two taps is worth its place in the cache"


@pytest.mark.promise("P5")
def test_wrong_tensors_are_refused_before_anything_is_read() -> None:
    """By the C++ code itself: nothing outside of memory is touched, whoever calls it."""
    pattern = KernelCSR.full((2, 3, 1))
    crow, col = pattern.crow_indices, pattern.col_indices
    geometry = Geometry.of((2, 3, 1), 1, 0, 1, 1, "zeros")
    chain = extension.Chain()
    chain.add_conv(crow, col, geometry, False)
    x, values = torch.randn(2, 3, 9), torch.randn(6)
    assert extension.plain_chain(chain, x, [values, None], [None]) is not None
    for wrong in (x[0], x[:, :2], x[:0], x.double(), x.int(), x.to("meta"), None, 1):
        assert extension.plain_chain(chain, wrong, [values, None], [None]) is None
    for parameters in ([], [None, None], [values[:5], None], [values[None], None],
                       [values, values], [values.double(), None], [values, 1]):  # fmt: skip
        assert extension.plain_chain(chain, x, parameters, [None]) is None
    for statistics in ([], [None, None]):
        assert extension.plain_chain(chain, x, [values, None], statistics) is None
    assert extension.plain_chain(extension.Chain(), x, [], []) is None
    for call in (
        lambda: extension.plain_chain(None, x, [], []),
        lambda: chain.add_conv(None, col, geometry, False),
        lambda: extension.plain_conv(x, values, None, crow, None, geometry, False),
    ):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call()
    with pytest.raises(TypeError, match="contiguous"):  # before room for 4 TB is asked for
        chain.add_conv(crow, col[:1].expand(2**40), geometry, False)


@pytest.mark.promise("P5")
def test_parameters_replaced_before_the_backward_pass_are_refused() -> None:
    first, second = (torch.randn(16, 16, 1, requires_grad=True) for _ in range(2))
    y = run_chain(torch.randn(2, 16, 30), [Pointwise(first), Pointwise(second)])
    first.data, second.data = torch.randn(8, 16, 1), torch.randn(16, 8, 1)
    with pytest.raises(ValueError, match="as in the forward pass"):
        y.sum().backward()


def check_refuses(node: Any, wrong: Tensor) -> None:
    with torch.no_grad():
        with pytest.raises((ValueError, TypeError, RuntimeError), match=r"expected|got"):
            node(wrong)
        assert any(g is not None for g in node(torch.ones(2, 16, 30)))


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(2, 15, 30), torch.ones(2, 16, 2900), torch.ones(80, 16, 30),
        torch.ones(0, 16, 30), torch.ones(16, 30), torch.ones(1, 16, 60),
        torch.ones(2, 16, 30).double(), torch.ones(2, 16, 30).bfloat16(),
    ],
    ids=lambda grad: f"{tuple(grad.shape)} {grad.dtype}",
)  # fmt: skip
def test_a_node_that_is_called_with_another_gradient(wrong: Tensor) -> None:
    """By hand, without gradients recorded: then the engine has checked nothing."""
    pattern = KernelCSR.full((16, 16, 1))
    conv = Conv(torch.ones(256), None, pattern, Geometry.of((16, 16, 1), 1, 0, 1, 1, "zeros"))
    norm = NormRelu(torch.ones(16), None, None, None, 0.1, 1e-5)
    weight = torch.ones(16, 16, 1, requires_grad=True)
    y = run_chain(torch.randn(2, 16, 30), [Pointwise(weight), norm, conv])
    assert y.grad_fn is not None
    check_refuses(y.grad_fn, wrong)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("trained", ["input", "values", "bias"])
@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(2, 1, 30), torch.ones(2, 16, 29), torch.ones(3, 16, 30), torch.ones(16, 30),
        torch.ones(2, 16, 30).double(),
    ],
    ids=lambda grad: f"{tuple(grad.shape)} {grad.dtype}",
)  # fmt: skip
def test_a_layers_node_that_is_called_with_another_gradient(trained: str, wrong: Tensor) -> None:
    x, layer = torch.randn(2, 4, 30), SparseConv1d(4, 16, 3, padding=1, density=0.5)
    for name, tensor in {"input": x, **dict(layer.named_parameters())}.items():
        tensor.requires_grad_(name == trained)
    y = layer(x)
    assert y.grad_fn is not None
    check_refuses(y.grad_fn, wrong)


@pytest.mark.promise("P5")
def test_statistics_without_memory_change_none_of_the_others() -> None:
    """Torch would write to them."""
    pattern = KernelCSR.full((3, 3, 1))
    conv = Conv(torch.randn(9), None, pattern, Geometry.of((3, 3, 1), 1, 0, 1, 1, "zeros"))
    mean, first, second = torch.zeros(3), torch.tensor(0), torch.tensor(0)
    norms = [
        NormRelu(None, None, m, torch.ones(3), 0.1, 1e-5, num_batches_tracked=count)
        for m, count in ((mean, first), (torch.zeros(3), second))
    ]
    second.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="num_batches_tracked to have memory"):
        Chain()(torch.randn(4, 3, 9), [conv, *norms])
    assert not mean.any()
    assert first == 0


@pytest.mark.promise("P5")
def test_statistics_that_do_not_fit_are_not_half_updated() -> None:
    pattern = KernelCSR.full((3, 3, 1))
    conv = Conv(torch.randn(9), None, pattern, Geometry.of((3, 3, 1), 1, 0, 1, 1, "zeros"))
    x, ones, counter = torch.randn(4, 3, 9), torch.ones(3), torch.tensor(0)
    for mean, var in (
        (ones[:2], ones),
        (ones, ones.double()),
        (ones, torch.ones(6)[::2]),
    ):
        before = [t.clone() for t in (mean, var, counter)]
        norm = NormRelu(None, None, mean, var, 0.1, 1e-5, num_batches_tracked=counter)
        assert Chain()(x, [conv, NormRelu(None, None, ones, ones, 0.1, 1e-5), norm]) is None
        assert all(map(torch.equal, before, (mean, var, counter)))
    with torch.inference_mode():
        own = [torch.zeros(3), torch.ones(3), torch.tensor(0)]
    norm = NormRelu(None, None, *own[:2], 0.1, 1e-5, num_batches_tracked=own[2])
    assert Chain()(x, [conv, norm]) is None, "torch refuses to update tensors of inference mode"


def test_gradients_by_running_statistics_are_left_to_torch() -> None:
    weight, bias, mean, var = torch.rand(4, 3).double().unbind()
    norm = NormRelu(weight, bias, mean, var, 0.0, 1e-5, training=False)
    x = torch.randn(4, 3, 9).double()
    wanted = F.relu(F.batch_norm(x, mean, var, weight, bias, False))
    found = Chain()(x, [norm])
    assert found is not None
    torch.testing.assert_close(found, wanted)
    assert Chain()(x.requires_grad_(), [norm]) is None
