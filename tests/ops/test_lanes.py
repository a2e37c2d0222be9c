"""The ops on tensors in lanes give what the same operations give outside of that order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from any_kernels import poisoned_memory  # noqa: F401 (a fixture of every test here)
from op_arguments import lane_arguments, lane_dtypes
from ordered import check_equal
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sparseconv import KernelCSR
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS
from sparseconv.testing import error_bound, expected, random_case

SIZES = tuple(product((1, 3, 16, 20, 33), (1, 2, 5, 24, 129)))
DTYPES = (torch.float32, torch.float64)


def idle_is_zero(lanes: Tensor, batch: int, length: int) -> bool:
    samples = OPS.lanes_enter(torch.ones(batch, 1, length, dtype=lanes.dtype))
    return not lanes[:, samples[0] == 0].any()


@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
def test_convolutions_have_the_bits_of_those_outside(
    isas: Callable[[], Iterator[str]], count_cases: Callable[[int], None]
) -> None:
    rng, cases = random.Random(0), 0
    while cases < 100:
        fixed: dict[str, Any] = {} if cases % 4 else {
            "kernel_size": rng.choice((2, 3)), "dilation": rng.choice((16, 31, 70)),
            "length": rng.choice((90, 300, 1000)), "padding": "same",
        }  # fmt: skip
        n, dtype = rng.choice((1, 2, 3, 5, 17, 40)), rng.choice(("float32", "float64"))
        case = random_case(rng, stride=1, batched=True, n=n, dtype=dtype, **fixed)
        if not extension.keeps_order(case.geometry):
            continue
        cases += 1
        x, values, bias, grad = case.tensors()
        pattern, numbers = case.make_pattern(), list(case.geometry)
        context = pattern.crow_indices, pattern.col_indices, numbers
        order = case.n, case.length
        a, w = x.clone().requires_grad_(), values.clone().requires_grad_()
        relu = rng.random() < 0.5
        y = OPS.fprop(a, w, bias, *context, relu)
        wanted = y, *torch.autograd.grad(y, (a, w), grad)
        # A few taps far apart: the gradient of values is summed in another order than outside.
        few = case.kernel_size <= 3 and case.dilation > 1
        exact, bound = expected(case, case.tensors())[2] if few and not relu else (w, torch.inf)
        first = None
        for isa in isas():
            inside = OPS.lanes_conv(OPS.lanes_enter(a), w, bias, *context, *order, relu)
            assert idle_is_zero(inside, *order)
            y = OPS.lanes_leave(inside, y.shape[1], *order)
            found = y, *torch.autograd.grad(y, (a, w), grad)
            for name, p, q in zip("yxw", wanted, found, strict=True):
                if name == "w" and few:
                    first = q if first is None else first
                    assert ((q - exact).abs() <= bound).all(), f"{isa}: {case!r}"
                    p = first
                assert p.equal(q), f"{name} on {isa}: {case!r}"
    count_cases(cases)


@pytest.mark.parametrize(
    ("size", "stride"), [(1, 1), (3, 1), (5, 1), (15, 1), (2, 2), (4, 4), (3, 5)]
)
def test_max_pool_and_its_gradient_are_those_of_torch(size: int, stride: int) -> None:
    """Exactly: of equal samples the first has the gradient, and a NaN is the largest."""
    for (n, length), dtype in product((*SIZES, (1, 256), (3, 320)), DTYPES):
        pooled = (length - size) // stride + 1 if stride > 1 else length
        fits = extension.pools_in_lanes(n, length, dtype.itemsize, size, stride)
        if stride > 1 and not (pooled > 0 and fits):
            assert n % 16 or length < size, "whole series are cut nowhere"
            continue
        x = torch.randint(-3, 4, (n, 2, length)).to(dtype)
        for data in (x, x.where(torch.rand(x.shape) > 0.1, float("nan")), torch.randn_like(x)):
            data.requires_grad_()
            y = F.max_pool1d(data, size, stride, size // 2 if stride == 1 else 0)
            inside = OPS.lanes_max_pool(OPS.lanes_enter(data), size, stride, n, length)
            assert idle_is_zero(inside, n, pooled)
            check_equal(y, OPS.lanes_leave(inside, 2, n, pooled), [data], (n, length, dtype))


RESAMPLED = (
    *((2, 1, 1, -2), (0, 1, 1, -2), (-2, 1, 1, 2), (-3, 1, 1, 5), (1, 1, 1, 3)),  # ends move
    *((0, 2, 1, 0), (0, 3, 1, 0), (-1, 2, 1, 1), (0, 1, 2, 0), (0, 1, 2, 1), (1, 1, 3, 0)),
)


@pytest.mark.parametrize(("start", "repeat", "stride", "more"), RESAMPLED)
def test_samples_are_cropped_repeated_and_summed(
    start: int, repeat: int, stride: int, more: int
) -> None:
    """Whole numbers, whose sums are exact; the second derivative, too."""
    for (n, length), dtype in product((*SIZES, (1, 256), (2, 512)), lane_dtypes()):
        samples = length * repeat // stride + more
        if samples < 1 or start >= length:
            continue
        terms = torch.arange(samples * stride).unflatten(0, (-1, stride)) + start
        read = torch.div(terms, repeat, rounding_mode="floor")
        x = torch.randint(-3, 4, (n, 3, length)).to(dtype).requires_grad_()
        y = (x[:, :, read.clamp(0, length - 1)] * ((read >= 0) & (read < length))).sum(3)
        how = start, repeat, stride, n, length, samples
        inside = OPS.lanes_resample(OPS.lanes_enter(x), *how)
        assert dtype == torch.bfloat16 or idle_is_zero(inside, n, samples)
        check_equal(y, OPS.lanes_leave(inside, 3, n, samples), [x], (n, length, dtype))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "tanh": torch.tanh,
    "glu": lambda x: F.glu(x, 0),
    "gated_tanh": lambda x: x[: len(x) // 2].tanh() * x[len(x) // 2 :].sigmoid(),
}


@pytest.mark.promise("P3")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name: str, isas: Callable[[], Iterator[str]]) -> None:
    """Of numbers small and large, infinite and none, within a few roundings; the same bits."""
    of_torch = ACTIVATIONS[name]
    for dtype in DTYPES:
        width = 64 // dtype.itemsize
        x = torch.randn(5, 2, 40, width, dtype=torch.float64)
        sizes = torch.tensor([1e-6, 1, 9, 99, 2000])[torch.randperm(5)]
        x = (x * sizes.view(-1, 1, 1, 1)).to(dtype)
        x = torch.cat([x, torch.zeros_like(x[:1])])
        special = torch.tensor([float("nan"), float("inf"), -float("inf")])
        x[torch.randint(6, (9,)), 0, torch.arange(9), 3] = special.repeat(3).to(dtype)
        grad = torch.randn(of_torch(x).shape, dtype=torch.float64).to(dtype)
        a, exact, b = x.clone(), x.double(), x.clone()
        results = []
        for leaf, f in ((exact, of_torch), (a, of_torch)):
            y = f(leaf.requires_grad_())
            results.append((y, *torch.autograd.grad(y, leaf, grad.to(leaf.dtype))))
        found = {}
        for isa in isas():
            y = OPS.lanes_activation(b.requires_grad_(), name)
            found[isa] = (y.detach(), *torch.autograd.grad(y, b, grad))
        for wanted, rounded, *own in zip(*results, *found.values(), strict=True):
            finite = wanted.isfinite() & rounded.isfinite()
            scale = wanted.abs() + 1e-30
            if wanted.shape == x.shape and wanted is not results[0][0]:
                scale = scale + grad.abs().max() * (1 + x[x.isfinite()].abs().max())
            bound = 8 * torch.finfo(dtype).eps * scale
            assert ((own[0] - wanted).abs() <= bound)[finite].all(), dtype
            nan = wanted.isnan() & rounded.isnan()
            assert own[0][nan].isnan().all()
            assert all(torch.equal(p.nan_to_num(), own[0].nan_to_num()) for p in own)


@pytest.mark.promise("P3")
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_prelu_is_that_of_torch(dim: int, isas: Callable[[], Iterator[str]]) -> None:
    """Of whole numbers exactly, with one weight and with one for each channel."""
    for (n, length), dtype, one in product(SIZES, DTYPES, (True, False)):
        x = torch.randint(-3, 4, (n, 5, length)).to(dtype).requires_grad_()
        weight = torch.randint(-3, 4, (1 if one else x.shape[dim],)).to(dtype).requires_grad_()
        y = F.prelu(x.movedim(dim, 1), weight).movedim(1, dim)
        for isa in isas():
            check_equal(y, OPS.prelu(x, weight, dim), [x, weight], (isa, n, length, dtype))


def norm_step(
    x: Tensor, other: Tensor | None, parts: int, training: bool, relu: bool, in_lanes: bool
) -> list[Tensor]:
    """Output, gradients and running statistics."""
    torch.manual_seed(0)
    n, channels, length = x.shape
    weight, bias, mean, var, cost = (
        torch.randn(size, dtype=torch.float64).to(x.dtype)
        for size in ((channels,), (channels,), (channels,), (channels,), x.shape)
    )
    var = var.abs() + 0.5
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    leaves += [] if other is None else [other.clone().requires_grad_()]
    a, w, b, *added = leaves
    if in_lanes:
        lanes = OPS.lanes_enter(a).split(-(-channels // parts))
        plus = OPS.lanes_enter(added[0]) if added else None
        how = training, 0.1, 1e-5, relu, n, length
        inside = OPS.lanes_norm(lanes, w, b, mean, var, plus, *how)[0]
        assert idle_is_zero(inside, n, length)
        y = OPS.lanes_leave(inside, channels, n, length)
    else:
        y = F.batch_norm(a, mean, var, w, b, training, 0.1, 1e-5)
        y = y + added[0] if added else y
        y = y.relu() if relu else y
    return [y, *torch.autograd.grad(y, leaves, cost), mean, var]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_that_of_torch(training: bool) -> None:
    for (n, length), dtype in product(SIZES, DTYPES):
        if n * length == 1 and training:
            continue
        for kind in ("plain", "relu", "added"):
            x, other = torch.randn(n, 5, length).to(dtype), torch.randn(n, 5, length).to(dtype)
            other = other if kind == "added" else None
            args = other, 2, training, kind != "plain"
            wide = None if other is None else other.double()
            exact = norm_step(x.double(), wide, 1, *args[2:], in_lanes=False)
            found = norm_step(x, *args, in_lanes=True)
            # Sums over a channel are divided by its variance, if only that of a few samples.
            variance = x.double().var((0, 2), correction=0).min() + 1e-5
            largest = max(result.abs().max() for result in exact)
            bound = error_bound(x, largest / variance, torch.tensor(n * length), dtype)
            for p, q in zip(exact, found, strict=True):
                assert ((p - q).abs() <= bound).all(), (n, length, dtype, kind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_of_infinite_samples_and_of_those_far_from_zero(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 24).to(dtype)
    x[1, 2, 7] = float("inf")
    for training in (True, False):
        wanted, found = (norm_step(x, None, 2, training, False, lanes) for lanes in (False, True))
        for p, q in zip(wanted, found, strict=True):
            assert p.isnan().equal(q.isnan())
    near = (2.0**20 + torch.randint(2, x.shape) / 8).to(dtype)  # their mean is rounded
    inputs = [OPS.lanes_enter(near)], *[None] * 5, True, 0.1, 1e-5, False, 3, 24
    deviation = ((near - 2.0**20).double().var((0, 2), correction=0) + 1e-5).sqrt()
    off = OPS.lanes_norm(*inputs)[2] * deviation - 1
    assert off.abs().max() <= 3 * 24 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["lanes_norm", "lanes_conv"])
def test_a_gradient_that_someone_holds_is_not_written_into(name: str) -> None:
    arguments = lane_arguments(torch.float32)[name]
    if name == "lanes_norm":
        arguments = arguments[0][:1], *[None] * 5, *arguments[6:]
    x = arguments[0][0] if name == "lanes_norm" else arguments[0]
    x.requires_grad_()
    y = getattr(OPS, name)(*arguments)
    y = y[0] if name == "lanes_norm" else y
    kept: list[tuple[Tensor, Tensor]] = []
    y.register_hook(lambda grad: kept.append((grad, grad.clone())))
    (y * 2).sum().backward()
    assert kept
    assert all(grad.equal(copied) for grad, copied in kept)


def displaced(x: Any) -> Any:
    """A copy whose memory begins where torch would not let it begin."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


