"""Layers in bfloat16, in rows: on AMX, on AVX-512, and on their twins."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engines import TWINS, UNITS
from ordered import Conv, NormRelu, Pointwise, run_ordered
from torch import Tensor, nn

from sparseconv import KernelCSR, SparseConv1d, sparse_conv1d
from sparseconv.core.geometry import Geometry
from sparseconv.measure.machine import threads
from sparseconv.models import DSN
from sparseconv.nn import block as block_module
from sparseconv.ops.backends import extension
from sparseconv.ops.orders import in_rows

BF16 = torch.bfloat16
UNIT = torch.finfo(BF16).eps / 2  # of one rounding
FLOAT = 2.0**-20  # of float32 sums of some thousand terms, kSumRows of them at once
SHAPES = [(1, 1), (2, 24), (3, 33), (5, 16), (17, 70), (1, 200)]


@pytest.fixture(params=[*TWINS.values(), *TWINS])
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in UNITS:
        pytest.skip(f"needs a CPU with {request.param}")
    monkeypatch.setenv("SPARSECONV_CPU_ISA", request.param)
    assert extension is not None
    assert extension.isa() == request.param
    return str(request.param)


def conv_of(channels: int, rows: int, padding: tuple[int, int], mode: str, **options: Any) -> Conv:
    shape = (rows, channels, 1 + sum(padding))
    pattern = KernelCSR.random(shape, round(0.4 * math.prod(shape)), block=16)
    bias = torch.randn(rows, dtype=BF16) if options.pop("bias", False) else None
    geometry = Geometry(shape, 1, padding, 1, 1, mode)
    return Conv(torch.randn(pattern.nnz, dtype=BF16), bias, pattern, geometry, **options)


def results(stages: list[Any], x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """The output, and gradients of the input and of all parameters."""
    x = x.detach().requires_grad_()
    found = [t.detach().requires_grad_() for stage in stages for t in stage[:2] if t is not None]
    given = iter(found)
    stages = [
        s._replace(**{n: next(given) for n in s._fields[:2] if getattr(s, n) is not None})
        for s in stages
    ]
    y = run_ordered(x, stages)
    grad = (
        torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) if grad is None else grad
    )
    return [y.detach(), *torch.autograd.grad(y, (x, *found), grad.to(y.dtype))]


@pytest.mark.promise("P3")
@pytest.mark.parametrize(("n", "length"), SHAPES)
def test_convolutions_have_the_bits_that_they_have_alone(n: int, length: int, unit: str) -> None:
    torch.manual_seed(length)
    for (left, right), mode in itertools.product(((0, 6), (3, 3), (6, 0)), ("zeros", "replicate")):
        conv = conv_of(33, 50, (left, right), mode, bias=True, relu=mode == "zeros")
        x, grad = torch.randn(n, 33, length).to(BF16), torch.randn(n, 50, length).to(BF16)
        y, dx, dw, db = results([conv], x, grad)
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
        error = (results([conv], x, grad)[1].double() - wanted).abs()
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
        got = results([Pointwise(weight, torch.randn(rows).to(BF16))], x, grad)

        def exact(*tensors: Tensor) -> list[Tensor]:
            x, w, g = (t.double().requires_grad_() for t in tensors)
            y = F.conv1d(x, w)
            return [y.detach(), *torch.autograd.grad(y, (x, w), g)]

        size = exact(x.abs(), weight.abs(), grad.abs())
        bias = results([Pointwise(weight)], x, grad)
        for a, wanted, most in zip(bias, exact(x, weight, grad), size, strict=True):
            assert ((a.double() - wanted).abs() <= UNIT * wanted.abs() + FLOAT * most).all()
        assert all(a.equal(b) for a, b in zip(got[1:3], bias[1:], strict=True))


@pytest.mark.promise("P1")
@pytest.mark.parametrize("far", [0.0, 100.0])
def test_norm_relu(far: float, unit: str) -> None:
    torch.manual_seed(0)
    for n, length in SHAPES[1:]:
        x, grad = far + torch.randn(n, 37, length).to(BF16), torch.randn(n, 37, length).to(BF16)
        weight, bias = torch.randn(2, 37).unbind()
        mean, var = torch.zeros(2, 37).unbind()
        y, dx, dw, db = results([NormRelu(weight, bias, mean, var, 1.0, 1e-3)], x, grad)
        wide = [t.double().requires_grad_() for t in (x, weight, bias)]
        z = F.batch_norm(wide[0], None, None, *wide[1:], True, 0.0, 1e-3)
        torch.testing.assert_close(mean, x.double().mean((0, 2)).float())
        torch.testing.assert_close(var, x.double().var((0, 2)).float())
        deviation = (x.double().var((0, 2), correction=0) + 1e-3).sqrt()[:, None]
        scale = weight.abs()[:, None] / deviation
        unsure = FLOAT * (scale * (x.abs() + far) + bias.abs()[:, None])
        assert ((y.double() - z.relu()).abs() <= UNIT * z.abs() + unsure).all()
        # Which side of 0 is not decided within the error: there the op's own decision counts.
        exact = torch.autograd.grad(z, wide, grad.double() * (y > 0))
        xhat = ((z - wide[2][:, None]) / wide[1][:, None]).detach().abs()
        sums = grad.double().abs().mean((0, 2))[:, None]
        most = scale * (grad.abs() + sums * (1 + xhat) * (1 + xhat.amax((0, 2))[:, None]))
        assert (
            (dx.double() - exact[0]).abs() <= UNIT * exact[0].abs() + FLOAT * (1 + far) * most
        ).all()
        for a, wanted in ((dw, exact[1]), (db, exact[2])):
            size = n * length * sums[:, 0] * (1 + xhat.amax((0, 2)))
            assert ((a.double() - wanted).abs() <= FLOAT * (1 + far) * size).all()


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
            NormRelu(torch.randn(40), torch.randn(40), None, None, 0.0, 0.1),
            conv_of(40, 16, (2, 2), "zeros", bias=True, relu=True),
        ]
        x, first = torch.randn(n, 9, length).to(BF16), None
        for name, count in itertools.product(names, (1, 2, 3)):
            monkeypatch.setenv("SPARSECONV_CPU_ISA", name)
            with threads(count), torch.autocast("cpu", BF16):
                found = results(stages, x)
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
        hit = run_ordered(
            mark.to(BF16), [s._replace(**{s._fields[0]: torch.ones_like(s[0])}) for s in stages]
        )
        y, _, dw, _ = results(stages, x)
        assert y.isfinite().equal(hit == 0)
        plain = [t.isfinite() for t in results(stages[:1], x)]
        assert dw.isfinite().equal(plain[2])
    biased = conv_of(16, 20, (1, 3), "zeros")._replace(bias=torch.zeros(20).to(BF16))
    grad = torch.ones(3, 20, 24).to(BF16)
    grad[0, 7, 0] = special
    grad[0, 5, :2] = torch.tensor([2e38, -2e38])
    db = results([biased], torch.rand(3, 16, 24).to(BF16), grad)[-1]
    assert db.isfinite().sum() == 19
    assert db[5] == 70, "summed about zero"
    assert db[7].isnan().item() == math.isnan(special)


def test_autocast_and_a_model_of_bfloat16(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are as near to float64 as those of torch's modules, within a factor of two."""
    torch.manual_seed(0)
    ran = []
    channels_after = block_module._channels_after
    monkeypatch.setattr(
        block_module,
        "_channels_after",
        lambda parts, x: (len(parts) > 1 and ran.append(len(parts))) or channels_after(parts, x),
    )
    model = DSN(3, 4, nf=16, kernel_size=9, depth=2, block=16)
    x, y = torch.randn(6, 3, 30), torch.arange(6) % 4

    def gradients(model: nn.Module, x: Tensor, casts: bool) -> list[Tensor]:
        with torch.autocast("cpu", BF16, enabled=casts):
            out = model(x)
        loss = F.nll_loss(out.to(torch.float64 if x.dtype == torch.float64 else torch.float32), y)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    exact = gradients(copy.deepcopy(model).double(), x.double(), False)
    ran.clear()
    for twin, given, casts in (
        (copy.deepcopy(model), x, True),
        (copy.deepcopy(model).to(BF16), x.to(BF16), False),
    ):
        modules = copy.deepcopy(twin)
        got = gradients(twin, given, casts)
        assert ran == [7], "two blocks and the head are one chain"
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "runs_eagerly", lambda: False)
            others = gradients(modules, given, casts)
        assert ran.pop() == 7
        assert [g.dtype for g in got] == [p.dtype for p in twin.parameters()]
        for a, b, wanted in zip(got, others, exact, strict=True):
            assert (a.double() - wanted).norm() <= 2 * (
                b.double() - wanted
            ).norm() + UNIT * wanted.norm()
    with torch.autocast("cpu", torch.float16):
        assert not in_rows(x)


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


