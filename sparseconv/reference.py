"""The dense path and a masked-dense layer, to compare with.

No arithmetic here is shared with the kernels: their bugs must not be in what they are compared
with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv.core.pattern import KernelCSR


def dense_weight(values: Tensor, pattern: KernelCSR) -> Tensor:
    """Spread ``values (nnz,)`` into ``(C_out, C_in // groups, K)``, zeros where inactive.

    Differentiable in ``values``. ValueError if these are more or fewer than the active weights.

    Example:
        >>> pattern = KernelCSR.from_positions(torch.tensor([1]), (1, 1, 3))
        >>> dense_weight(torch.tensor([5.0]), pattern)
        tensor([[[0., 5., 0.]]])
    """
    if values.shape != (pattern.nnz,):  # scatter would leave out the others
        raise ValueError(f"values must be ({pattern.nnz},), but got {tuple(values.shape)}")
    # Cached on a GPU: a CUDA graph cannot read memory of the CPU.
    on_gpu = values.is_cuda
    positions = pattern.cached(_positions_on, values.device) if on_gpu else pattern.positions()
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

    Example:
        >>> pattern = KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> x, values = torch.arange(5.0).view(1, 1, 5), torch.tensor([1.0, -1.0])
        >>> conv1d_dense(x, values, pattern, None, 1, (0, 0), 1, 1, "zeros")
        tensor([[[-2., -2., -2.]]])
    """
    half = input.dtype in (torch.bfloat16, torch.float16)
    wide = torch.float32 if half else input.dtype
    x = pad(input.to(wide), padding, padding_mode)
    weight = dense_weight(values, pattern).to(wide)
    bias = None if bias is None else bias.to(wide)
    return F.conv1d(x, weight, bias, stride, 0, dilation, groups).to(input.dtype)


def conv1d_fft(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
    spectrum: Tensor | None = None,
) -> Tensor:
    """Convolve ``(N, C_in, L_in)`` by products of spectra, as ``torch.fft`` computes them.

    float32 or float64; differentiable. ``spectrum`` is ``weight_spectrum(...)`` of the padded
    length; None computes it, as training has to.

    Example:
        >>> x, weight = torch.randn(2, 4, 50), torch.randn(6, 4, 9)
        >>> y = conv1d_fft(x, weight, None, 1, (4, 4), 1, 1, "zeros")
        >>> torch.allclose(y, F.conv1d(x, weight, padding=4), atol=1e-4)
        True
    """
    x = pad(input, padding, padding_mode)
    (n, channels, length), taps = x.shape, weight.shape[2]
    if spectrum is None:
        spectrum = weight_spectrum(weight, length, dilation, groups)
    series = torch.fft.rfft(x, fast_size(length))
    series = series.view(n, groups, channels // groups, -1).permute(3, 1, 0, 2)
    found = (series @ spectrum).permute(2, 1, 3, 0).reshape(n, weight.shape[0], -1)
    outputs = length - dilation * (taps - 1)
    y: Tensor = torch.fft.irfft(found, fast_size(length))[..., :outputs:stride]
    return y if bias is None else y + bias[:, None]


def weight_spectrum(weight: Tensor, length: int, dilation: int, groups: int) -> Tensor:
    """``(frequencies, groups, C_in // groups, C_out // groups)``, for series of ``length``."""
    out_channels, group_channels, taps = weight.shape
    kernel = weight.new_zeros(out_channels, group_channels, dilation * (taps - 1) + 1)
    kernel[..., ::dilation] = weight
    found = torch.fft.rfft(kernel, fast_size(length)).conj().resolve_conj()
    spectrum: Tensor = found.view(groups, out_channels // groups, group_channels, -1)
    return spectrum.permute(3, 0, 2, 1)


def fast_size(least: int) -> int:
    """The smallest even product of powers of 2, 3 and 5 that is not below ``least``.

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


def pad(x: Tensor, padding: tuple[int, ...], mode: str) -> Tensor:
    """``F.pad`` in the words of ``nn.Conv1d``, without a copy where there is nothing to pad."""
    if not any(padding):
        return x
    return F.pad(x, padding, "constant" if mode == "zeros" else mode)
