"""What else computes the same convolution, each at its best settings.

A rival takes a problem and returns one call per computation. What depends on the weights' values
or on a tensor's memory format alone is prepared beforehand, outside the timed call, in the rival's
favour. ``wgrad`` may give the gradient of all weights: only the active ones are looked at.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv.bench.cases import Problem
from sparseconv.core.geometry import Geometry
from sparseconv.reference import dense_weight, pad

Calls = dict[str, Callable[[], Tensor]]


class Rival(Protocol):
    """Builds the calls for one problem."""

    def __call__(self, problem: Problem, /) -> Calls: ...


def _pad(x: Tensor, geometry: Geometry) -> Tensor:
    return pad(x, geometry.padding, geometry.padding_mode)


def _unpad(grad: Tensor, geometry: Geometry, length: int) -> Tensor:
    """The gradient of ``_pad``: what lies in the padding goes back to its source."""
    left, right = geometry.padding
    inner = grad[..., left : left + length]
    if geometry.padding_mode == "zeros" or not (left or right):
        return inner
    inner, before, after = inner.clone(), grad[..., :left], grad[..., left + length :]
    if geometry.padding_mode == "replicate":
        inner[..., 0] += before.sum(-1)
        inner[..., -1] += after.sum(-1)
    elif geometry.padding_mode == "circular":
        inner[..., length - left :] += before
        inner[..., :right] += after
    else:
        inner[..., 1 : left + 1] += before.flip(-1)
        inner[..., length - 1 - right : length - 1] += after.flip(-1)
    return inner


def _conv1d(problem: Problem, mask: Tensor | None = None) -> Calls:
    """``F.conv1d`` and its gradients, each alone; with the mask applied as published codes do."""
    x, values, grad, pattern, geometry = problem
    dense = dense_weight(values, pattern)
    left, right = geometry.padding
    fits = left == right and geometry.padding_mode == "zeros"  # one call pads by itself
    inside = left if fits else 0
    options = ([geometry.stride], [inside], [geometry.dilation])

    def padded() -> Tensor:
        return x if fits else _pad(x, geometry)

    def backward(wanted: int, input: Tensor) -> Tensor:
        chosen = [wanted == i for i in range(3)]
        result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            grad, input, dense, None, *options, False, [0], geometry.groups, chosen
        )
        return result[wanted]

    # The input's gradient reads the input's shape only.
    shaped = x if fits else x.new_empty(*x.shape[:2], x.shape[2] + left + right)

    def fprop() -> Tensor:
        weight = dense if mask is None else dense * mask
        return F.conv1d(padded(), weight, None, *options, geometry.groups)

    def dgrad() -> Tensor:
        g = backward(0, shaped)
        return g if fits else _unpad(g, geometry, x.shape[2])

    def wgrad() -> Tensor:
        g = backward(1, padded())
        return g if mask is None else g * mask

    return {
        "fprop": fprop,
        "dgrad": dgrad,
        "wgrad": wgrad,
    }


def conv1d(problem: Problem) -> Calls:
    """PyTorch's dense convolution."""
    return _conv1d(problem)


def masked_dense(problem: Problem) -> Calls:
    """The dense convolution on ``weight * mask``, which is how masks are trained elsewhere.

    The forward pass multiplies, the input's gradient finds the product made, and the weight's
    gradient is multiplied by the mask.
    """
    return _conv1d(problem, problem.pattern.to_mask().to(problem.x.dtype))


