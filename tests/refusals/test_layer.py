"""What sparse layers, their methods and ``sparse_conv_transpose1d`` refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_state import everything
from refusals import refusals
from torch import nn

from sparseconv import (
    KernelCSR,
    SparseConv1d,
    SparseConvTranspose1d,
    optimize_for_inference,
    sparse_conv_transpose1d,
)


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
    (make(kernel_size=0), ValueError, "kernel_size"),
    (make(density=1.1), ValueError, "density"),
    (make(density="0.2"), TypeError, "density"),
    (make(density=0.9, pattern=KernelCSR.full((6, 4, 3))), ValueError, "pattern"),
    (make(block=2, pattern=KernelCSR.full((6, 4, 3))), ValueError, "pattern"),
    (make(groups=1.5), TypeError, "groups"),
    (make(in_channels=3, groups=3, out_channels=4), ValueError, "groups"),
    (make(backend="gpu"), ValueError, "backend"),
    (make(dtype=torch.int32), TypeError, "dtype"),
    (make(pattern=torch.ones(6, 4, 3, dtype=torch.bool)), TypeError, "pattern"),
    (make(pattern=KernelCSR.full((6, 4, 4))), ValueError, "pattern"),
    (make(kernel_size=1 << 30), ValueError, "shape"),
    (make(stride=1 << 30), ValueError, "below 2**31"),
    (lambda: make()().reset_parameters(fan_in="out"), ValueError, "fan_in"),
    (lambda: make()().weight, AttributeError, "dense_weight()"),
    (lambda: setattr(make()(), "weight", nn.Parameter()), AttributeError, "set_pattern("),
    (lambda: setattr(make()(), "pattern", KernelCSR.full((6, 4, 3))), AttributeError, "pattern"),
    (lambda: make()().wieght, AttributeError, "wieght"),
    (lambda: SparseConv1d.from_dense(nn.Linear(3, 3)), TypeError, "conv"),
    (lambda: SparseConv1d.from_dense(CONV, CONV.weight), TypeError, "mask"),
    (lambda: SparseConv1d.from_dense(CONV, KernelCSR.full((4, 3, 4)).to_mask()), ValueError, "sh"),
    (lambda: optimize_for_inference(nn.LazyConv1d(3, 3)), ValueError, "uninitialized"),
)  # fmt: skip


test_code_of_a_subclass = refusals(*(
    (own(forward), TypeError, "Own does more")
    for forward in (
        lambda c, x: F.gelu(PLAIN(c, x)),
        lambda c, x: PLAIN(c, x - x.mean(0)) if len(x) > 1 else PLAIN(c, x),
        lambda c, x: PLAIN(c, F.dropout(x) if c.training else x),
        lambda c, x: PLAIN(c, PLAIN(c, x)),
        lambda c, x: F.conv1d(x, 2 * c.weight, c.bias),
        lambda c, x: F.conv1d(x, nn.Parameter(c.weight), c.bias),
        lambda c, x: F.conv1d(x, c.weight),
        lambda c, x: F.conv1d(x, c.weight, c.bias, 2),
        lambda c, x: F.conv1d(x, c.weight, c.bias, padding=2)[:, [1, 0, 2]],
        lambda c, x: PLAIN(c, x)[..., ::2],
        lambda c, x: PLAIN(c, x)[..., 1:],
        lambda c, x: PLAIN(c, x[..., -1000:]),
        lambda c, x: PLAIN(c, F.pad(x, (4, 0), value=1.0)),
        lambda c, x: PLAIN(c, F.pad(F.pad(x, (0, 2)), (2, 0), "reflect")),
        lambda c, x: PLAIN(c, F.pad(F.pad(x, (-1, 0)), (5, 0))),
        lambda c, x: PLAIN(c, F.pad(x[..., 1:], (5, 0))),
        lambda c, x, mask=None: PLAIN(c, x),
        lambda c, x: (PLAIN(c, x), None),
        torch.no_grad()(lambda c, x: PLAIN(c, x)),
        every_other,
        max_norm,
    )
))  # fmt: skip


X = torch.randn(2, 4, 9)
PATTERN = KernelCSR.full((4, 3, 5))
LOUDER = type("Louder", (nn.ConvTranspose1d,), {"forward": max_norm})(1, 1, 1)
VALUES = torch.randn(60)


def transposed(**options: Any) -> Callable[[], SparseConvTranspose1d]:
    given = {"in_channels": 4, "out_channels": 6, "kernel_size": 5} | options
    return lambda: SparseConvTranspose1d(**given)


def call(x: Any = X, bias: Any = None, pattern: Any = PATTERN, **options: Any) -> Callable[[], Any]:
    return lambda: sparse_conv_transpose1d(x, VALUES, pattern, bias, **options)


def sized(*size: int) -> Callable[[], Any]:
    return lambda: transposed(stride=3)()(X, output_size=size)


test_transposed_layer = refusals(
    (transposed(groups=3), ValueError, "in_channels"),
    (transposed(groups=4), ValueError, "out_channels"),
    (transposed(padding_mode="reflect"), ValueError, "padding_mode"),
    (transposed(stride=0), RuntimeError, "stride"),
    (transposed(output_padding=1), RuntimeError, "output_padding"),
    (transposed(padding="same"), TypeError, "padding"),
    (transposed(pattern=KernelCSR.full((6, 4, 5))), ValueError, "pattern"),
    (lambda: transposed()().weight, AttributeError, "dense_weight()"),
    (lambda: SparseConvTranspose1d.from_dense(LOUDER), TypeError, "conv"),
    (sized(6, 31), ValueError, "output_size"),
    (sized(32), ValueError, "output size"),
    (call(padding=-1), RuntimeError, "padding"),
    (call(padding=(1, 2)), TypeError, "padding"),
    (call(padding=7), RuntimeError, "Output size"),
    (call(output_padding=-1), RuntimeError, "output_padding"),
    (call(output_padding=3, stride=2, dilation=3), RuntimeError, "output_padding"),
    (call(groups=0), RuntimeError, "groups"),
    (call(X[:, :3]), RuntimeError, "channels"),
    (call(bias=torch.ones(4)), RuntimeError, "bias"),
    (call(X[0, 0]), RuntimeError, "input"),
    (call(X[..., :0]), RuntimeError, "input"),
    (call(X.numpy()), TypeError, "input"),
    (call(X.double()), TypeError, "Input"),
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
        (lambda layer: layer.rewire(KernelCSR.full((6, 5, 4)), SOURCE % 24), ValueError),
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
