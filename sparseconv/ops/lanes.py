"""Register the ops on tensors in lanes: schemas and shapes (kernels: ``csrc/autograd/lanes.h``).

A tensor in lanes has the sizes ``(channels, groups, rows, lanes)``, and holds zeros where no sample
is. In bfloat16 it is in rows, for the kernels of blocks: ``(panels of 32 channels, N, rows, 32)``,
where L rows lie between margins, in which convolutions find their padding. ``batch`` and ``length``
are N and L of the series ``(N, C, L)``.
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
    "lanes_enter(Tensor input, int margin=0) -> Tensor",  # in rows: as wide as any padding
    "lanes_leave(Tensor input, int channels, int batch, int length) -> Tensor",
    f"lanes_conv(Tensor input, Tensor values, Tensor? bias, {_PATTERN}, bool relu=False) -> Tensor",
    f"lanes_dgrad(Tensor grad_output, Tensor values, {_PATTERN}) -> Tensor",
    f"lanes_wgrad(Tensor grad_output, Tensor input, {_PATTERN}) -> Tensor",
    # A dense convolution with one tap, whose weight is (C_out, C_in, 1), plus `added`.
    "lanes_pointwise(Tensor input, Tensor weight, Tensor? bias, int batch, int length,"
    " Tensor? added=None) -> Tensor",
    "lanes_pointwise_dgrad(Tensor grad_output, Tensor weight, int batch, int length) -> Tensor",
    "lanes_pointwise_wgrad(Tensor grad_output, Tensor input, Tensor weight, int batch, int length)"
    " -> Tensor",
    "lanes_bias_grad(Tensor grad_output, int channels, int batch, int length) -> Tensor",
    # BatchNorm of the parts' concatenation, plus `added`. It returns also mean and 1 / deviation.
    f"lanes_norm(Tensor[] parts, {_NORM}, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " Tensor? added, bool training, float momentum, float eps, bool relu, int batch, int length)"
    " -> (Tensor, Tensor, Tensor)",
    # `output`: if something was added; it is positive where that gets a gradient.
    f"lanes_norm_backward(Tensor grad_output, Tensor[] parts, {_NORM}, Tensor? output, Tensor mean,"
    " Tensor invstd, bool training, bool relu, int batch, int length) -> Tensor[]",
    # Weights and bias of a convolution and the BatchNorm after it, in eval mode; differentiable.
    "lanes_fold(Tensor weights, Tensor? conv_bias, Tensor? crow_indices, int kernels,"
    " Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps) -> (Tensor, Tensor)",
    # With stride 1 over a sample and its neighbours, else over windows that do not overlap.
    "lanes_max_pool(Tensor input, int size, int stride, int batch, int length) -> Tensor",
    "lanes_max_pool_backward(Tensor grad_output, Tensor input, int size, int stride, int batch,"
    " int length) -> Tensor",
    # out[t] = sum over j < stride of in[(t * stride + j + start) // repeat], 0 where it has no such
    # sample; one of repeat and stride is 1. The gradient is the op with -start, stride and repeat.
    "lanes_resample(Tensor input, int start, int repeat, int stride, int batch, int length,"
    " int samples) -> Tensor",
    "lanes_mean(Tensor input, int channels, int batch, int length) -> Tensor",  # (N, C)
    # The same seed drops the same elements, so the gradient is the op itself.
    "lanes_dropout(Tensor input, float p, int seed) -> Tensor",
    # elu and tanh; or glu and gated_tanh, which halve the channels: a and b become a * sigmoid(b),
    # or tanh(a) * sigmoid(b).
    "lanes_activation(Tensor input, str name) -> Tensor",
    "lanes_activation_backward(Tensor grad_output, Tensor input, str name) -> Tensor",
    # Of any tensor whose channels are in one dimension, with one weight or one for each.
    "prelu(Tensor input, Tensor weight, int dim) -> Tensor",
    "prelu_backward(Tensor grad_output, Tensor input, Tensor weight, int dim) -> (Tensor, Tensor)",
    # Of series (N, C, L), not in lanes.
    "max_pool(Tensor input, int size, int stride, int padding) -> Tensor",
    "max_pool_backward(Tensor grad_output, Tensor input, Tensor output, int size, int stride,"
    " int padding) -> Tensor",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]
OPS = torch.ops.sparseconv
LEAST_MARGIN, PANEL = 16, 32  # kTileRowCount and kPanelChannels in csrc/cpu


def draw_seed() -> int:
    """Draw a seed for dropout from torch's generator."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def _lanes(like: Tensor, channels: int) -> Tensor:
    panels = -(-channels // PANEL) if like.dtype == torch.bfloat16 else channels
    return like.new_empty((panels, *like.shape[1:]))


def _exact(like: Tensor) -> torch.dtype:  # of statistics, and of weights' gradients in rows
    return torch.float32 if like.dtype == torch.bfloat16 else like.dtype


# The sizes of each result, by the op's arguments.
_SHAPES: dict[str, Callable[..., Any]] = {
    "lanes_leave": lambda x, channels, batch, length: x.new_empty((batch, channels, length)),
    "lanes_conv": lambda x, *rest: _lanes(x, rest[4][0]),
    "lanes_dgrad": lambda grad, *rest: _lanes(grad, rest[3][1] * rest[3][7]),
    "lanes_wgrad": lambda _, x, crow, col, *rest: x.new_empty(col.shape, dtype=_exact(x)),
    "lanes_pointwise": lambda x, weight, *_: _lanes(x, weight.shape[0]),
    "lanes_pointwise_dgrad": lambda grad, weight, *_: _lanes(grad, weight.shape[1]),
    "lanes_pointwise_wgrad": lambda _, x, weight, *rest: x.new_empty(weight.shape, dtype=_exact(x)),
    "lanes_bias_grad": lambda grad, channels, *_: grad.new_empty((channels,), dtype=_exact(grad)),
    "lanes_max_pool_backward": lambda _, x, *rest: torch.empty_like(x),
    "max_pool": lambda x, size, stride, padding: x.new_empty(
        (*x.shape[:2], (x.shape[2] + 2 * padding - size) // stride + 1)
    ),
    "max_pool_backward": lambda _, x, *rest: x.new_empty(x.shape),
    "lanes_activation": lambda x, name: x.new_empty(
        (x.shape[0] // (1 if name in ("elu", "tanh") else 2), *x.shape[1:])
    ),
    "lanes_activation_backward": lambda _, x, name: torch.empty_like(x),
    "prelu": lambda x, *_: x.new_empty(x.shape),
    "prelu_backward": lambda _, x, weight, dim: (x.new_empty(x.shape), torch.empty_like(weight)),
    "lanes_dropout": lambda x, *_: x.new_empty(x.shape),
    "lanes_mean": lambda x, channels, batch, length: x.new_empty((batch, channels)),
}
for _name, _shape in _SHAPES.items():
    register_fake(_library, _name)(_shape)


@register_fake(_library, "lanes_enter")
def _fake_enter(input: Tensor, margin: int = 0) -> Tensor:
    n, channels, length = input.shape
    assert extension is not None
    if input.dtype == torch.bfloat16:
        rows = length + 2 * max(margin, LEAST_MARGIN)
        return input.new_empty((-(-channels // PANEL), n, rows, PANEL))
    sizes = extension.lanes_shape(int(n), int(length), input.dtype.itemsize)
    return input.new_empty((channels, *sizes))


def _of_length(like: Tensor, batch: int, length: int, now: int) -> Tensor:
    """Return a tensor of ``now`` samples a series, like one of ``length``."""
    if like.dtype == torch.bfloat16:
        return like.new_empty((*like.shape[:2], like.shape[2] - length + now, PANEL))
    assert extension is not None
    return like.new_empty((like.shape[0], *extension.lanes_shape(batch, now, like.dtype.itemsize)))


@register_fake(_library, "lanes_max_pool")
def _fake_max_pool(input: Tensor, size: int, stride: int, batch: int, length: int) -> Tensor:
    if stride == 1:
        return torch.empty_like(input)
    return _of_length(input, batch, length, (length - size) // stride + 1)


@register_fake(_library, "lanes_resample")
def _fake_resample(input: Tensor, *how: int) -> Tensor:
    return _of_length(input, *how[3:])


@register_fake(_library, "lanes_norm")
def _fake_norm(parts: list[Tensor], *vectors: Any) -> tuple[Tensor, Tensor, Tensor]:
    first = parts[0]
    panels = sum(part.shape[0] for part in parts)
    output = first.new_empty((panels, *first.shape[1:]))
    given = [x for x in vectors[:4] if x is not None]
    per_panel = PANEL if first.dtype == torch.bfloat16 else 1
    channels = given[-1].shape[0] if given else panels * per_panel
    mean, invstd = (first.new_empty((channels,), dtype=_exact(first)) for _ in range(2))
    return output, mean, invstd


@register_fake(_library, "lanes_norm_backward")
def _fake_norm_backward(grad_output: Tensor, parts: list[Tensor], *rest: Any) -> list[Tensor]:
    vectors = [rest[3].new_empty(rest[3].shape, dtype=_exact(grad_output)) for _ in range(2)]
    of_added = [] if rest[2] is None else [torch.empty_like(grad_output)]
    return [torch.empty_like(grad_output), *vectors, *of_added]
