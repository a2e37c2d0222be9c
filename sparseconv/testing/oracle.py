"""The three computations in float64, one active weight after the other.

Nothing here is shared with the kernels or the dense path, not even the padding: their bugs must not
be in what they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparseconv.core.pattern import KernelCSR


def _windows(
    pattern: KernelCSR, length: int, stride: int, dilation: int, groups: int
) -> Iterator[tuple[int, int, slice]]:
    """Of each active weight, in CSR order: output channel, input channel, its padded samples."""
    out_channels, group_channels, _ = pattern.shape
    crow, col = pattern.crow_indices.tolist(), pattern.col_indices.tolist()
    for row in range(len(crow) - 1):
        o, c = divmod(row, group_channels)
        channel = o // (out_channels // groups) * group_channels + c
        for k in col[crow[row] : crow[row + 1]]:
            begin = k * dilation
            yield o, channel, slice(begin, begin + stride * (length - 1) + 1, stride)


def _sources(length: int, padding: tuple[int, int], mode: str) -> tuple[list[int], list[int]]:
    """Pair every padded sample with the input sample that it repeats; zeros have none."""
    padded, sources = [], []
    for at in range(-padding[0], length + padding[1]):
        if 0 <= at < length:
            source = at
        elif mode == "replicate":
            source = 0 if at < 0 else length - 1
        elif mode == "reflect":
            source = -at if at < 0 else 2 * (length - 1) - at
        elif mode == "circular":
            source = at + length if at < 0 else at - length
        else:
            continue
        padded.append(at + padding[0])
        sources.append(source)
    return padded, sources


def _padded(x: Tensor, padding: tuple[int, int], mode: str) -> Tensor:
    y = x.new_zeros(*x.shape[:2], x.shape[2] + sum(padding), dtype=torch.float64)
    padded, sources = _sources(x.shape[2], padding, mode)
    y[:, :, padded] = x.detach().double()[:, :, sources]
    return y


def conv1d_oracle(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """Compute the output ``(N, C_out, L_out)`` in float64, one active weight after the other.

    The definition itself: ``y[n, o, l] = bias[o] + sum w[o, c, k] * x[n, c, l*stride +
    k*dilation - left]``. On absolute values of input, values and bias it gives the sum of
    magnitudes that bounds the rounding error. ``padding`` is ``(left, right)``, in samples.

    Example:
        >>> pattern = KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> x, values = torch.arange(5.0).view(1, 1, 5), torch.tensor([1.0, -1.0])
        >>> conv1d_oracle(x, values, pattern, None, 1, (0, 0), 1, 1, "zeros")
        tensor([[[-2., -2., -2.]]], dtype=torch.float64)
    """
    x = _padded(input, padding, padding_mode)
    out_channels, _, kernel_size = pattern.shape
    length = (x.shape[2] - dilation * (kernel_size - 1) - 1) // stride + 1
    y = x.new_zeros(x.shape[0], out_channels, length)
    if bias is not None:
        y += bias.detach().double()[:, None]
    windows = _windows(pattern, length, stride, dilation, groups)
    for w, (o, channel, at) in zip(values.detach().double().tolist(), windows, strict=True):
        y[:, o] += w * x[:, channel, at]
    return y


def oracle_dgrad(
    grad: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    input_length: int,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """Compute the gradient ``(N, C_in, L_in)`` of the input in float64; see ``conv1d_oracle``."""
    g, channels = grad.detach().double(), pattern.shape[1] * groups
    padded = g.new_zeros(g.shape[0], channels, input_length + sum(padding))
    windows = _windows(pattern, grad.shape[2], stride, dilation, groups)
    for w, (o, channel, at) in zip(values.detach().double().tolist(), windows, strict=True):
        padded[:, channel, at] += w * g[:, o]
    folded = g.new_zeros(g.shape[0], channels, input_length)
    for i, source in zip(*_sources(input_length, padding, padding_mode), strict=True):
        folded[:, :, source] += padded[:, :, i]
    return folded


def oracle_wgrad(
    grad: Tensor,
    input: Tensor,
    pattern: KernelCSR,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """Compute the gradient ``(nnz,)`` of the values in float64; see ``conv1d_oracle``."""
    x, g = _padded(input, padding, padding_mode), grad.detach().double()
    sums = g.new_zeros(pattern.nnz)
    windows = _windows(pattern, grad.shape[2], stride, dilation, groups)
    for j, (o, channel, at) in enumerate(windows):
        sums[j] = (g[:, o] * x[:, channel, at]).sum()
    return sums
