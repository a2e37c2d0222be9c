"""What stands around the sparse convolutions is what torch computes, on every ISA, to the bit.

Error bounds are computed. ``SPARSECONV_CPU_ISA`` is forced for each instruction set in turn, and
fresh memory is filled with NaN.
"""

from __future__ import annotations

import copy
import hashlib
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from any_kernels import poisoned_memory  # noqa: F401
from torch import Tensor, nn

from sparseconv.functional.fused import adaptive_avg_pool1d, batch_norm_relu, conv1x1
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.testing import LAYOUTS, LENGTHS, error_bound

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")

ISAS = extension.isas() if extension is not None else []
OPS = torch.ops.sparseconv
DTYPES = (torch.float32, torch.float64)
SHAPES = (
    (16, 141, 47, 128),  # a DSN's bottleneck
    (1, 1, 1, 1),
    (3, 47, 141, 24),
    (2, 300, 5, 33),
    (16, 9, 17, 301),  # several splits of wgrad's columns
    (5, 13, 12, 257),
)


def random_shapes(seed: int, count: int) -> list[tuple[int, int, int, int]]:
    rng = random.Random(seed)
    return [
        (rng.randint(1, 5), rng.randint(1, 40), rng.randint(1, 40), rng.choice(LENGTHS))
        for _ in range(count)
    ]


