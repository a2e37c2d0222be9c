"""Other ways to compute the same convolution, each with its best settings.

A baseline takes a problem and returns one call per computation. Memory formats, and whatever
depends only on the pattern, are prepared outside the timed call. ``wgrad`` may return the gradient
of all weights; only those of active weights are compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench.cases import Problem
from sparseconv.core.geometry import Geometry
from sparseconv.reference import dense_weight, pad

Calls = dict[str, Callable[[], Tensor]]


def _pad(x: Tensor, geometry: Geometry) -> Tensor:
    return pad(x, geometry.padding, geometry.padding_mode)


def _unpad(x: Tensor, geometry: Geometry) -> Callable[[Tensor], Tensor]:
    """Return a function that maps the gradient of ``_pad(x)`` to the gradient of ``x``."""
    if geometry.padding_mode == "zeros":
        left, length = geometry.padding[0], x.shape[2]
        return lambda grad: grad[..., left : left + length]
    leaf = x.detach().requires_grad_()
    padded = _pad(leaf, geometry)
    return lambda grad: torch.autograd.grad(padded, leaf, grad, retain_graph=True)[0]


def dense(problem: Problem, *, channels_last: bool = False, padded: bool = False) -> Calls:
    """Call ``F.conv1d`` and its two gradients separately.

    ``channels_last`` calls ``F.conv2d`` on series of height 1 in channels-last memory. ``padded``
    pads with ``F.pad``, which is faster for long kernels; the result is empty without padding, or
    if every call pads that way.
    """
    x, values, grad, pattern, geometry = problem
    zeros = geometry.padding_mode == "zeros" and len(set(geometry.padding)) == 1
    if padded and not (zeros and any(geometry.padding)):
        return {}
    fits = zeros and not padded  # one call pads by itself

    def convert(t: Tensor) -> Tensor:
        return t.unsqueeze(2).contiguous(memory_format=torch.channels_last) if channels_last else t

    def back(t: Tensor) -> Tensor:
        return t.squeeze(2) if channels_last else t

    def spatial(size: int, height: int) -> list[int]:
        return [height, size] if channels_last else [size]

    convolve: Callable[..., Tensor] = F.conv2d if channels_last else F.conv1d
    image, weight, g = (convert(t) for t in (x, dense_weight(values, pattern), grad))
    inside = geometry.padding[0] if fits else 0
    sizes = spatial(geometry.stride, 1), spatial(inside, 0), spatial(geometry.dilation, 1)
    unpad = _unpad(x, geometry)

    def input() -> Tensor:
        return image if fits else convert(_pad(back(image), geometry))

    def backward(wanted: int, input: Tensor) -> Tensor:
        chosen = [wanted == i for i in range(3)]
        result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            g, input, weight, None, *sizes, False, spatial(0, 0), geometry.groups, chosen
        )
        return back(result[wanted])

    shaped = input()  # the input's gradient reads the input's shape only
    return {
        "fprop": lambda: back(convolve(input(), weight, None, *sizes, geometry.groups)),
        "dgrad": lambda: backward(0, shaped) if fits else unpad(backward(0, shaped)),
        "wgrad": lambda: backward(1, input()),
    }


def im2col_csr(problem: Problem) -> Calls:
    """Multiply a ``torch.sparse`` CSR matrix by the columns (im2col); indices are precomputed.

    The columns form a matrix of (input channel, tap) by (series, output sample). Groups are
    diagonal blocks of the CSR matrix.
    """
    x, values, grad, pattern, geometry = problem
    out_channels, group_channels, taps = pattern.shape
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    n, channels, length, outputs = *x.shape, grad.shape[2]
    width, unpad = channels * taps, _unpad(x, geometry)

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
        return unpad(folded.squeeze(2))

    def wgrad() -> Tensor:
        product = torch.sparse.sampled_addmm(zeros, flat(), columns().t(), beta=0.0)
        found: Tensor = product.values()
        return found

    return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}


def fft(problem: Problem, *, prepared: bool = False) -> Calls:
    """Multiply spectra that ``torch.fft`` computes.

    The call computes the weights' spectrum, as in training. With ``prepared``, the spectrum is
    computed beforehand, as is possible in inference, or for ``dgrad`` if the forward pass kept it.
    ``wgrad`` does not need this spectrum, so ``prepared`` omits it.
    """
    from scipy.fft import next_fast_len

    x, values, grad, pattern, geometry = problem
    out_channels, group_channels, taps = pattern.shape
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    n, length, outputs = len(x), x.shape[2], grad.shape[2]
    reach = dilation * (taps - 1) + 1
    padded_length = length + sum(geometry.padding)
    # No index of the three sums reaches further.
    size = 2 * next_fast_len(-(-padded_length // 2), real=True)
    unpad = _unpad(x, geometry)

    dense = dense_weight(values, pattern)
    kernel = dense.new_zeros(*dense.shape[:2], reach)
    kernel[..., ::dilation] = dense

    def spectrum() -> Tensor:  # (frequency, group, input, output): a matrix product for each
        found: Tensor = torch.fft.rfft(kernel, size)
        found = found.view(groups, out_channels // groups, group_channels, -1)
        return found.permute(3, 0, 2, 1)

    conjugate = spectrum().conj().resolve_conj().contiguous() if prepared else None
    transposed = spectrum().mT.contiguous() if prepared else None

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
        kept = spectrum().conj() if conjugate is None else conjugate
        found = samples(transform(_pad(x, geometry)) @ kept)
        return found[..., : padded_length - reach + 1 : stride]

    def dgrad() -> Tensor:
        found = samples(transform(spread()) @ (spectrum().mT if transposed is None else transposed))
        return unpad(found[..., :padded_length])

    def wgrad() -> Tensor:
        found = transform(spread()).conj().mT @ transform(_pad(x, geometry))
        lags: Tensor = torch.fft.irfft(found.permute(1, 2, 3, 0).flatten(0, 1), size)
        return lags[..., :reach:dilation]

    calls: Calls = {"fprop": fprop, "dgrad": dgrad}
    return calls if prepared else calls | {"wgrad": wgrad}


BASELINES: dict[str, Callable[[Problem], Calls]] = {
    "conv1d": dense,
    "conv1d_padded": partial(dense, padded=True),
    "conv2d_channels_last": partial(dense, channels_last=True),
    "conv2d_channels_last_padded": partial(dense, channels_last=True, padded=True),
    "im2col_csr": im2col_csr,
    "fft": fft,
    "fft_prepared": partial(fft, prepared=True),
}
