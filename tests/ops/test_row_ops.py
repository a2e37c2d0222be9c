"""The ops on tensors in rows, bfloat16: on AMX, on AVX-512, and on their twins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from any_kernels import poisoned_memory  # noqa: F401 (a fixture of every test here)
from engines import TWINS, UNITS
from ordered import Conv, Pointwise, check_equal, results, run_ordered
from torch import Tensor
from transposed_cases import gradients

from sparseconv import KernelCSR, sparse_conv1d
from sparseconv.core.geometry import Geometry
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS

BF16 = torch.bfloat16
UNIT = torch.finfo(BF16).eps / 2  # of one rounding
FLOAT = 2.0**-20  # of float32 sums of some thousand terms, kSumRows of them at once
SHAPES = [(1, 1), (2, 24), (3, 33), (5, 16), (17, 70), (1, 200)]


def conv_of(channels: int, rows: int, padding: tuple[int, int], mode: str, **options: Any) -> Conv:
    shape = (rows, channels, 1 + sum(padding))
    pattern = KernelCSR.random(shape, round(0.4 * math.prod(shape)), block=16)
    bias = torch.randn(rows, dtype=BF16) if options.pop("bias", False) else None
    geometry = Geometry.of(shape, 1, padding, 1, 1, mode)
    return Conv(torch.randn(pattern.nnz, dtype=BF16), bias, pattern, geometry, **options)


@pytest.mark.promise("P3")
@pytest.mark.parametrize(("n", "length"), SHAPES)
def test_convolutions_have_the_bits_that_they_have_alone(n: int, length: int, unit: str) -> None:
    torch.manual_seed(length)
    for (left, right), mode in itertools.product(((0, 6), (3, 3), (6, 0)), ("zeros", "replicate")):
        conv = conv_of(33, 50, (left, right), mode, bias=True, relu=mode == "zeros")
        x, grad = torch.randn(n, 33, length).to(BF16), torch.randn(n, 50, length).to(BF16)
        y, dx, dw, db = results(x, [conv], grad)
        x, values = x.requires_grad_(), conv.values.detach().requires_grad_()
        bias = conv.bias.detach().requires_grad_()  # type: ignore[union-attr]
        alone = sparse_conv1d(x, values, conv.pattern, bias, padding=(left, right),
                              padding_mode=mode, relu=conv.relu)  # fmt: skip
        wanted = torch.autograd.grad(alone, (x, values, bias), grad)
        inside = (
            slice(int(left > 0), length - int(right > 0)) if mode == "replicate" else slice(None)
        )
        assert y.equal(alone), (mode, left)
        assert dx[..., inside].equal(wanted[0][..., inside]), (mode, left)
        assert dw.equal(wanted[1]), (mode, left)
        torch.testing.assert_close(db, wanted[2])  # sums over positions, in another order


def test_a_weights_gradient_reads_no_padding_of_another_convolution(unit: str) -> None:
    zeros, replicate = (conv_of(33, 50, (3, 3), mode) for mode in ("zeros", "replicate"))
    x, grad = (OPS.lanes_enter(torch.randn(2, c, 24).to(BF16)) for c in (33, 50))
    contexts = [
        (c.pattern.crow_indices, c.pattern.col_indices, list(c.geometry), 2, 24)
        for c in (zeros, replicate)
    ]
    wanted = OPS.lanes_wgrad(grad, x, *contexts[0])
    OPS.lanes_conv(x, replicate.values, None, *contexts[1])
    assert OPS.lanes_wgrad(grad, x, *contexts[0]).equal(wanted)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("padding", [(0, 6), (3, 3), (6, 0), (1, 9)])
def test_gradients_of_replicated_samples(padding: tuple[int, int], unit: str) -> None:
    """Their copies' gradients are summed, the sum is rounded, and so is what it adds to."""
    torch.manual_seed(0)
    for n, length in SHAPES:
        conv = conv_of(16, 32, padding, "replicate")
        x, grad = torch.randn(n, 16, length).to(BF16), torch.randn(n, 32, length).to(BF16)

        def exact(w: Tensor, g: Tensor, conv: Conv = conv, x: Tensor = x) -> Tensor:
            zero = torch.zeros(x.shape, dtype=torch.float64, requires_grad=True)
            y = sparse_conv1d(zero, w.double(), conv.pattern, padding=conv.geometry.padding,
                              padding_mode="replicate", backend="reference")  # fmt: skip
            return torch.autograd.grad(y, zero, g.double())[0]

        wanted, size = exact(conv.values, grad), exact(conv.values.abs(), grad.abs())
        error = (results(x, [conv], grad)[1].double() - wanted).abs()
        assert (error <= 4 * UNIT * (size + wanted.abs()) + FLOAT * size).all()
        inside = error[..., 1:-1] <= UNIT * wanted.abs()[..., 1:-1] + FLOAT * size[..., 1:-1]
        assert inside.all(), "one rounding where nothing was copied"


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("channels", "rows"), [(9, 48), (48, 6), (1, 1), (144, 47)])
def test_pointwise(channels: int, rows: int, unit: str) -> None:
    torch.manual_seed(0)
    for n, length in SHAPES:
        x, grad = torch.randn(n, channels, length).to(BF16), torch.randn(n, rows, length).to(BF16)
        weight = torch.randn(rows, channels, 1).to(BF16)
        got = results(x, [Pointwise(weight, torch.randn(rows).to(BF16))], grad)

        given = [t.double() for t in (x, weight, grad)]
        exact, size = (gradients(F.conv1d, ts) for ts in (given, [t.abs() for t in given]))
        bias = results(x, [Pointwise(weight)], grad)
        for a, wanted, most in zip(bias, exact, size, strict=True):
            assert ((a.double() - wanted).abs() <= UNIT * wanted.abs() + FLOAT * most).all()
        assert all(a.equal(b) for a, b in zip(got[1:3], bias[1:], strict=True))


