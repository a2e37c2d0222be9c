"""What ``SparseConv1d`` and its methods refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_state import everything
from refusals import refusals
from torch import nn

from sparseconv import KernelCSR, SparseConv1d, optimize_for_inference


def make(**options: Any) -> Callable[[], SparseConv1d]:
    return lambda: SparseConv1d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3} | options)


def own(forward: Callable[[nn.Conv1d, Any], Any]) -> Callable[[], SparseConv1d]:
    """Convert a layer of a class that computes this in the place of ``nn.Conv1d.forward``."""
    kind = type("Own", (nn.Conv1d,), {"forward": forward})
    return lambda: SparseConv1d.from_dense(kind(3, 3, 5, stride=2 if forward is every_other else 1))


def every_other(conv: nn.Conv1d, x: Any) -> Any:
    return PLAIN(conv, F.pad(x, (x.shape[-1] % 2, 0)))


def max_norm(conv: nn.Conv1d, x: Any) -> Any:
    conv.weight.data.copy_(torch.renorm(conv.weight.data, p=2, dim=0, maxnorm=2))
    return PLAIN(conv, x)


PLAIN = nn.Conv1d.forward
CONV = nn.Conv1d(3, 4, 5)

test_layer = refusals(
    (make(padding_mode="mirror"), ValueError, "padding_mode must be one of"),
    (make(kernel_size=0), ValueError, "kernel_size"),
    (make(kernel_size=(3, 3)), TypeError, "kernel_size"),
    (make(padding=-1), ValueError, "padding"),
    (make(padding="reflect"), ValueError, "should be one of 'valid', 'same'"),
    (make(padding="same", stride=2), ValueError, "is not supported for strided convolutions"),
    (make(padding=(1, 2, 3)), TypeError, "padding"),
    (make(density=1.1), ValueError, "density must lie in [0, 1], but got 1.1"),
    (make(density=20), ValueError, "density must lie in [0, 1], but got 20; 20 % is 0.2"),
    (make(density=0.9, pattern=KernelCSR.full((6, 4, 3))), ValueError, "pass either pattern, or d"),
    (make(block=2, pattern=KernelCSR.full((6, 4, 3))), ValueError, "pass either pattern, or d"),
    (make(density="0.2"), TypeError, "density must be a number, but got str"),
    (make(groups=1.5), TypeError, "groups must be an int or a tuple of one int, but got 1.5"),
    (make(groups=0), ValueError, "groups is not supported: expected >= 1, got 0"),
    (make(in_channels=3, groups=3, out_channels=4), ValueError, "to be divisible by 3"),
    (make(backend="gpu"), ValueError, "backend must be one of"),
    (make(dtype=torch.int32), TypeError, "dtype must be one of"),
    (make(pattern=torch.ones(6, 4, 3, dtype=torch.bool)), TypeError, "KernelCSR.from_mask(mask)"),
    (make(pattern=KernelCSR.full((6, 4, 4))), ValueError, "(6, 4, 3), but got (6, 4, 4)"),
    (make(kernel_size=1 << 30), ValueError, "2**31"),
    (lambda: make()().reset_parameters(fan_in="out"), ValueError, "'dense' or 'active'"),
    (lambda: make()().weight, AttributeError, "to read a dense copy, call dense_weight()"),
    (lambda: setattr(make()(), "weight", nn.Parameter()), AttributeError,
     "to write, call set_pattern(pattern, values)"),
    (lambda: setattr(make()(), "pattern", KernelCSR.full((6, 4, 3))), AttributeError,
     "values must move with it; call set_pattern(pattern)"),
    (lambda: make()().wieght, AttributeError, "no attribute 'wieght'"),
    (lambda: SparseConv1d.from_dense(nn.Linear(3, 3)), TypeError, "conv must be an nn.Conv1d"),
    (own(lambda c, x: F.gelu(PLAIN(c, x))), TypeError,
     "functional.gelu; copy its weight and bias into an nn.Conv1d, and move its other code"),
    (own(lambda c, x: PLAIN(c, x) + x[..., 4:]), TypeError, "it calls torch.Tensor.__getitem__"),
    (own(lambda c, x: F.conv1d(x, 2 * c.weight, c.bias)), TypeError, "it calls torch.Tensor.mul"),
    (own(lambda c, x: F.conv1d(x, nn.Parameter(c.weight), c.bias)), TypeError, "not with its own"),
    (own(lambda c, x: F.conv1d(x, c.weight)), TypeError, "not with its own weight, bias and opt"),
    (own(lambda c, x: F.conv1d(x, c.weight, c.bias, 2)), TypeError, "not with its own weight, b"),
    (own(lambda c, x: PLAIN(c, x) + 1e-9), TypeError, "it calls torch.Tensor.add"),
    (own(lambda c, x: PLAIN(c, x.detach())), TypeError, "it calls torch.Tensor.detach"),
    (own(lambda c, x: PLAIN(c, x.nan_to_num())), TypeError, "it calls torch.Tensor.nan_to_num"),
    (own(lambda c, x: PLAIN(c, x - x.mean(0)) if len(x) > 1 else PLAIN(c, x)), TypeError, "len"),
    (own(lambda c, x: PLAIN(c, x[..., -1000:])), TypeError, "depends on the input's shape"),
    (own(torch.no_grad()(lambda c, x: PLAIN(c, x))), TypeError, "it calls _set_grad_enabled"),
    (own(lambda c, x: F.conv1d(x, c.weight, c.bias, padding=2)[:, [1, 0, 2]]), TypeError,
     "other samples than those of a range of time"),
    (own(lambda c, x: PLAIN(c, x)[..., ::2]), TypeError, "other samples than those of a range"),
    (own(lambda c, x: PLAIN(c, PLAIN(c, x))), TypeError, "but Own does more"),
    (own(lambda c, x: PLAIN(c, F.pad(x, (4, 0), value=1.0))), TypeError, "pads as no padding_mode"),
    (own(lambda c, x: PLAIN(c, F.pad(F.pad(x, (0, 2)), (2, 0), "reflect"))), TypeError, "as no p"),
    (own(lambda c, x: PLAIN(c, F.pad(F.pad(x, (-1, 0)), (5, 0)))), TypeError, "pads as no padding"),
    (own(lambda c, x: PLAIN(c, F.pad(x[..., 1:], (5, 0)))), TypeError, "it pads as no padding"),
    (own(lambda c, x: PLAIN(c, x)[..., 1:]), TypeError, "it crops more than it pads"),
    (own(lambda c, x, mask=None: PLAIN(c, x)), TypeError, "its forward takes (x, mask), but mu"),
    (own(lambda c, x: (PLAIN(c, x), None)), TypeError, "the convolved series alone"),
    (own(lambda c, x: PLAIN(c, F.dropout(x) if c.training else x)), TypeError, "nal.dropout"),
    (own(every_other), TypeError, "depends on the input's shape or on train/eval"),
    (own(max_norm), TypeError, "it calls torch.Tensor.data.__get__"),
    (lambda: SparseConv1d.from_dense(CONV, CONV.weight), TypeError, "mask must be a bool tensor"),
    (lambda: SparseConv1d.from_dense(CONV, torch.ones(4, 3, 4, dtype=torch.bool)), ValueError,
     "shape"),
    (lambda: optimize_for_inference(3), TypeError, "must be an nn.Module, but got int"),
    (lambda: optimize_for_inference(nn.Sequential(nn.LazyConv1d(3, 3))), ValueError,
     "uninitialized parameter"),
)  # fmt: skip


FULL = KernelCSR.full((6, 4, 5))
SOURCE = torch.arange(120)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda layer: layer.set_pattern(FULL.to_mask()), TypeError),
        (lambda layer: layer.set_pattern(KernelCSR.full((6, 4, 4))), ValueError),
        (lambda layer: layer.set_pattern(FULL, torch.ones(119)), ValueError),
        (lambda layer: layer.set_pattern(FULL, [0.0] * 120), TypeError),
        (lambda layer: layer.set_pattern(FULL, torch.ones(120, dtype=torch.int64)), TypeError),
        (lambda layer: layer.rewire(FULL, SOURCE[1:]), ValueError),
        (lambda layer: layer.rewire(FULL, SOURCE), ValueError),
        (lambda layer: layer.rewire(FULL, -SOURCE), ValueError),
        (lambda layer: layer.rewire(FULL, SOURCE % 24, [torch.ones(120)]), ValueError),
    ],
)
def test_a_refused_pattern_changes_nothing(
    change: Callable[[SparseConv1d], Any], error: type[Exception]
) -> None:
    layer = SparseConv1d(4, 6, 5)
    assert layer.pattern.nnz == 24
    before = everything(layer)
    with pytest.raises(error):
        change(layer)
    assert everything(layer) == before