@pytest.mark.parametrize("name", lane_arguments(torch.float32))
def test_memory_may_begin_anywhere(name: str) -> None:
    """As that of NumPy's arrays, of which hooks of saved tensors make tensors."""
    for dtype in lane_dtypes():
        if (given := lane_arguments(dtype).get(name)) is not None:
            call = getattr(OPS, name)
            found, wanted = call(*tree_map(displaced, given)), call(*given)
            assert all(map(torch.equal, tree_leaves(found), tree_leaves(wanted)))


@pytest.mark.parametrize("dense", [False, True])
def test_batch_norm_is_folded_into_weights(dense: bool) -> None:
    """In one operation without gradients, and in differentiable ones: all numbers are exact."""
    for dtype in lane_dtypes():
        pattern = KernelCSR.random((4, 3, 5), 30)
        weights = torch.randint(-9, 9, (4, 3, 1) if dense else (30,)).to(dtype)
        crow, kernels = (None, 0) if dense else (pattern.crow_indices, 3)
        bias, weight, shift, mean = (torch.randint(-9, 9, (4,)).to(dtype) for _ in range(4))
        var = 4.0 ** torch.randint(-2, 3, (4,)).to(dtype)
        for optional in product((True, False), repeat=3):
            a, b, c = (
                v if given else None
                for v, given in zip((bias, weight, shift), optional, strict=True)
            )
            given = weights, a, crow, kernels, b, c, mean, var, 0.0
            wanted = OPS.lanes_fold(*given)
            with torch.no_grad():
                found = OPS.lanes_fold(*given)
            assert all(
                p.equal(q) and p.dtype == q.dtype for p, q in zip(wanted, found, strict=True)
            )
        later = None if dense else pattern.crow_indices + 1
        for other, numel in ((crow, 11), (crow, 31), (later, 31)):
            with torch.no_grad(), pytest.raises(ValueError, match="expected"):
                OPS.lanes_fold(mean.new_ones(numel), a, other, kernels, b, c, mean, var, 0.0)