def norm_in_rows(x: Tensor, vectors: Sequence[Tensor], grad: Tensor, *how: Any) -> list[Tensor]:
    """The output, and the gradients of the input, the vectors and what is added."""
    training, relu, added = how
    n, channels, length = x.shape
    x, weight, bias, *more = (
        t.detach().requires_grad_()
        for t in (x, *vectors[:2], *([added] if relu and added is not None else []))
    )
    parts = [OPS.lanes_enter(x[:, :32]), OPS.lanes_enter(x[:, 32:])]
    plus = OPS.lanes_enter(more[0]) if more else None
    arguments = weight, bias, *vectors[2:], plus, training, 1.0, 1e-3, relu, n, length
    y = OPS.lanes_leave(OPS.lanes_norm(parts, *arguments)[0], channels, n, length)
    return [y, *torch.autograd.grad(y, (x, weight, bias, *more), grad)]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("far", [0.0, 100.0])
@pytest.mark.parametrize("kind", ["plain", "relu", "added"])
@pytest.mark.parametrize("training", [True, False])
def test_norm(far: float, kind: str, training: bool, unit: str) -> None:
    torch.manual_seed(0)
    for n, length in SHAPES[1:]:
        x, grad, other = (torch.randn(n, 37, length).to(BF16) for _ in range(3))
        x = far + x
        weight, bias = torch.randn(2, 37).unbind()
        mean, var = far + torch.randn(37), torch.rand(37) + 0.5
        added = other if kind == "added" else None
        used = [mean.clone(), var.clone()]
        found = norm_in_rows(x, (weight, bias, *used), grad, training, kind != "plain", added)
        wide = [t.double().requires_grad_() for t in (x, weight, bias, other)]
        kept = [mean.double(), var.double()]
        z = F.batch_norm(wide[0], *kept, *wide[1:3], training, 1.0, 1e-3)
        for a, b in zip(used, kept, strict=True):
            torch.testing.assert_close(a, b.float())
        z = z + wide[3] if kind == "added" else z
        y = found[0]
        wanted = z if kind == "plain" else z.relu()
        deviation = (x.double().var((0, 2), correction=0) if training else var.double()).add(1e-3)
        scale = weight.abs()[:, None] / deviation.sqrt()[:, None]
        unsure = FLOAT * (scale * (x.abs() + far) + bias.abs()[:, None] + other.abs())
        assert ((y.double() - wanted).abs() <= UNIT * z.abs() + unsure).all()
        # Which side of 0 is not decided within the error: there the op's own decision counts.
        cost = grad.double() * (1 if kind == "plain" else y > 0)
        exact = torch.autograd.grad(z, wide, cost, allow_unused=True)
        xhat = (
            (x.double() - kept[0][:, None])
            if not training
            else (x.double() - x.double().mean((0, 2))[:, None])
        ).abs() / deviation.sqrt()[:, None]
        sums = grad.double().abs().mean((0, 2))[:, None]
        most = scale * (grad.abs() + sums * (1 + xhat) * (1 + xhat.amax((0, 2))[:, None]))
        assert (
            (found[1].double() - exact[0]).abs() <= UNIT * exact[0].abs() + FLOAT * (1 + far) * most
        ).all()
        for a, b in zip(found[2:4], exact[1:3], strict=True):
            size = n * length * sums[:, 0] * (1 + xhat.amax((0, 2)))
            assert ((a.double() - b).abs() <= FLOAT * (1 + far) * size).all()
        assert kind != "added" or found[4].equal(cost.to(BF16)), "rounded once"


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (15, 1), (2, 2), (3, 5)])
def test_pools_are_those_of_torch(size: int, stride: int, unit: str) -> None:
    """Exactly: of equal samples the first has the gradient, and a NaN is the largest."""
    for n, length in SHAPES:
        pooled = (length - size) // stride + 1 if stride > 1 else length
        if pooled < 1:
            continue
        x = torch.randint(-3, 4, (n, 33, length)).float()
        for data in (x, x.where(torch.rand(x.shape) > 0.1, float("nan")), torch.randn_like(x)):
            leaf = data.to(BF16).requires_grad_()
            y = F.max_pool1d(leaf.float(), size, stride, size // 2 if stride == 1 else 0)
            rows = OPS.lanes_max_pool(OPS.lanes_enter(leaf), size, stride, n, length)
            check_equal(y, OPS.lanes_leave(rows, 33, n, pooled).float(), [leaf], (n, length))
        whole = x.to(BF16).requires_grad_()
        mean = OPS.lanes_mean(OPS.lanes_enter(whole), 33, n, length)
        assert mean.equal((x.double().sum(2) / length).to(BF16)), "sums of whole numbers are exact"
        (each,) = torch.autograd.grad(mean.float().sum(), whole)
        assert each.equal(torch.ones(n, 33, length).to(BF16) / length)


@pytest.mark.promise("P3")
@pytest.mark.parametrize("names", TWINS.items())
def test_bits_depend_on_no_number_of_threads_and_a_twin_has_the_same(
    names: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    names = [name for name in names if name in UNITS]
    for n, length in SHAPES[1:]:
        stages = [
            Pointwise(torch.randn(33, 9, 1), torch.randn(33)),
            conv_of(33, 40, (0, 6), "replicate"),
            conv_of(40, 16, (2, 2), "zeros", bias=True, relu=True),
        ]
        x, first = torch.randn(n, 9, length).to(BF16), None
        for name, count in itertools.product(names, (1, 2, 3)):
            monkeypatch.setenv("SPARSECONV_CPU_ISA", name)
            with threads(count):
                found = results(x, stages)
            first = first or found
            assert all(a.equal(b) for a, b in zip(found, first, strict=True)), (name, count, n)


@pytest.mark.promise("P4")
@pytest.mark.parametrize("special", [math.inf, math.nan])
def test_special_numbers_travel_along_active_weights_only(special: float, unit: str) -> None:
    """Not through channels that fill a tile, nor into another series."""
    torch.manual_seed(0)
    stages = [conv_of(16, 20, (1, 3), "replicate"), Pointwise(torch.rand(9, 20, 1).to(BF16) + 0.1)]
    for at in (0, 7, 23):
        x, mark = torch.rand(3, 16, 24).to(BF16), torch.zeros(3, 16, 24)
        x[1, 5, at], mark[1, 5, at] = special, 1
        ones = [s._replace(**{s._fields[0]: torch.ones_like(s[0])}) for s in stages]
        hit = results(mark.to(BF16), ones)[0]
        y, _, dw, _ = results(x, stages)
        assert y.isfinite().equal(hit == 0)
        plain = [t.isfinite() for t in results(x, stages[:1])]
        assert dw.isfinite().equal(plain[2])
    biased = conv_of(16, 20, (1, 3), "zeros")._replace(bias=torch.zeros(20).to(BF16))
    grad = torch.ones(3, 20, 24).to(BF16)
    grad[0, 7, 0] = special
    grad[0, 5, :2] = torch.tensor([2e38, -2e38])
    db = results(torch.rand(3, 16, 24).to(BF16), [biased], grad)[-1]
    assert db.isfinite().sum() == 19
    assert db[5] == 70, "summed about zero"
    assert db[7].isnan().item() == math.isnan(special)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_taps_of_one_channel_are_channels(mode: str, unit: str) -> None:
    torch.manual_seed(0)
    for (n, length), dilation in zip(SHAPES, (1, 2, 1, 3, 1, 2), strict=True):
        pattern = KernelCSR.random((37, 1, 40), 300)
        geometry = Geometry.of(pattern.shape, 1, (0, 39 * dilation), dilation, 1, mode)
        x, grad = torch.randn(n, 1, length).to(BF16), torch.randn(n, 37, length).to(BF16)
        conv = Conv(torch.randn(300).to(BF16), torch.randn(37).to(BF16), pattern, geometry)

        options = {"padding": geometry.padding, "dilation": dilation, "padding_mode": mode}

        def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return sparse_conv1d(x, w, pattern, b, **options, backend="reference")  # noqa: B023

        given = x, conv.values, conv.bias, grad
        wide = [t.double() for t in given]
        wanted, size = (gradients(run, tensors) for tensors in (wide, [t.abs() for t in wide]))
        for got, a, most in zip(results(x, [conv], grad), wanted, size, strict=True):
            assert ((got.double() - a).abs() <= 2 * UNIT * a.abs() + FLOAT * most).all()
        # A tap that is not active must not make NaN of an infinity.
        x[0, 0, length // 2] = math.inf
        y = results(x, [conv], grad)[0]
        alone = sparse_conv1d(x, conv.values, pattern, conv.bias, **options)
        assert y.isfinite().equal(alone.isfinite())


def test_weights_that_are_no_blocks_are_computed_outside(unit: str) -> None:
    torch.manual_seed(0)
    geometry = Geometry.of((20, 16, 5), 1, (1, 3), 1, 1, "zeros")
    pattern = KernelCSR.random(geometry.shape, 300)
    conv = Conv(torch.randn(300).to(BF16), torch.randn(20).to(BF16), pattern, geometry, True)
    x, grad = torch.randn(3, 16, 24).to(BF16), torch.randn(3, 20, 24).to(BF16)
    leaves = [t.detach().requires_grad_() for t in (x, conv.values, conv.bias) if t is not None]
    y = sparse_conv1d(leaves[0], leaves[1], pattern, leaves[2], padding=(1, 3), relu=True)
    wanted = y, *torch.autograd.grad(y, leaves, grad)
    found = results(x, [conv], grad)
    assert all(a.equal(b) for a, b in zip(found[:3], wanted, strict=False))
    torch.testing.assert_close(found[3], wanted[3])


def test_gradients_of_gradients(unit: str) -> None:
    torch.manual_seed(0)
    stages = [conv_of(16, 16, (0, 2), "zeros"), Pointwise(torch.randn(4, 16, 1).to(BF16))]
    x = torch.randn(2, 16, 9).to(BF16).requires_grad_()
    y = run_ordered(x, stages)
    (dx,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.float().sum(), x)
    wide = x.detach().double().requires_grad_()
    z = sparse_conv1d(wide, stages[0].values.double(), stages[0].pattern, padding=(0, 2))
    z = F.conv1d(z, stages[1].weight.double())
    (dz,) = torch.autograd.grad(z.square().sum(), wide, create_graph=True)
    (ddz,) = torch.autograd.grad(dz.sum(), wide)
    assert (ddx.double() - ddz).norm() <= 0.02 * ddz.norm()


def test_backward_without_the_unit_of_the_forward_pass(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [Pointwise(torch.randn(4, 16, 1).to(BF16).requires_grad_())]
    rows = stages[0].run(OPS.lanes_enter(torch.randn(2, 16, 9).to(BF16)), 2, 9)
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "baseline")
    assert extension.isa() == "baseline"
    with pytest.raises(RuntimeError, match="SPARSECONV_CPU_ISA"):
        rows.sum().backward()
