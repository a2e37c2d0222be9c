"""Compute the dense weight gradient of a ``SparseConv1d``, accumulated in a probe by autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.grad import conv1d_weight

from sparseconv.core.geometry import Geometry
from sparseconv.core.tracing import is_exporting
from sparseconv.functional.conv import as_autocast, fill
from sparseconv.functional.gradients import is_transformed
from sparseconv.reference import pad


def new_probe(shape: tuple[int, int, int], values: Tensor) -> Tensor:
    """Create a leaf tensor of a dense weight's shape, whose ``grad`` will be the dense gradient."""
    # Sums in half precision lose too much.
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    with torch.inference_mode(False):
        zero = torch.zeros((), dtype=dtype, device=values.device)
        return zero.expand(shape).requires_grad_()  # one number in memory


def probed(
    y: Tensor,
    x: Tensor,
    values: Tensor,
    probe: Tensor,
    geometry: Geometry,
    transposed: bool = False,
) -> Tensor:
    """Return the output ``y`` of a convolution of ``x``, or of its transpose, with the probe.

    Every ``backward()`` through ``y`` adds the dense weight gradient to ``probe.grad``. Nothing is
    added in an exported or traced graph, or under ``torch.func``.
    """
    # The per-sample gradients of torch.func are not those of a step.
    if not (y.requires_grad and values.requires_grad) or is_transformed() or is_exporting():
        return y
    if not is_dynamo_compiling() and torch._C._is_tracing():
        return y
    if torch.is_autocast_enabled(x.device.type):  # the dtype that the layer computed in
        (x,) = as_autocast(x)
    watched: Tensor = _Probe.apply(y, x, probe, geometry, transposed)  # type: ignore[no-untyped-call]
    return watched


class _Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, probe: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dtype, (ctx.geometry, ctx.transposed) = probe.dtype, how
        return y.clone()  # nn.ReLU(inplace=True) could not change a view

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        g = ctx.geometry
        x, dense = (t if t.dim() == 3 else t.unsqueeze(0) for t in (x.detach(), grad.detach()))
        if ctx.transposed:  # the gradient is the convolution's input, x that of its output
            x, dense = dense, fill(x, g.output_length(dense.shape[2]))
        x, dense = pad(x.to(ctx.dtype), g.padding, g.padding_mode), dense.to(ctx.dtype)
        how = g.stride, 0, g.dilation, g.groups
        wgrad = conv1d_weight(x, g.shape, dense, *how)  # type: ignore[no-untyped-call]
        return grad, None, wgrad, None, None
