"""The layers around the sparse convolutions of a network, each as one pass over memory.

They compute what torch's modules compute, with the C++ kernels where these can run and with torch
everywhere else. ``nn.block`` and ``inference.spans`` decide when to use them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.bilinear import apply, bilinear, differentiable, is_transformed
from sparseconv.functional.conv import check
from sparseconv.ops import calls
from sparseconv.ops import fused_schemas as fused_schemas
from sparseconv.ops.backends import extension

_DTYPES = (torch.float32, torch.float64)


def runs_here(*tensors: Tensor | None) -> bool:
    """Whether the kernels accept these tensors, in the way that torch is running now."""
    first = tensors[0]
    return (
        extension is not None
        and runs_eagerly()  # first: a tracer warns of sizes that are looked at
        and isinstance(first, Tensor)
        and first.dim() == 3
        and first.numel() > 0
        and first.dtype in _DTYPES
        and all(
            tensor is None
            or (
                type(tensor) in (Tensor, nn.Parameter)
                and tensor.device.type == "cpu"
                and tensor.layout == torch.strided
                and tensor.dtype == first.dtype
            )
            for tensor in tensors
        )
    )


def runs_eagerly() -> bool:
    """Whether torch just computes: no tracer, cast, transform, or derivative in forward mode."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()  # torch.jit.is_tracing() asks the same, and takes longer
        or torch._C._is_any_autocast_enabled()
        or is_transformed()
    )


def conv1x1(input: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a kernel of one tap: ``F.conv1d(input, weight)``, differentiable like it.

    Args:
        input: ``(N, C_in, L)``; float32 and float64 for the kernels, any strides.
        weight: ``(C_out, C_in, 1)``.

    Returns:
        ``(N, C_out, L)``. The same bits for any number of threads and on every instruction set.

    Raises:
        RuntimeError, as ``F.conv1d`` does: shapes or dtypes that do not fit.

    Example:
        >>> conv1x1(torch.ones(1, 2, 3), torch.tensor([[[2.0], [-1.0]]]))
        tensor([[[1., 1., 1.]]])
    """
    fits = (
        runs_here(input, weight)
        and weight.dim() == 3
        and weight.shape[2] == 1
        and weight.shape[1] == input.shape[1]
    )
    if not fits:
        return F.conv1d(input, weight)
    return differentiable(_CONV1X1.fprop, input, weight)


_CONV1X1 = bilinear(
    torch.ops.sparseconv.pointwise_fprop,
    torch.ops.sparseconv.pointwise_dgrad,
    torch.ops.sparseconv.pointwise_wgrad,
)


def conv1d_pointwise(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: KernelCSR,
    geometry: Geometry,
    weight: Tensor,
    weight_bias: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor:
    """A sparse convolution, perhaps a ReLU, and a 1x1 convolution, without memory between them.

    For inference: nothing is recorded for a backward pass.

    Args:
        input: ``(N, C_in, L)``, float32 or float64 on the CPU, any strides.
        values, bias, pattern: of the sparse convolution, as in ``sparse_conv1d``.
        geometry: its other arguments.
        weight: ``(C_out, C_mid, 1)``, C_mid being the sparse convolution's output channels.
        weight_bias: ``(C_out,)`` or None.
        relu: replace negative outputs of the sparse convolution by 0.

    Returns:
        ``(N, C_out, L_out)``. The same bits for any number of threads and on every instruction
        set: those of ``conv1x1`` of ``sparse_conv1d``, if there is no ``weight_bias``.

    Raises:
        ValueError, TypeError: arguments that do not fit.
        RuntimeError: no C++ kernels here, or they know neither the dtype nor the device.

    Example:
        >>> from sparseconv import KernelCSR
        >>> geometry = Geometry.of((2, 1, 1), 1, 0, 1, 1, "zeros")
        >>> pattern, values = KernelCSR.full((2, 1, 1)), torch.tensor([1.0, -1.0])
        >>> x, weight = torch.tensor([[[-2.0, 3.0]]]), torch.ones(1, 2, 1)
        >>> conv1d_pointwise(x, values, None, pattern, geometry, weight, relu=True)
        tensor([[[2., 3.]]])
    """
    check(input, values, pattern, bias, geometry)
    y: Tensor = torch.ops.sparseconv.fprop_pointwise(
        input,
        values,
        bias,
        pattern.crow_indices,
        calls.fprop_rows(pattern, geometry),
        geometry.numbers,
        relu,
        weight,
        weight_bias,
    )
    return y


# Channels whose sums over a piece (28 rows of 64 bytes) wait in L2: half a megabyte.
EPILOGUE_MAX_CHANNELS = 512 * 1024 // (28 * 64)
# Threads share series, not channels. From so many positions per thread on there is enough to share:
# on two threads of an AMD EPYC (Zen 5), DSN's layer, the two steps took 0.91 of the time of one for
# 150 positions, and 1.10, 1.05 and 1.09 for 256, 384 and 8192.
EPILOGUE_MIN_POSITIONS = 128


def pointwise_epilogue_is_faster(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: KernelCSR,
    weight: Tensor,
    weight_bias: Tensor | None,
) -> bool:
    """Whether ``conv1d_pointwise`` can run here, faster than one after the other."""
    return (
        pattern.shape[0] <= EPILOGUE_MAX_CHANNELS
        and input.dim() == 3
        and (
            (threads := torch.get_num_threads()) == 1
            or input.shape[0] * input.shape[2] >= EPILOGUE_MIN_POSITIONS * threads
        )
        and weight.dim() == 3
        and weight.shape[0] > 0
        and weight.shape[1:] == (pattern.shape[0], 1)
        and (weight_bias is None or weight_bias.shape == weight.shape[:1])
        and runs_here(input, values, bias, weight, weight_bias)
        and extension is not None
        and extension.isa() != "baseline"  # as for Block: there is no multiply-add to win with
    )


def batch_norm_relu(input: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Normalise and rectify: ``F.relu(norm(input))``, with all that ``norm`` does in passing.

    In training that is the update of ``running_mean``, ``running_var`` and
    ``num_batches_tracked``; ``momentum=None``, ``affine=False`` and ``track_running_stats=False``
    mean what they mean in ``nn.BatchNorm1d``. Differentiable, twice and more. In eval mode torch
    computes it: its one pass cannot be beaten (0.083 ms for 16 x 141 x 128, ours took 0.096).

    Args:
        input: ``(N, C, L)``; float32 and float64 for the kernels, any strides.
        norm: called as a module, hooks and all, where the kernels cannot run.

    Returns:
        ``(N, C, L)``. The same bits for any number of threads and on every instruction set.

    Raises:
        ValueError, as ``norm`` does: one value per channel in training.

    Example:
        >>> batch_norm_relu(torch.tensor([[[-1.0, 1.0]]]), nn.BatchNorm1d(1, eps=0.0))
        tensor([[[0., 1.]]], grad_fn=<_BatchNormReluBackward>)
    """
    training = norm.training or (norm.running_mean is None and norm.running_var is None)
    tracked = norm.training and norm.track_running_stats
    mean, var = (norm.running_mean, norm.running_var) if tracked else (None, None)
    fits = (
        training
        and runs_here(input, norm.weight, norm.bias, mean, var)
        and input.shape[1] == norm.num_features
        and input.shape[0] * input.shape[2] > 1
        and all(t is None or t.is_contiguous() for t in (norm.weight, norm.bias, mean, var))
    )
    if not fits:
        return F.relu(norm(input))
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if tracked and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the mean over all batches
            momentum = 1.0 / float(norm.num_batches_tracked)
    return apply(_BatchNormRelu, input, norm.weight, norm.bias, mean, var, momentum, norm.eps)


class _BatchNormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, invstd = torch.ops.sparseconv.batch_norm_relu(
            x, weight, bias, running_mean, running_var, momentum, eps
        )
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.eps = eps
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, bias, mean, invstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_differentiable_gradient(ctx, grad), *4 * (None,))
        found = torch.ops.sparseconv.batch_norm_relu_backward(grad, x, weight, bias, mean, invstd)
        needed = ctx.needs_input_grad[:3]
        return (*(g if need else None for g, need in zip(found, needed, strict=True)), *4 * (None,))


