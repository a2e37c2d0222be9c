"""The registered ops around the sparse convolutions: schemas and shapes.

Same rules as in ``schemas``: tensors and numbers only, and no op calls another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparseconv.ops.schemas import output_length_of, register_fake

_library = torch.library.Library("sparseconv", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    "fprop_pointwise(Tensor input, Tensor values, Tensor? bias, Tensor crow_indices, Tensor rows,"
    " int[] geometry, bool relu, Tensor weight, Tensor? weight_bias) -> Tensor",
    "pointwise_fprop(Tensor input, Tensor weight) -> Tensor",
    "pointwise_dgrad(Tensor grad_output, Tensor weight) -> Tensor",
    "pointwise_wgrad(Tensor grad_output, Tensor input) -> Tensor",
    "batch_norm_relu(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean,"
    " Tensor(b!)? running_var, float momentum, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    "batch_norm_relu_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias,"
    " Tensor mean, Tensor invstd) -> (Tensor, Tensor, Tensor)",
    "adaptive_avg_pool1d(Tensor input, int bins) -> Tensor",
    "adaptive_avg_pool1d_backward(Tensor grad_output, int length) -> Tensor",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


@register_fake(_library, "fprop_pointwise")
def _fake_fprop_pointwise(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    rows: Tensor,
    geometry: Sequence[int],
    relu: bool,
    weight: Tensor,
    weight_bias: Tensor | None,
) -> Tensor:
    length = output_length_of(geometry, input.shape[2])
    return input.new_empty((input.shape[0], weight.shape[0], length))


@register_fake(_library, "pointwise_fprop")
def _fake_pointwise_fprop(input: Tensor, weight: Tensor) -> Tensor:
    return input.new_empty((input.shape[0], weight.shape[0], input.shape[2]))


@register_fake(_library, "pointwise_dgrad")
def _fake_pointwise_dgrad(grad_output: Tensor, weight: Tensor) -> Tensor:
    return grad_output.new_empty((grad_output.shape[0], weight.shape[1], grad_output.shape[2]))


@register_fake(_library, "pointwise_wgrad")
def _fake_pointwise_wgrad(grad_output: Tensor, input: Tensor) -> Tensor:
    return input.new_empty((grad_output.shape[1], input.shape[1], 1))


@register_fake(_library, "batch_norm_relu", "batch_norm_relu_backward")
def _fake_batch_norm_relu(signal: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    channels = (signal.shape[1],)
    return signal.new_empty(signal.shape), signal.new_empty(channels), signal.new_empty(channels)


@register_fake(_library, "adaptive_avg_pool1d", "adaptive_avg_pool1d_backward")
def _fake_adaptive_avg_pool1d(signal: Tensor, length: int) -> Tensor:
    return signal.new_empty((*signal.shape[:2], length))
