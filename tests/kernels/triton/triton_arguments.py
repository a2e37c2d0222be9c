"""Wrong arguments of the raw Triton ops, in Triton's interpreter (see ``triton_cases.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from any_kernels import poisoned_memory  # noqa: F401  what no kernel writes is NaN
from op_arguments import GEOMETRIES, with_argument, wrong_values
from torch import Tensor

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans, triton
from sparseconv.ops.triton import kernels

assert triton.INTERPRETED, "run this file through test_triton.py"

CPU = torch.device("cpu")
LENGTH = 12
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.complex64)
OUTSIDE = 1e30  # stands around buffers: a sum with one of these is as large
INDEX = {  # the arguments that are indices
    "triton_fprop": (3, 4),
    "triton_dgrad": (2, 3, 4),
    "triton_wgrad": (2, 3),
}


def arguments(g: Geometry) -> dict[str, tuple[Any, ...]]:
    """A correct argument list for every op."""
    torch.manual_seed(0)
    pattern = KernelCSR.from_mask(torch.rand(g.shape) < 0.5)
    values = torch.randn(pattern.nnz)
    x = torch.randn(2, g.shape[1] * g.groups, LENGTH)
    grad = torch.randn(2, g.shape[0], g.output_length(LENGTH))
    forward, backward = (
        gpu_plans.triton_fprop(pattern, g, CPU),
        gpu_plans.triton_dgrad(pattern, g, CPU),
    )
    blocks, geometry = gpu_plans.triton_wgrad(pattern, CPU), list(g.numbers)
    return {
        "triton_fprop": (x, values, torch.randn(g.shape[0]), *forward, geometry),
        "triton_dgrad": (grad, values, *backward, geometry, LENGTH),
        "triton_wgrad": (grad, x, blocks, forward.entries, geometry),
    }


def wrong(value: Any) -> Iterator[Any]:
    """Every way in which one argument can be wrong, contents of indices aside."""
    if not isinstance(value, Tensor):
        yield from wrong_values(value)
        if isinstance(value, list):
            for i in range(len(value)):
                yield from ([*value[:i], value[i] + d, *value[i + 1 :]] for d in (-1, 1))
        return
    yield from (value.to(dtype) for dtype in TYPES if dtype != value.dtype)
    yield from (value.to_sparse(), None)
    yield from (value.unsqueeze(0), value.flatten()[:0], value[0], value[..., 0], value.sum())
    for dim, size in enumerate(value.shape):
        yield value.narrow(dim, 0, size - 1)
        yield torch.cat([value, value.narrow(dim, 0, 1)], dim)
    if not value.is_floating_point():
        yield torch.stack([value, value], -1)[..., 0]  # not contiguous


@pytest.mark.promise("P5")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_wrong_argument_raises(geometry: Geometry, campaign: Any, count_cases: Any) -> None:
    cases, refused, step = 0, 0, 1 if campaign(0, 1) else 8
    for name, args in arguments(geometry).items():
        op = getattr(torch.ops.sparseconv, name)
        for i, value in enumerate(args):
            for other in islice(wrong(value), i % step, None, step):
                cases += 1
                try:
                    result = op(*with_argument(args, i, other))
                except (ValueError, TypeError, RuntimeError, NotImplementedError):
                    refused += 1
                    continue
                # What does not raise must have been another correct call: all written and finite.
                # But for blocks that leave the last weight out: its gradient is what it was.
                written = result[:-1] if (name, i) == ("triton_wgrad", 3) else result
                assert written.isfinite().all(), (name, i, other)
    count_cases(cases)
    assert cases > 250 // step
    assert refused > 0.8 * cases


def changed(at: int, value: int) -> Callable[[list[int]], list[int]]:
    return lambda numbers: [*numbers[:at], value, *numbers[at + 1 :]]


@pytest.mark.parametrize(
    ("name", "i", "change", "error", "words"),
    [
        ("triton_fprop", 0, lambda x: x[:, 1:], ValueError, r"input of shape \(N, 3, L\)"),
        ("triton_fprop", 0, lambda x: x[0], ValueError, "expected input of shape"),
        ("triton_fprop", 0, lambda x: x.int(), TypeError, "expected input to be a dense tensor"),
        ("triton_fprop", 0, lambda x: x[..., :0], ValueError, "at least one sample"),
        ("triton_fprop", 0, lambda x: x[..., :2], ValueError, "can't be greater than actual"),
        ("triton_fprop", 1, lambda v: v[1:], ValueError, r"expected rows of shape"),
        ("triton_fprop", 1, lambda v: v.double(), TypeError, "values to be a dense tensor"),
        ("triton_fprop", 4, lambda _: None, TypeError, "rows to be a tensor, but got None"),
        ("triton_fprop", 2, lambda b: b[1:], ValueError, r"expected bias of shape \(4,\)"),
        ("triton_fprop", 3, lambda r: r[1:], ValueError, r"crow_indices of shape \(4, 3\)"),
        ("triton_fprop", 3, lambda r: r.long(), TypeError, "to be a contiguous .*int32"),
        ("triton_fprop", 5, lambda g: g[1:], ValueError, r"expected geometry \[C_out"),
        ("triton_fprop", 5, changed(0, 5), ValueError, r"expected bias of shape \(5,\)"),
        ("triton_fprop", 5, changed(1, 0), ValueError, "positive in every dimension"),
        ("triton_fprop", 5, changed(3, 0), ValueError, "non-positive stride"),
        ("triton_fprop", 5, changed(3, 2**31), ValueError, r"below 2\*\*31"),
        ("triton_fprop", 5, changed(4, -1), ValueError, "negative padding"),
        ("triton_fprop", 5, changed(7, 3), ValueError, "divisible by 3"),
        ("triton_fprop", 5, changed(8, 4), ValueError, "padding_mode in 0 .. 3"),
        ("triton_dgrad", 0, lambda g: g[..., 1:], ValueError, "for an input of length 12"),
        ("triton_dgrad", 2, lambda p: p[1:], ValueError, r"expected pointers of shape \(3, 3\)"),
        ("triton_dgrad", 4, lambda i: i.long(), TypeError, "index to be a contiguous .*int32"),
        ("triton_dgrad", 6, lambda _: 0, ValueError, "at least one sample"),
        ("triton_wgrad", 0, lambda g: g[1:], ValueError, "expected grad_output of shape"),
        ("triton_wgrad", 0, lambda g: g.half(), TypeError, "grad_output to be a dense tensor"),
        ("triton_wgrad", 2, lambda b: b[:-1], ValueError, "expected crow_indices of shape"),
        ("triton_wgrad", 3, lambda e: e.int(), TypeError, "rows to be a contiguous .*int64"),
    ],
)  # fmt: skip
def test_the_words(name: str, i: int, change: Any, error: Any, words: str) -> None:
    args = arguments(GEOMETRIES[0])[name]
    with pytest.raises(error, match=words):
        getattr(torch.ops.sparseconv, name)(*with_argument(args, i, change(args[i])))


def guarded(tensor: Tensor, guard: int = 500) -> Tensor:
    """The same, in the midst of a larger buffer."""
    fill = OUTSIDE if tensor.is_floating_point() else 2**30
    whole = torch.full((tensor.numel() + 2 * guard,), fill, dtype=tensor.dtype)
    inner = whole[guard : guard + tensor.numel()].view(tensor.shape)
    return inner.copy_(tensor)


class Watched:
    """Stands for a kernel; nothing around its output may change. What it leaves out is 0."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(out: Tensor, *args: Any, **options: Any) -> None:
            inner = guarded(torch.zeros_like(out))
            whole = inner.as_strided((inner.storage_offset() * 2 + inner.numel(),), (1,), 0)
            self.kernel[grid](inner, *args, **options)
            out.copy_(inner)
            inner.fill_(OUTSIDE)
            assert (whole == OUTSIDE).all(), "written outside the output"

        return launch