def _differentiable_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradient by torch's operations, which have gradients themselves."""
    x, weight, bias, *_ = ctx.saved_tensors
    y = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
    wanted = [
        tensor if need else None
        for tensor, need in zip((x, weight, bias), ctx.needs_input_grad, strict=False)
    ]
    inputs = [tensor for tensor in wanted if tensor is not None]
    found = iter(torch.autograd.grad(F.relu(y), inputs, grad, create_graph=True))
    return tuple(None if tensor is None else next(found) for tensor in wanted)


def adaptive_avg_pool1d(input: Tensor, bins: int) -> Tensor:
    """Average over ``bins`` nearly equal stretches: ``F.adaptive_avg_pool1d(input, bins)``.

    Args:
        input: ``(N, C, L)``; float32 and float64 for the kernels, any strides.
        bins: number of outputs; bin i covers samples ``i * L // bins`` up to, not including,
            ``ceil((i + 1) * L / bins)``.

    Returns:
        ``(N, C, bins)``. The same bits for any number of threads and on every instruction set.

    Raises:
        RuntimeError, as ``F.adaptive_avg_pool1d`` does: a size that does not fit.

    Example:
        >>> adaptive_avg_pool1d(torch.tensor([[[1.0, 2.0, 3.0]]]), 2)
        tensor([[[1.5000, 2.5000]]])
    """
    if not (runs_here(input) and type(bins) is int and bins >= 1):
        return F.adaptive_avg_pool1d(input, bins)
    return apply(_AverageBins, input, bins)


class _AverageBins(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bins: int) -> Tensor:
        ctx.length = x.shape[2]
        y: Tensor = torch.ops.sparseconv.adaptive_avg_pool1d(x, bins)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return apply(_SpreadBins, grads[0], ctx.length), None


class _SpreadBins(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, length: int) -> Tensor:
        ctx.bins = grad.shape[2]
        dx: Tensor = torch.ops.sparseconv.adaptive_avg_pool1d_backward(grad, length)
        return dx

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return apply(_AverageBins, grads[0], ctx.bins), None