def test_mean_and_pointwise() -> None:
    for (n, length), dtype in product(SIZES, DTYPES):
        x = torch.randint(-3, 4, (n, 4, length)).to(dtype).requires_grad_()
        weight = torch.randint(-3, 4, (6, 4, 1)).to(dtype).requires_grad_()
        bias = torch.randint(-3, 4, (6,)).to(dtype).requires_grad_()
        added = torch.randint(-3, 4, (n, 6, length)).to(dtype).requires_grad_()
        y = F.conv1d(x, weight, bias) + added
        before = OPS.lanes_enter(added)
        inside = OPS.lanes_pointwise(OPS.lanes_enter(x), weight, bias, n, length, before)
        assert idle_is_zero(inside, n, length)
        leaves = x, weight, bias, added  # sums of whole numbers are exact
        check_equal(y, OPS.lanes_leave(inside, 6, n, length), leaves, (n, length, dtype))
        mean = OPS.lanes_mean(OPS.lanes_enter(x), 4, n, length)
        assert mean.equal(x.sum(2) / length)
        (of_x,) = torch.autograd.grad(mean.sum(), x)
        assert of_x.equal(torch.ones_like(x) / length)


@pytest.mark.promise("P6")
def test_wrong_arguments_are_refused() -> None:
    """Each argument of each op, one at a time, in another size, dtype or number."""
    refused, of_any_sizes = (
        0,
        ("lanes_dropout", "lanes_fold", "max_pool", "prelu", "prelu_backward"),
    )
    for name, args in (pair for t in lane_dtypes() for pair in lane_arguments(t).items()):
        if name in of_any_sizes:
            continue
        op = getattr(OPS, name)
        for i, argument in enumerate(args):
            changes: list[Any] = []
            if isinstance(argument, Tensor) and argument.dim():
                changes = [argument[..., :-1], argument.to(torch.int16), argument.unsqueeze(0)]
                if name == "lanes_enter":
                    changes = [argument[0], argument[:0], argument.half()]
                elif argument.dim() == 4 and i == 0 and "activation" not in name:
                    changes.append(argument.double()[:, :-1])
            elif type(argument) is int:
                wide = name == "lanes_max_pool" and i == 2  # a stride, after one window
                changes = [-1, 0 if wide else 10**6] + [0] * (i >= len(args) - 2)
                changes *= i >= len(args) - 3
                if (name, i) == ("lanes_resample", 6):  # any number of samples
                    changes = [-1, 0]
            elif isinstance(argument, list) and isinstance(argument[0], int):
                changes = [argument[:-1], [*argument[:3], 2, *argument[4:]]]
            for change in changes:
                with pytest.raises((ValueError, TypeError, RuntimeError), match=r"(?i)expected"):
                    op(*args[:i], change, *args[i + 1 :])
                refused += 1
    assert refused > 80
    for name, *wrong in (
        ("lanes_dropout", torch.zeros(2), 1.5, 0),
        ("lanes_dropout", torch.zeros(2, dtype=torch.half), 0.5, 0),
        ("max_pool", torch.zeros(2, 5), 2, 2, 0),
        ("prelu", torch.zeros(2, 5), torch.zeros(2), 1),
        ("prelu", torch.zeros(2, 5), torch.zeros(1), 2),
        ("prelu", torch.zeros(2, 5), torch.zeros(1).double(), 1),
        ("lanes_activation", torch.zeros(3, 1, 2, 16), "glu"),
        ("lanes_activation", torch.zeros(2, 1, 2, 16), "selu"),
        ("lanes_max_pool_backward", *(torch.zeros(c, 1, 5, 16) for c in (1, 2)), 3, 1, 16, 5),
        *(
            ("lanes_max_pool", torch.zeros(1, 1, 5, 16), *window, 16, 5)
            for window in ((2, 1), (17, 1), (3, 2), (6, 7))
        ),
        *(
            ("max_pool", torch.zeros(1, 1, 5), *window)
            for window in ((0, 1, 0), (2, 0, 0), (2, 1, 2))
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=r"expected"):
            getattr(OPS, name)(*wrong)


def test_max_pool_outside_of_lanes_is_that_of_torch() -> None:
    """Exactly, NaN and equal samples included."""
    for (n, length), (size, stride, padding), dtype in product(
        SIZES, ((2, 2, 0), (3, 2, 1), (4, 4, 2), (5, 3, 0), (1, 2, 0)), (*DTYPES, torch.bfloat16)
    ):
        if length + 2 * padding < size:
            with pytest.raises(ValueError, match="expected a window"):
                OPS.max_pool(torch.zeros(n, 3, length, dtype=dtype), size, stride, padding)
            continue
        x = torch.randint(-3, 4, (n, 3, length)).to(dtype)
        for data in (x, x.where(torch.rand(x.shape) > 0.1, float("nan"))):
            how = data.requires_grad_(), size, stride, padding
            check_equal(F.max_pool1d(*how), OPS.max_pool(*how), [data], (n, length, dtype))