@pytest.mark.campaign("Triton interprets it for seconds")
@pytest.mark.promise("P5")
@pytest.mark.parametrize("geometry", GEOMETRIES[2:4], ids=str)
def test_wrong_indices_touch_no_memory_outside(
    geometry: Geometry, monkeypatch: pytest.MonkeyPatch, count_cases: Any
) -> None:
    """Their contents are not checked, since it would have to wait for a GPU."""
    for name in ("correlate", "wgrad"):
        monkeypatch.setattr(kernels, name, Watched(getattr(kernels, name)))
    for name, plain in arguments(geometry).items():
        op, cases = getattr(torch.ops.sparseconv, name), 0
        args = tuple(guarded(a) if isinstance(a, Tensor) else a for a in plain)
        assert op(*args).equal(op(*plain))
        for i in INDEX[name]:
            flat = args[i].flatten()
            large = (-1, 2**31 - 1, -(2**31))
            if flat.dtype == torch.int64:  # a channel in the upper half, an offset in the lower
                large = (-1, 10**6, 10**6 << 32, -(2**63))
            for bad in large:
                for at in range(3) if args[i].dim() == 2 else (len(flat) // 2,):
                    poisoned = flat.clone()
                    poisoned[at] = bad
                    result = op(*with_argument(args, i, guarded(poisoned.view(args[i].shape))))
                    assert (result.abs() < 1e6).all(), (name, i, bad, at)
                    cases += 1
        count_cases(cases)
