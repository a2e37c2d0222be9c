"""The dense path, an index-loop oracle in float64 and the masked-dense baseline.

Nothing here is shared with the kernels: what is compared with them must not share their bugs.
The dense path and the oracle share nothing either, not even the padding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.pattern import KernelCSR

if TYPE_CHECKING:
    from sparseconv.modules import SparseConv1d


def dense_weight(values: Tensor, pattern: KernelCSR) -> Tensor:
    """Spread ``values (nnz,)`` into ``(C_out, C_in // groups, K)``, zeros where inactive.

    Differentiable in ``values``.

    Example:
        >>> pattern = KernelCSR.from_positions(torch.tensor([1]), (1, 1, 3))
        >>> dense_weight(torch.tensor([5.0]), pattern)
        tensor([[[0., 5., 0.]]])
    """
    # Kept on a GPU: a CUDA graph can read no memory of the CPU.
    on_gpu = values.is_cuda
    positions = pattern.derived(_positions_on, values.device) if on_gpu else pattern.positions()
    return values.new_zeros(pattern.numel).scatter(0, positions, values).view(pattern.shape)


def _positions_on(pattern: KernelCSR, device: torch.device) -> Tensor:
    return pattern.positions().to(device)


def conv1d_dense(
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
    """Convolve ``(N, C_in, L_in)`` with the dense weight: ``F.pad``, then ``F.conv1d``.

    Any device, differentiable any number of times. Half types are computed in float32, because
    torch's own CPU convolution sums their gradients in half precision. ``padding`` is
    ``(left, right)``, in samples.
    """
    half = input.dtype in (torch.bfloat16, torch.float16)
    wide = torch.float32 if half else input.dtype
    x = _pad(input.to(wide), padding, padding_mode)
    weight = dense_weight(values, pattern).to(wide)
    bias = None if bias is None else bias.to(wide)
    return F.conv1d(x, weight, bias, stride, 0, dilation, groups).to(input.dtype)


def _pad(x: Tensor, padding: tuple[int, int], mode: str) -> Tensor:
    if padding == (0, 0):
        return x
    return F.pad(x, padding, "constant" if mode == "zeros" else mode)


class MaskedConv1d(nn.Module):
    """A convolution with a dense weight times a mask, as mask-based sparse training runs it.

    The baseline of every comparison here: time, gradient and optimizer state are those of the
    dense layer. ``weight`` is the parameter, ``mask`` a bool buffer, both
    ``(C_out, C_in // groups, K)``.

    Args:
        pattern: which weights are active at first.
        stride, dilation, groups, bias, padding_mode: as in ``nn.Conv1d``.
        padding: ``(left, right)``, in samples.

    Example:
        >>> layer = MaskedConv1d(KernelCSR.full((4, 2, 3)), padding=(0, 2))
        >>> layer(torch.zeros(1, 2, 10)).shape
        torch.Size([1, 4, 10])
    """

    mask: Tensor

    def __init__(
        self,
        pattern: KernelCSR,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.padding_mode = groups, padding_mode
        out_channels, group_channels, kernel_size = pattern.shape
        bound = 1 / math.sqrt(group_channels * kernel_size)
        self.weight = nn.Parameter(torch.empty(pattern.shape).uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
        )
        self.register_buffer("mask", pattern.to_mask())

    @classmethod
    def from_sparse(cls, layer: SparseConv1d) -> MaskedConv1d:
        """Return the masked-dense twin of a sparse layer: same function, same options."""
        twin = cls(
            layer.pattern,
            layer.stride[0],
            layer.resolved_padding,
            layer.dilation[0],
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
        ).to(layer.values.device, layer.values.dtype)
        with torch.no_grad():
            twin.weight.copy_(layer.dense_weight())
            if twin.bias is not None and layer.bias is not None:
                twin.bias.copy_(layer.bias)
        return twin.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, C_in, L_in)`` or ``(C_in, L_in)``."""
        x = _pad(input, self.padding, self.padding_mode)
        return F.conv1d(
            x, self.weight * self.mask, self.bias, self.stride, 0, self.dilation, self.groups
        )


# The oracle. Padding is an index map: for every padded sample, the input sample that it repeats.


def _active(pattern: KernelCSR) -> list[tuple[int, int, int]]:
    """List ``(o, c, k)`` of the active weights in CSR order."""
    crow, col = pattern.crow_indices.tolist(), pattern.col_indices.tolist()
    return [
        (*divmod(row, pattern.shape[1]), col[j])
        for row in range(len(crow) - 1)
        for j in range(crow[row], crow[row + 1])
    ]


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
    """Compute the output in float64, one active weight after the other.

    The definition itself: ``y[n, o, l] = bias[o] + sum w[o, c, k] * x[n, c, l*stride +
    k*dilation - left]``. On absolute values of input, values and bias it gives the sum of
    magnitudes that bounds the rounding error.
    """
    x = _padded(input, padding, padding_mode)
    out_channels, group_channels, kernel_size = pattern.shape
    length = (x.shape[2] - dilation * (kernel_size - 1) - 1) // stride + 1
    y = x.new_zeros(x.shape[0], out_channels, length)
    if bias is not None:
        y += bias.detach().double()[:, None]
    for w, (o, c, k) in zip(values.detach().double().tolist(), _active(pattern), strict=True):
        channel = o // (out_channels // groups) * group_channels + c
        begin = k * dilation
        y[:, o] += w * x[:, channel, begin : begin + stride * (length - 1) + 1 : stride]
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
    out_channels, group_channels, _ = pattern.shape
    g, length = grad.detach().double(), grad.shape[2]
    padded = g.new_zeros(g.shape[0], group_channels * groups, input_length + sum(padding))
    for w, (o, c, k) in zip(values.detach().double().tolist(), _active(pattern), strict=True):
        channel = o // (out_channels // groups) * group_channels + c
        begin = k * dilation
        padded[:, channel, begin : begin + stride * (length - 1) + 1 : stride] += w * g[:, o]
    folded = g.new_zeros(g.shape[0], group_channels * groups, input_length)
    for at, source in zip(*_sources(input_length, padding, padding_mode), strict=True):
        folded[:, :, source] += padded[:, :, at]
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
    x, g, length = _padded(input, padding, padding_mode), grad.detach().double(), grad.shape[2]
    out_channels, group_channels, _ = pattern.shape
    sums = g.new_zeros(pattern.nnz)
    for j, (o, c, k) in enumerate(_active(pattern)):
        channel = o // (out_channels // groups) * group_channels + c
        begin = k * dilation
        window = x[:, channel, begin : begin + stride * (length - 1) + 1 : stride]
        sums[j] = (g[:, o] * window).sum()
    return sums