def conv2d_channels_last(problem: Problem) -> Calls:
    """A two-dimensional convolution of height 1 in channels_last, the strongest dense path found.

    Input, weight and gradient are converted beforehand.
    """
    x, values, grad, pattern, geometry = problem
    last = torch.channels_last
    weight = dense_weight(values, pattern).unsqueeze(2).contiguous(memory_format=last)
    left, right = geometry.padding
    fits = left == right and geometry.padding_mode == "zeros"
    inside = left if fits else 0
    options = ([1, geometry.stride], [0, inside], [1, geometry.dilation])
    image, g = (t.unsqueeze(2).contiguous(memory_format=last) for t in (x, grad))
    shape = (*image.shape[:3], x.shape[2] + (0 if fits else left + right))
    shaped = image.new_empty(shape).contiguous(memory_format=last)

    def padded() -> Tensor:
        if fits:
            return image
        wide = _pad(image.squeeze(2), geometry).unsqueeze(2)
        return wide.contiguous(memory_format=last)

    def backward(wanted: int, input: Tensor) -> Tensor:
        chosen = [wanted == i for i in range(3)]
        result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            g, input, weight, None, *options, False, [0, 0], geometry.groups, chosen
        )
        return result[wanted].squeeze(2)

    def dgrad() -> Tensor:
        found = backward(0, shaped)
        return found if fits else _unpad(found, geometry, x.shape[2])

    return {
        "fprop": lambda: F.conv2d(padded(), weight, None, *options, geometry.groups).squeeze(2),
        "dgrad": dgrad,
        "wgrad": lambda: backward(1, padded()),
    }


def im2col_csr(problem: Problem) -> Calls:
    """``torch.sparse`` CSR times the columns that the kernel sees; indices made beforehand.

    Columns are (input channel, tap) by (series, output sample); groups lie on the diagonal.
    """
    x, values, grad, pattern, geometry = problem
    out_channels, group_channels, taps = pattern.shape
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    n, channels, length, outputs = *x.shape, grad.shape[2]
    width = channels * taps

    position = pattern.positions()
    row, rest = position // (group_channels * taps), position % (group_channels * taps)
    column = rest + row // (out_channels // groups) * (group_channels * taps)
    with warnings.catch_warnings():  # that sparse tensors are "in beta state" is not news here
        warnings.filterwarnings("ignore", message="Sparse")
        at = torch.stack([row, column])
        weight = torch.sparse_coo_tensor(at, values, (out_channels, width)).to_sparse_csr()
        transposed = weight.t().to_sparse_csr()
        zeros = torch.sparse_csr_tensor(
            weight.crow_indices(), weight.col_indices(), torch.zeros_like(values), weight.shape
        )

    def columns() -> Tensor:
        wide = _pad(x, geometry)
        a, b, c = wide.stride()
        windows = wide.as_strided((channels, taps, n, outputs), (b, dilation * c, a, stride * c))
        return windows.reshape(width, n * outputs)

    def flat() -> Tensor:
        return grad.transpose(0, 1).reshape(out_channels, n * outputs)

    def fprop() -> Tensor:
        return (weight @ columns()).view(out_channels, n, outputs).transpose(0, 1)

    def dgrad() -> Tensor:
        found = (transposed @ flat()).view(channels * taps, n, outputs).transpose(0, 1)
        span = (1, length + sum(geometry.padding))
        folded = F.fold(found, span, (1, taps), (1, dilation), 0, (1, stride))
        # A stride may leave samples at the end that no window reaches: fold makes them zero.
        return _unpad(folded.squeeze(2), geometry, length)

    def wgrad() -> Tensor:
        product = torch.sparse.sampled_addmm(zeros, flat(), columns().t(), beta=0.0)
        found: Tensor = product.values()
        return found

    return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}