def test_single_weights_run_module_by_module(unit: str) -> None:
    layer = SparseConv1d(16, 16, 3, padding=1, density=0.3).to(BF16)
    x = torch.randn(2, 16, 20).to(BF16)
    block = block_module.Block(layer, nn.BatchNorm1d(16), nn.ReLU()).to(BF16)
    plain = nn.Sequential(*copy.deepcopy(block))
    assert block(x).equal(plain(x))


@pytest.mark.promise("P1")
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_taps_of_one_channel_are_channels(mode: str, unit: str) -> None:
    torch.manual_seed(0)
    for (n, length), dilation in zip(SHAPES, (1, 2, 1, 3, 1, 2), strict=True):
        pattern = KernelCSR.random((37, 1, 40), 300)
        geometry = Geometry(pattern.shape, 1, (0, 39 * dilation), dilation, 1, mode)
        x, grad = torch.randn(n, 1, length).to(BF16), torch.randn(n, 37, length).to(BF16)
        conv = Conv(torch.randn(300).to(BF16), torch.randn(37).to(BF16), pattern, geometry)

        def exact(x: Tensor, w: Tensor, b: Tensor, g: Tensor, conv: Conv = conv) -> list[Tensor]:
            x, w, b = (t.double().requires_grad_() for t in (x, w, b))
            y = sparse_conv1d(x, w, conv.pattern, b, padding=conv.geometry.padding,
                              dilation=conv.geometry.dilation, padding_mode=mode,
                              backend="reference")  # fmt: skip
            return [y.detach(), *torch.autograd.grad(y, (x, w, b), g.double())]

        given = x, conv.values, conv.bias, grad
        wanted, size = exact(*given), exact(*(t.abs() for t in given))
        for got, a, most in zip(results([conv], x, grad), wanted, size, strict=True):
            assert ((got.double() - a).abs() <= 2 * UNIT * a.abs() + FLOAT * most).all()
        # A tap that is not active must not make NaN of an infinity.
        x[0, 0, length // 2] = math.inf
        y = results([conv], x, grad)[0]
        assert y.isfinite().equal(sparse_conv1d(x, *given[1:2], pattern, given[2],
                                                padding=geometry.padding, dilation=dilation,
                                                padding_mode=mode).isfinite())  # fmt: skip


def test_a_norm_that_begins_keeps_float32_and_types_are_those_of_modules(unit: str) -> None:
    torch.manual_seed(0)
    conv = SparseConv1d(32, 32, 3, padding=1, block=16)
    block = block_module.Block(nn.BatchNorm1d(32), nn.ReLU(), conv, nn.BatchNorm1d(32), nn.ReLU())
    x = 1000 + torch.randn(3, 32, 40)
    plain = nn.Sequential(*copy.deepcopy(block))
    with torch.autocast("cpu", BF16):
        y, wanted = block(x), plain(x)
    assert (y - wanted).norm() <= 4 * UNIT * wanted.norm()
    torch.testing.assert_close(block[0].running_var, plain[0].running_var)
    for modules in (block[2:], plain[2:]):
        with pytest.raises((RuntimeError, TypeError), match=r"(?i)type"):
            modules(x.to(BF16))  # float32 weights without autocast


def test_a_1x1_convolution_of_too_many_channels_runs_as_a_module(unit: str) -> None:
    block = block_module.Block(SparseConv1d(16, 16, 3, padding=1, block=16), nn.Conv1d(16, 2100, 1))
    x = torch.randn(1, 16, 5)
    with torch.autocast("cpu", BF16):
        torch.testing.assert_close(block(x), nn.Sequential(*block)(x))


def test_backward_without_the_unit_of_the_forward_pass(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [Pointwise(torch.randn(4, 16, 1).to(BF16).requires_grad_())]
    y = run_ordered(torch.randn(2, 16, 9).to(BF16), stages)
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "baseline")
    assert extension is not None
    assert extension.isa() == "baseline"
    with pytest.raises(RuntimeError, match="SPARSECONV_CPU_ISA names another"):
        y.sum().backward()
