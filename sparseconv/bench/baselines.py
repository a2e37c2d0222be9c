"""Other ways to compute the same convolution, each at its best settings.

A baseline is given a problem and returns one call per computation. A tensor's memory format, and
whatever depends on the pattern alone, is prepared outside the timed call, in the baseline's favour.
``wgrad`` may return the gradient of all weights: only the active ones are looked at.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv.bench.cases import Problem
from sparseconv.core.geometry import Geometry
from sparseconv.reference import dense_weight, pad

Calls = dict[str, Callable[[], Tensor]]


def _pad(x: Tensor, geometry: Geometry) -> Tensor:
    return pad(x, geometry.padding, geometry.padding_mode)


def _unpad(grad: Tensor, geometry: Geometry, length: int) -> Tensor:
    """The gradient of ``_pad``: what belongs to the padding is added to its source."""
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


def conv1d(problem: Problem, *, padded: bool = False) -> Calls:
    """``F.conv1d`` and its two gradients, each alone.

    ``padded`` gives it zeros by ``F.pad`` instead of by its argument, which is faster where kernels
    are long. There are no such calls where every call pads so, nor for ``wgrad``, which does not
    gain.
    """
    return _dense(problem, F.conv1d, lambda t: t, lambda t: t, padded)


def conv2d_channels_last(problem: Problem, *, padded: bool = False) -> Calls:
    """``F.conv2d`` of height 1 on channels-last memory, into which everything was converted.

    ``padded`` as for ``conv1d``.
    """
    return _dense(
        problem,
        F.conv2d,
        lambda t: t.unsqueeze(2).contiguous(memory_format=torch.channels_last),
        lambda t: t.squeeze(2),
        padded,
    )


def _dense(
    problem: Problem,
    convolve: Callable[..., Tensor],
    convert: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    pads_before: bool,
) -> Calls:
    x, values, grad, pattern, geometry = problem
    image, weight, g = (convert(t) for t in (x, dense_weight(values, pattern), grad))
    zeros = len(set(geometry.padding)) == 1 and geometry.padding_mode == "zeros"
    if pads_before and not (zeros and any(geometry.padding)):
        return {}
    fits = zeros and not pads_before  # one call pads by itself
    inside = geometry.padding[0] if fits else 0

    def spatial(size: int, height: int) -> list[int]:
        return [size] if image.dim() == 3 else [height, size]

    sizes = spatial(geometry.stride, 1), spatial(inside, 0), spatial(geometry.dilation, 1)
    # The input's gradient reads the input's shape only.
    shaped = image if fits else convert(x.new_empty(_pad(x, geometry).shape))

    def padded() -> Tensor:
        return image if fits else convert(_pad(back(image), geometry))

    def backward(wanted: int, input: Tensor) -> Tensor:
        chosen = [wanted == i for i in range(3)]
        transposed, groups = (False, spatial(0, 0)), geometry.groups
        result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            g, input, weight, None, *sizes, *transposed, groups, chosen
        )
        return back(result[wanted])

    def dgrad() -> Tensor:
        found = backward(0, shaped)
        return found if fits else _unpad(found, geometry, x.shape[2])

    calls: Calls = {
        "fprop": lambda: back(convolve(padded(), weight, None, *sizes, geometry.groups)),
        "dgrad": dgrad,
    }
    return calls if pads_before else calls | {"wgrad": lambda: backward(1, padded())}


def im2col_csr(problem: Problem) -> Calls:
    """``torch.sparse`` CSR times the columns that the kernel sees; indices prepared beforehand.

    Columns are (input channel, tap) by (series, output sample); groups are on the diagonal.
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


def fft(problem: Problem, *, prepared: bool = False) -> Calls:
    """Products of spectra, by ``torch.fft``.

    In training the weights change at every step, so their spectrum is computed inside the call.
    ``prepared`` computes it beforehand, as inference can; a training step that kept it from the
    forward pass would also find it prepared in ``dgrad``. ``wgrad`` needs none and is the same in
    both, so it is timed once.
    """
    x, values, grad, pattern, geometry = problem
    out_channels, group_channels, taps = pattern.shape
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    n, length, outputs = len(x), x.shape[2], grad.shape[2]
    reach = dilation * (taps - 1) + 1
    padded_length = length + sum(geometry.padding)
    size = _fast_size(padded_length)  # no index of the three sums reaches further

    dense = dense_weight(values, pattern)
    kernel = dense.new_zeros(*dense.shape[:2], reach)
    kernel[..., ::dilation] = dense

    # Of a kernel that is spread beforehand, and not yet conjugated as fprop's is: dgrad's is not.
    def spectrum() -> Tensor:  # (frequency, group, input, output): a matrix product for each
        found: Tensor = torch.fft.rfft(kernel, size)
        found = found.view(groups, out_channels // groups, group_channels, -1)
        return found.permute(3, 0, 2, 1)

    ready = spectrum() if prepared else None
    conjugate = None if ready is None else ready.conj().resolve_conj().contiguous()
    transposed = None if ready is None else ready.mT.contiguous()

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
        return _unpad(found[..., :padded_length], geometry, length)

    def wgrad() -> Tensor:
        found = transform(spread()).conj().mT @ transform(_pad(x, geometry))
        lags: Tensor = torch.fft.irfft(found.permute(1, 2, 3, 0).flatten(0, 1), size)
        return lags[..., :reach:dilation]

    calls: Calls = {"fprop": fprop, "dgrad": dgrad}
    return calls if prepared else calls | {"wgrad": wgrad}


def _fast_size(least: int) -> int:
    """Return the smallest even product of powers of 2, 3 and 5 that is not below ``least``.

    A product of spectra of this size gives every sum whose indices stay below ``least``.
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


BASELINES: dict[str, Callable[[Problem], Calls]] = {
    "conv1d": conv1d,
    "conv1d_padded": partial(conv1d, padded=True),
    "conv2d_channels_last": conv2d_channels_last,
    "conv2d_channels_last_padded": partial(conv2d_channels_last, padded=True),
    "im2col_csr": im2col_csr,
    "fft": fft,
    "fft_prepared": partial(fft, prepared=True),
}