def digest(*tensors: Tensor) -> str:
    raw = b"".join(t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
    return hashlib.sha256(raw).hexdigest()


# 1x1 convolution


def pointwise(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = conv1x1(x, weight)
    assert type(y.grad_fn).__name__ == "FpropBackward", "the kernel did not run"
    return (y.detach(), *torch.autograd.grad(y, (x, weight), grad))


def oracle(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, w, grad = x.double(), weight.double()[:, :, 0], grad.double()
    return (
        torch.einsum("oc,ncl->nol", w, x),
        torch.einsum("oc,nol->ncl", w, grad),
        torch.einsum("nol,ncl->oc", grad, x)[:, :, None],
    )


@pytest.mark.promise("P1")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv1x1_within_the_computed_bound(dtype, isas, count_cases) -> None:
    for seed, (n, c_in, c_out, length) in enumerate((*SHAPES, *random_shapes(1, 60))):
        torch.manual_seed(seed)
        x, grad = (torch.randn(n, c, length, dtype=dtype) for c in (c_in, c_out))
        data = (x, torch.randn(c_out, c_in, 1, dtype=dtype), grad)
        exact = oracle(*data)
        magnitudes = oracle(*(t.abs() for t in data))
        terms = (c_in, c_out, n * length)
        for isa in isas():
            for name, got, want, size, count in zip(
                "fdw", pointwise(*data), exact, magnitudes, terms, strict=True
            ):
                assert got.shape == want.shape
                bound = error_bound(want, size, torch.tensor(float(count)), dtype)
                assert ((got - want).abs() <= bound).all(), (name, isa, x.shape, c_out)
        count_cases(1)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv1x1_integers_are_exact(dtype, isas, count_cases) -> None:
    for n, c_in, c_out, length in (*SHAPES, *random_shapes(2, 30)):
        shapes = ((n, c_in, length), (c_out, c_in, 1), (n, c_out, length))
        data = [torch.randint(-8, 9, shape).to(dtype) for shape in shapes]
        for isa in isas():
            for got, want in zip(pointwise(*data), oracle(*data), strict=True):
                assert got.equal(want.to(dtype)), (isa, n, c_in, c_out, length)
        count_cases(1)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_does_not_change_a_bit(name, isas, count_cases) -> None:
    layout = LAYOUTS[name]
    for dtype in DTYPES:
        torch.manual_seed(0)
        data = [torch.randn(s, dtype=dtype) for s in ((3, 21, 37), (18, 21, 1), (3, 18, 37))]
        norm = nn.BatchNorm1d(21, dtype=dtype)
        for isa in isas():
            for i in range(3):
                odd = [layout(t) if i == j else t for j, t in enumerate(data)]
                even = [t.contiguous().clone() for t in odd]
                for a, b in zip(pointwise(*odd), pointwise(*even), strict=True):
                    assert a.equal(b), (isa, i)
            odd_x, odd_grad = layout(data[0]), layout(data[0].flip(0))
            pair = (odd_x.contiguous().clone(), odd_grad.contiguous().clone())
            for a, b in zip(normalise(odd_x, odd_grad, norm), normalise(*pair, norm), strict=True):
                assert a.equal(b), isa
            assert adaptive_avg_pool1d(odd_x, 5).equal(adaptive_avg_pool1d(pair[0], 5))
        count_cases(len(ISAS))


@pytest.mark.promise("P3")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_threads_or_isa(dtype, isas, count_cases) -> None:
    torch.manual_seed(0)
    found: dict[str, set[str]] = {}
    x, grad = torch.randn(16, 141, 130, dtype=dtype), torch.randn(16, 47, 130, dtype=dtype)
    weight = torch.randn(47, 141, 1, dtype=dtype)
    affine = nn.BatchNorm1d(141, dtype=dtype)
    nn.init.normal_(affine.weight)
    nn.init.normal_(affine.bias)
    other = torch.randn_like(x)
    for count in (1, 2, 3, 4, 7):
        with threads(count):
            for _ in isas():
                norm = copy.deepcopy(affine)
                results = {
                    "conv1x1": pointwise(x, weight, grad),
                    "norm": (*normalise(x, other, norm), norm.running_mean, norm.running_var),
                    "bins": (adaptive_avg_pool1d(x, 50), OPS.adaptive_avg_pool1d_backward(x, 999)),
                }
                for name, tensors in results.items():
                    found.setdefault(name, set()).add(digest(*tensors))
                count_cases(1)
    assert [len(digests) for digests in found.values()] == [1, 1, 1]


@pytest.mark.promise("P3")
def test_conv1x1_does_not_depend_on_the_batch(isas) -> None:
    x, weight = torch.randn(7, 30, 37), torch.randn(20, 30, 1)
    for _ in isas():
        whole = conv1x1(x, weight)
        for i in range(7):
            assert conv1x1(x[i : i + 1], weight).equal(whole[i : i + 1])


# BatchNorm and ReLU


def normalise(x: Tensor, grad: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, ...]:
    """Output and all gradients; torch's if ``norm`` has a hook."""
    x = x.detach().requires_grad_()
    y = batch_norm_relu(x, norm)
    return (y.detach(), *torch.autograd.grad(y, (x, *norm.parameters()), grad))


def sum_roundings(n: int) -> int:
    """Roundings on the way of one term through a sum of n: lanes, rows, tree, then double."""
    return min(-(-n // 16), 64) + 2 + 4 + 4


@pytest.mark.promise("P1")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm_relu_within_the_computed_bound(dtype, isas, count_cases) -> None:
    """First-order error analysis; the factor 1.01 covers the products of errors."""
    unit = torch.finfo(dtype).eps / 2 * (2 if dtype == torch.float64 else 1)  # oracle's own error
    shapes = ((16, 141, 128), (1, 2, 3000), (2, 3, 1), (40, 1, 1), *(s[:2] + s[3:] for s in MORE))
    for seed, (n, channels, length) in enumerate(shapes):
        if n * length == 1:
            continue
        torch.manual_seed(seed)
        x = torch.randn(n, channels, length, dtype=dtype) * 3 + 100 * (seed % 3)
        grad = torch.randn_like(x)
        weight, bias = torch.randn(2, channels, dtype=dtype)
        for isa in isas():
            y, mean, invstd = OPS.batch_norm_relu(x, weight, bias, None, None, 0.1, 1e-5)
            first = x.double().mean((0, 2), keepdim=True)
            d = x.double() - first  # exact enough to correct the mean by
            exact_mean, d = first + d.mean((0, 2), keepdim=True), d - d.mean((0, 2), keepdim=True)
            spread, var = (t.mean((0, 2), keepdim=True) for t in (d.abs(), d * d))
            exact_invstd = (var + 1e-5).rsqrt()
            k = sum_roundings(n * length)
            mean_error = unit * (exact_mean.abs() + (k + 2) * spread)
            invstd_error = unit * (k + 4) / 2 + unit  # relative
            scale = exact_invstd * weight.double()[:, None]
            z = d * scale + bias.double()[:, None]
            bound = scale.abs() * (mean_error + d.abs() * (invstd_error + 4 * unit))
            bound = 1.01 * (bound + unit * z.abs())
            assert ((y - z.relu()).abs() <= bound).all(), (isa, x.shape)
            assert ((mean - exact_mean.flatten()).abs() <= 1.01 * mean_error.flatten()).all()
            relative = (invstd.double() / exact_invstd.flatten() - 1).abs()
            assert (relative <= 1.01 * invstd_error).all()

            # The gradient, for the given statistics and the given signs of the output.
            dx, dw, db = OPS.batch_norm_relu_backward(grad, x, weight, bias, mean, invstd)
            centred = x.double() - mean.double()[:, None]
            dz = torch.where(y > 0, grad, 0).double()
            sums, sizes = (
                tuple(t.sum((0, 2)) for t in (dz, centred * dz)),
                tuple(t.sum((0, 2)) for t in (dz.abs(), (centred * dz).abs())),
            )
            invstd = invstd.double()
            factor = invstd * weight.double()
            u = 1.01 * unit * (k + 8)
            assert ((db - sums[0]).abs() <= u * sizes[0]).all(), (isa, x.shape)
            assert ((dw - invstd * sums[1]).abs() <= u * invstd * sizes[1]).all(), (isa, x.shape)

            def spread_out(dz: Tensor, sums: Any, d: Tensor, factor: Tensor, sign: int) -> Tensor:
                each = sums[0][:, None] + d * (invstd**2 * sums[1])[:, None]  # noqa: B023
                return factor[:, None] * (dz + sign * each / (n * length))  # noqa: B023

            exact = spread_out(dz, sums, centred, factor, -1)
            bound = u * spread_out(dz.abs(), sizes, centred.abs(), factor.abs(), 1)
            assert ((dx - exact).abs() <= bound).all(), (isa, x.shape)
        count_cases(1)


MORE = random_shapes(3, 40)

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.3},
    "cumulative": {"momentum": None},
    "not_affine": {"affine": False},
    "not_tracked": {"track_running_stats": False},
    "eps": {"eps": 0.5},
}


@pytest.mark.promise("P7")
@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_relu_is_torchs(mode, evaluating, isas, count_cases) -> None:
    for isa in isas():
        torch.manual_seed(0)
        ours = nn.BatchNorm1d(9, dtype=torch.float64, **MODES[mode])
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        theirs = copy.deepcopy(ours)
        for step in range(4):
            if evaluating and step == 2:
                ours.eval()
                theirs.eval()
            x = torch.randn(4, 9, 21, dtype=torch.float64) + step
            grad = torch.randn_like(x)
            got = normalise(x, grad, ours)
            x.requires_grad_()
            y = F.relu(theirs(x))
            want = (y, *torch.autograd.grad(y, (x, *theirs.parameters()), grad))
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b)
            assert ours.state_dict().keys() == theirs.state_dict().keys()
            for name, entry in theirs.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[name], entry, msg=f"{name}, {isa}")
        count_cases(4)


def test_one_value_per_channel_is_refused_as_by_torch() -> None:
    ours, theirs = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    messages = []
    for call in (lambda x: batch_norm_relu(x, ours), lambda x: F.relu(theirs(x))):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel") as error:
            call(torch.zeros(1, 3, 1))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert batch_norm_relu(torch.ones(1, 3, 1), ours.eval()).shape == (1, 3, 1)


@pytest.mark.promise("P4")
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_special_values_travel_as_in_torch(special, isas) -> None:
    torch.manual_seed(0)
    x, weight, grad = torch.randn(2, 5, 35), torch.randn(6, 5, 1), torch.randn(2, 6, 35)
    x[1, 3, 17] = special
    norm_grad = torch.randn(2, 5, 35)
    for training in (True, False):
        ours, theirs = (nn.BatchNorm1d(5).train(training) for _ in range(2))
        for _ in isas():
            a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = F.conv1d(a, b)
            want = (y, *torch.autograd.grad(y, (a, b), grad))
            for got, expected in zip(pointwise(x, weight, grad), want, strict=True):
                torch.testing.assert_close(got, expected, equal_nan=True)
            y = F.relu(theirs(a))
            want = (y, *torch.autograd.grad(y, (a, *theirs.parameters()), norm_grad))
            for got, expected in zip(normalise(x, norm_grad, ours), want, strict=True):
                torch.testing.assert_close(got, expected, equal_nan=True)
            torch.testing.assert_close(
                adaptive_avg_pool1d(x, 9), F.adaptive_avg_pool1d(x, 9), equal_nan=True
            )


def test_statistics_beyond_the_sums_of_floats(isas) -> None:
    x = torch.full((16, 5, 128), 3e37)
    x[0] = 0
    x[:, 1] = torch.randn(16, 128)
    for _ in isas():
        ours, exact = nn.BatchNorm1d(5), nn.BatchNorm1d(5).double()
        y = batch_norm_relu(x, ours)  # torch's float32 makes zeros of it: its variance overflows
        torch.testing.assert_close(y, F.relu(exact(x.double())).float())
        torch.testing.assert_close(ours.running_mean, exact.running_mean.float())
    x[3, 2, 7] = float("inf")
    ours, theirs = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    batch_norm_relu(x, ours)
    theirs(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, equal_nan=True)


# Averages over bins


@pytest.mark.promise("P1")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adaptive_avg_pool1d(dtype, isas, count_cases) -> None:
    for length in (*LENGTHS, 500):
        for bins in (1, 2, 7, 16, 50):
            x = torch.randn(3, 7, length, dtype=dtype, requires_grad=True)
            grad = torch.randn(3, 7, bins, dtype=dtype)
            # The averaging matrix is exact in float64 but for one rounding.
            matrix = F.adaptive_avg_pool1d(torch.eye(length, dtype=torch.float64), bins)
            wanted, sizes = (
                (f(x.double()) @ matrix, f(grad.double()) @ matrix.t())
                for f in (lambda t: t, torch.abs)
            )
            terms = ((matrix > 0).sum(0).double(), (matrix > 0).sum(1).double())
            for isa in isas():
                y = adaptive_avg_pool1d(x, bins)
                got = (y, *torch.autograd.grad(y, x, grad))
                for a, want, size, count in zip(got, wanted, sizes, terms, strict=True):
                    bound = error_bound(want, size, count + 1, dtype)
                    assert ((a - want).abs() <= bound).all(), (isa, length, bins)
            count_cases(1)