def fft(problem: Problem) -> Calls:
    """Products of spectra; the weight's spectrum is made beforehand."""
    x, values, grad, pattern, geometry = problem
    out_channels, group_channels, taps = pattern.shape
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    n, length, outputs = len(x), x.shape[2], grad.shape[2]
    reach = dilation * (taps - 1) + 1
    padded_length = length + sum(geometry.padding)
    size = fast_size(padded_length)  # no index of the three sums reaches further

    dense = dense_weight(values, pattern)
    kernel = dense.new_zeros(*dense.shape[:2], reach)
    kernel[..., ::dilation] = dense
    # (frequency, group, input, output), so that each frequency is one matrix product.
    spectrum = torch.fft.rfft(kernel, size).view(groups, out_channels // groups, group_channels, -1)
    spectrum = spectrum.permute(3, 0, 2, 1)
    forward, backward = spectrum.conj().resolve_conj().contiguous(), spectrum.mT.contiguous()

    def transform(t: Tensor) -> Tensor:  # (N, C, samples) -> (frequency, group, N, C // group)
        found: Tensor = torch.fft.rfft(t, size)
        return found.view(n, groups, t.shape[1] // groups, -1).permute(3, 1, 0, 2)

    def samples(found: Tensor) -> Tensor:  # and back
        wide = found.permute(2, 1, 3, 0).reshape(n, -1, found.shape[0])
        series: Tensor = torch.fft.irfft(wide, size)
        return series

    def spread() -> Tensor:
        if stride == 1:
            return grad
        wide = grad.new_zeros(n, out_channels, stride * (outputs - 1) + 1)
        wide[..., ::stride] = grad
        return wide

    def fprop() -> Tensor:
        y = samples(transform(_pad(x, geometry)) @ forward)
        return y[..., : stride * (outputs - 1) + 1 : stride]

    def dgrad() -> Tensor:
        found = samples(transform(spread()) @ backward)
        return _unpad(found[..., :padded_length], geometry, length)

    def wgrad() -> Tensor:
        found = transform(spread()).conj().mT @ transform(_pad(x, geometry))
        lags: Tensor = torch.fft.irfft(found.permute(1, 2, 3, 0).flatten(0, 1), size)
        return lags[..., :reach:dilation]

    return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}


def fast_size(least: int) -> int:
    """The smallest even product of powers of 2, 3 and 5 that is not below ``least``.

    Example:
        >>> [fast_size(n) for n in (1, 129, 166, 1062)]
        [2, 144, 180, 1080]
    """
    size = least + least % 2 or 2
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 2


def fft_bound(problem: Problem) -> Mapping[str, Tensor]:
    """How far from float64 a sum of products of spectra may lie; shapes that broadcast.

    A transform of ``size`` samples has a relative error of ``log2(size) * 7 u`` in the 2-norm
    (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, theorem 24.2); three of them
    and a sum of ``terms`` complex products make the error, relative to the norms of what is
    multiplied. A norm says nothing of single outputs: this bound is looser than that of a sum.
    """
    x, values, grad, pattern, geometry = problem
    wide = _pad(x.double(), geometry)
    size = fast_size(wide.shape[2])
    unit = torch.finfo(x.dtype).eps / 2
    kernels = dense_weight(values.double(), pattern).norm(dim=2)  # (C_out, C_in // groups)
    groups = geometry.groups
    out_channels, group_channels, _ = pattern.shape
    each = out_channels // groups
    inputs = wide.norm(dim=2).view(-1, groups, group_channels)
    outputs = grad.double().norm(dim=2).view(-1, groups, each)
    weights = kernels.view(groups, each, group_channels)

    def error(terms: int) -> float:
        return unit * (3 * 7 * math.log2(size) + 2 * terms + 4) * math.sqrt(size)

    n = x.shape[0]
    y = torch.einsum("ngc,goc->ngo", inputs, weights).reshape(n, -1, 1) * error(group_channels)
    dx = torch.einsum("ngo,goc->ngc", outputs, weights).reshape(n, -1, 1) * error(each)
    copies = 1 + max(geometry.padding)  # so many samples of the padding meet in one
    dw = torch.einsum("ngo,ngc->goc", outputs, inputs).reshape(out_channels, -1, 1) * error(n)
    return {"fprop": y, "dgrad": dx * copies, "wgrad": dw.expand(pattern.shape)}


RIVALS: dict[str, Rival] = {
    "conv1d": conv1d,
    "conv2d_channels_last": conv2d_channels_last,
    "masked_dense": masked_dense,
    "im2col_csr": im2col_csr,
    "fft": fft,
}
