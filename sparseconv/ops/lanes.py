"""Register the ops on tensors in lanes: schemas and shapes (kernels: ``csrc/autograd/lanes.h``).

A tensor in lanes has the sizes ``(channels, groups, rows, lanes)``, and holds zeros where no sample
is. ``batch`` and ``length`` are N and L of the series ``(N, C, L)``.
"""

from __future__ import annotations

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
    f"lanes_fold(Tensor weights, Tensor? conv_bias, Tensor? crow_indices, {_NORM},"
    " Tensor running_mean, Tensor running_var, float eps) -> (Tensor, Tensor)",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]
OPS = torch.ops.sparseconv


def _lanes(like: Tensor, channels: int) -> Tensor:
    return like.new_empty((channels, *like.shape[1:]))


@register_fake(_library, "lanes_enter")
def _fake_enter(input: Tensor) -> Tensor:
    n, channels, length = input.shape
    assert extension is not None
    sizes = extension.lanes_shape(int(n), int(length), input.dtype.itemsize)
    return input.new_empty((channels, *sizes))


@register_fake(_library, "lanes_leave")
def _fake_leave(input: Tensor, batch: int, length: int) -> Tensor:
    return input.new_empty((batch, input.shape[0], length))


@register_fake(_library, "lanes_conv")
def _fake_conv(input: Tensor, *rest: Any) -> Tensor:
    return _lanes(input, rest[4][0])


@register_fake(_library, "lanes_dgrad")
def _fake_dgrad(grad_output: Tensor, *rest: Any) -> Tensor:
    return _lanes(grad_output, rest[3][1] * rest[3][7])


@register_fake(_library, "lanes_wgrad")
def _fake_wgrad(grad_output: Tensor, input: Tensor, crow: Tensor, col: Tensor, *_: Any) -> Tensor:
    return input.new_empty(col.shape)


@register_fake(_library, "lanes_pointwise")
def _fake_pointwise(input: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return _lanes(input, weight.shape[0])


@register_fake(_library, "lanes_pointwise_dgrad")
def _fake_pointwise_dgrad(grad_output: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return _lanes(grad_output, weight.shape[1])


@register_fake(_library, "lanes_pointwise_wgrad")
def _fake_pointwise_wgrad(grad_output: Tensor, input: Tensor) -> Tensor:
    return input.new_empty((grad_output.shape[0], input.shape[0], 1))


@register_fake(_library, "lanes_bias_grad")
def _fake_bias_grad(grad_output: Tensor) -> Tensor:
    return grad_output.new_empty(grad_output.shape[:1])


@register_fake(_library, "lanes_norm")
def _fake_norm(parts: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    output = _lanes(parts[0], sum(part.shape[0] for part in parts))
    return output, output.new_empty(output.shape[:1]), output.new_empty(output.shape[:1])


@register_fake(_library, "lanes_norm_backward")
def _fake_norm_backward(grad_output: Tensor, parts: list[Tensor], *rest: Any) -> list[Tensor]:
    vectors = [grad_output.new_empty(grad_output.shape[:1]) for _ in range(2)]
    of_added = [] if rest[2] is None else [torch.empty_like(grad_output)]
    return [torch.empty_like(grad_output), *vectors, *of_added]


@register_fake(_library, "lanes_max_pool")
def _fake_max_pool(input: Tensor, *_: Any) -> Tensor:
    return _lanes(input, input.shape[0])


@register_fake(_library, "lanes_max_pool_backward")
def _fake_max_pool_backward(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
    return _lanes(input, input.shape[0])


@register_fake(_library, "lanes_mean")
def _fake_mean(input: Tensor, batch: int, length: int) -> Tensor:
    return input.new_empty((batch, input.shape[0]))


@register_fake(_library, "lanes_fold")
def _fake_fold(weights: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weights), torch.empty_like(rest[4])
