"""The three computations in float64, and the kernels' error bounds.

This module shares no arithmetic with the kernels or the dense path, so it cannot share their bugs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.testing.cases import Case, Tensors


def _sources(length: int, padding: tuple[int, int], mode: str) -> Tensor:
    """Return the index of the input sample that each padded sample repeats, or -1 for a zero."""
    at = torch.arange(-padding[0], length + padding[1])
    nearest = at.clamp(0, length - 1)
    sources = {
        "zeros": torch.where(at == nearest, at, -1),
        "replicate": nearest,
        "reflect": 2 * nearest - at,
        "circular": at % length,
    }
    return sources[mode]


def conv1d_oracle(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Compute the output ``(N, C_out, L_out)`` in float64, tap by tap.

    The definition is ``y[n, o, l] = bias[o] + sum w[o, c, k] * x[n, c, l*stride + k*dilation -
    left]``. The result is differentiable in input and values.

    Example:
        >>> pattern = KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> x, values = torch.arange(5.0).view(1, 1, 5), torch.tensor([1.0, -1.0])
        >>> geometry = Geometry.of(pattern.shape, 1, 0, 1, 1, "zeros")
        >>> conv1d_oracle(x, values, pattern, None, geometry)
        tensor([[[-2., -2., -2.]]], dtype=torch.float64)
    """
    out_channels, group_channels, taps = geometry.shape
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    padding, mode = geometry.padding, geometry.padding_mode
    sizes = pattern.crow_indices.diff()
    row = torch.arange(len(sizes)).repeat_interleave(sizes)
    weight = torch.zeros(len(sizes), taps, dtype=torch.float64)
    weight = weight.index_put((row, pattern.col_indices.long()), values.double())
    weight = weight.view(groups, out_channels // groups, group_channels, taps)
    sources = _sources(input.shape[2], padding, mode)
    x = torch.where(sources < 0, 0, input.double()[:, :, sources])
    x = x.view(len(x), groups, group_channels, len(sources))
    length = (len(sources) - dilation * (taps - 1) - 1) // stride + 1
    y: Tensor = x.new_zeros(len(x), groups, out_channels // groups, length)
    for k in range(taps):
        window = x[..., k * dilation : k * dilation + stride * (length - 1) + 1 : stride]
        y = y + torch.einsum("goc,ngcl->ngol", weight[..., k], window)
    y = y.flatten(1, 2)
    return y if bias is None else y + bias.detach().double()[:, None]


def exact_results(case: Case, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the output, and the gradients of input and values for the case's ``grad``.

    Autograd computes the gradients from ``conv1d_oracle``. With absolute values as data, the
    results are sums of magnitudes, which bound the rounding error.

    Returns:
        ``(output, gradient of the input, gradient of the values)``, in float64.

    Example:
        >>> case = Case(n=2, in_channels=4, out_channels=6, kernel_size=3, length=10)
        >>> [tuple(result.shape) for result in exact_results(case, case.tensors())]
        [(2, 6, 8), (2, 4, 10), (25,)]
    """
    with torch.enable_grad():
        x, values = (t.detach().double().requires_grad_() for t in tensors[:2])
        batch = x if case.batched else x.unsqueeze(0)
        y = conv1d_oracle(batch, values, case.make_pattern(), tensors.bias, case.geometry)
        y = y if case.batched else y[0]
        dx, dw = torch.autograd.grad(y, (x, values), tensors.grad.double())
    return y.detach(), dx, dw


class Expected(NamedTuple):
    """A result in float64, and the error bound of a correct computation."""

    exact: Tensor
    bound: Tensor


def expected(case: Case, tensors: Tensors) -> list[Expected]:
    """Compute the three results of ``exact_results`` with their error bounds.

    Example:
        >>> import sparseconv as sc
        >>> case = Case(n=2, in_channels=4, out_channels=6, kernel_size=3, length=10)
        >>> x, values, bias, _ = tensors = case.tensors()
        >>> y = sc.sparse_conv1d(x, values, case.make_pattern(), bias, **case.options)
        >>> exact, bound = expected(case, tensors)[0]
        >>> bool(((y - exact).abs() <= bound).all())
        True
    """

    def of(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        changed = [None if t is None else change(t) for t in tensors]
        return exact_results(case, Tensors(*changed))  # type: ignore[arg-type]

    # On magnitudes the oracle adds up what can be rounded, on ones it counts the terms.
    sums = zip(exact_results(case, tensors), of(torch.abs), of(torch.ones_like), strict=True)
    dtype = tensors.input.dtype
    return [Expected(e, error_bound(e, magnitude, n, dtype)) for e, magnitude, n in sums]


def error_bound(exact: Tensor, magnitude: Tensor, terms: Tensor, dtype: torch.dtype) -> Tensor:
    """Bound the rounding error of a sum of products in any order.

    The bound is ``(terms + 2) * u * magnitude``, for sums that neither overflow nor underflow.
    ``u`` is the unit roundoff of the accumulator, and ``magnitude`` is the sum of the products'
    absolute values (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1).
    Half types accumulate in float32 and round the result once more. In float64, the oracle also
    rounds, which doubles the bound.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> bool(error_bound(one, one, one, torch.float32) == 3 * 2**-24)
        True
        >>> float(error_bound(one, 0 * one, one, torch.bfloat16))  # rounded once
        0.00390625
    """
    half = dtype in (torch.bfloat16, torch.float16)
    unit = torch.finfo(torch.float32 if half else dtype).eps / 2
    bound = (terms + 2) * unit * magnitude
    if dtype == torch.float64:
        return 2 * bound
    if half:
        info = torch.finfo(dtype)
        spacing = info.smallest_normal * info.eps  # of the subnormal numbers
        bound = bound + info.eps / 2 * (exact.abs() + bound) + spacing / 2
    return bound
