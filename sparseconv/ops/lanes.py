"""Register the ops on tensors in lanes: schemas and shapes (kernels: ``csrc/autograd/lanes.h``).

A tensor in lanes has the sizes ``(channels, groups, rows, lanes)``, and holds zeros where no sample
is. ``batch`` and ``length`` are N and L of the series ``(N, C, L)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparseconv.ops.backends import extension
from sparseconv.ops.schemas import register_fake

_PATTERN = "Tensor crow_indices, Tensor col_indices, int[] geometry, int batch, int length"
_NORM = "Tensor? weight, Tensor? bias"
_library = torch.library.Library("sparseconv", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    "lanes_enter(Tensor input) -> Tensor",
    "lanes_leave(Tensor input, int batch, int length) -> Tensor",
    f"lanes_conv(Tensor input, Tensor values, Tensor? bias, {_PATTERN}, bool relu=False) -> Tensor",
    f"lanes_dgrad(Tensor grad_output, Tensor values, {_PATTERN}) -> Tensor",
    f"lanes_wgrad(Tensor grad_output, Tensor input, {_PATTERN}) -> Tensor",
    # A dense convolution with one tap, whose weight is (C_out, C_in, 1).
    "lanes_pointwise(Tensor input, Tensor weight, Tensor? bias, int batch, int length) -> Tensor",
    "lanes_pointwise_dgrad(Tensor grad_output, Tensor weight, int batch, int length) -> Tensor",
    "lanes_pointwise_wgrad(Tensor grad_output, Tensor input) -> Tensor",
    "lanes_bias_grad(Tensor grad_output) -> Tensor",
    # BatchNorm of the parts' concatenation, plus `added`. It returns also mean and 1 / deviation.
    f"lanes_norm(Tensor[] parts, {_NORM}, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " Tensor? added, bool training, float momentum, float eps, bool relu, int batch, int length)"
    " -> (Tensor, Tensor, Tensor)",
    f"lanes_norm_backward(Tensor grad_output, Tensor[] parts, {_NORM}, Tensor? added, Tensor mean,"
    " Tensor invstd, bool training, bool relu, int batch, int length) -> Tensor[]",
    # Over a sample and `radius` neighbours on either side.
    "lanes_max_pool(Tensor input, int radius, int batch, int length) -> Tensor",
    "lanes_max_pool_backward(Tensor grad_output, Tensor input, int radius, int batch, int length)"
    " -> Tensor",
    "lanes_mean(Tensor input, int batch, int length) -> Tensor",  # (N, C)
    # The weights and the bias of a convolution and the BatchNorm after it, in eval mode.
    f"lanes_fold(Tensor weights, Tensor? conv_bias, Tensor? crow_indices, int kernels, {_NORM},"
    " Tensor running_mean, Tensor running_var, float eps) -> (Tensor, Tensor)",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]
OPS = torch.ops.sparseconv


def _lanes(like: Tensor, channels: int) -> Tensor:
    return like.new_empty((channels, *like.shape[1:]))


# The sizes of each result, by the op's arguments.
_SHAPES: dict[str, Callable[..., Any]] = {
    "lanes_leave": lambda x, batch, length: x.new_empty((batch, x.shape[0], length)),
    "lanes_conv": lambda x, *rest: _lanes(x, rest[4][0]),
    "lanes_dgrad": lambda grad, *rest: _lanes(grad, rest[3][1] * rest[3][7]),
    "lanes_wgrad": lambda _, x, crow, col, *rest: x.new_empty(col.shape),
    "lanes_pointwise": lambda x, weight, *_: _lanes(x, weight.shape[0]),
    "lanes_pointwise_dgrad": lambda grad, weight, *_: _lanes(grad, weight.shape[1]),
    "lanes_pointwise_wgrad": lambda grad, x: x.new_empty((grad.shape[0], x.shape[0], 1)),
    "lanes_bias_grad": lambda grad: grad.new_empty(grad.shape[:1]),
    "lanes_max_pool": lambda x, *_: _lanes(x, x.shape[0]),
    "lanes_max_pool_backward": lambda _, x, *rest: _lanes(x, x.shape[0]),
    "lanes_mean": lambda x, batch, length: x.new_empty((batch, x.shape[0])),
}
for _name, _shape in _SHAPES.items():
    register_fake(_library, _name)(_shape)


@register_fake(_library, "lanes_enter")
def _fake_enter(input: Tensor) -> Tensor:
    n, channels, length = input.shape
    assert extension is not None
    sizes = extension.lanes_shape(int(n), int(length), input.dtype.itemsize)
    return input.new_empty((channels, *sizes))


@register_fake(_library, "lanes_norm")
def _fake_norm(parts: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    output = _lanes(parts[0], sum(part.shape[0] for part in parts))
    return output, output.new_empty(output.shape[:1]), output.new_empty(output.shape[:1])


@register_fake(_library, "lanes_norm_backward")
def _fake_norm_backward(grad_output: Tensor, parts: list[Tensor], *rest: Any) -> list[Tensor]:
    vectors = [grad_output.new_empty(grad_output.shape[:1]) for _ in range(2)]
    of_added = [] if rest[2] is None else [torch.empty_like(grad_output)]
    return [torch.empty_like(grad_output), *vectors, *of_added]
