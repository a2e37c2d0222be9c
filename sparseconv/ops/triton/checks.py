"""What the ops check of their arguments, in the words of ``csrc/checks.cpp``.

Nothing here waits for a GPU, so contents of index tensors are not looked at: the kernels stay
inside their buffers whatever stands there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseconv.core.geometry import DTYPES, PADDING_MODES, Geometry

_MOST = 2**31 - 1  # sizes; so no sum or product of two of them overflows 64 bits
TILE = 1024  # positions of a program of correlate; the last one reaches beyond the end


def checked_geometry(
    shape: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Geometry:
    """Refuse options that no input could be right for."""
    if len(shape) != 3 or len(padding) != 2:
        raise ValueError(
            "expected shape (C_out, C_in // groups, K) and padding (left, right), but got "
            f"{list(shape)} and {list(padding)}"
        )
    out_channels, group_channels, kernel_size = shape
    if not all(1 <= size <= _MOST for size in (*shape, stride, dilation, groups)):
        raise ValueError(
            "shape, stride, dilation and groups must lie in [1, 2**31), but got "
            f"{list(shape)}, {stride}, {dilation}, {groups}"
        )
    if not all(0 <= size <= _MOST for size in padding):
        raise ValueError(f"padding must lie in [0, 2**31), but got {list(padding)}")
    if out_channels % groups:
        raise ValueError(
            f"out_channels must be divisible by groups, but got {out_channels} and {groups}"
        )
    if out_channels * group_channels * kernel_size > _MOST:
        raise ValueError(f"C_out * C_in // groups * K must be below 2**31, but got {list(shape)}")
    if stride * out_channels * group_channels > _MOST:
        raise ValueError(
            "stride x kernels must be below 2**31, but got "
            f"{stride} x {out_channels * group_channels}"
        )
    if padding_mode not in PADDING_MODES:
        raise ValueError(
            f"padding_mode must be zeros, replicate, reflect or circular, but got {padding_mode}"
        )
    left, right = padding
    return Geometry(
        (out_channels, group_channels, kernel_size),
        stride, (left, right), dilation, groups, padding_mode,
    )  # fmt: skip


def check_length(g: Geometry, length: int) -> None:
    """Refuse an input length that the options do not go with, or that 32 bits do not count."""
    if length < 1:
        raise ValueError(f"expected an input of at least one sample, but got length {length}")
    most = max(g.padding)
    room = {"reflect": length - 1, "circular": length}.get(g.padding_mode, most)
    if most > room:
        raise ValueError(
            f"Padding size should be at most {room} for this padding_mode at input length "
            f"{length}, but got {g.padding}"
        )
    padded, reach = length + sum(g.padding), g.dilation * (g.shape[2] - 1) + 1
    if padded < reach:
        raise ValueError(
            f"Calculated padded input size per channel: ({padded}). Kernel size: ({reach}). "
            "Kernel size can't be greater than actual input size"
        )
    if padded + TILE * g.stride > _MOST:
        raise NotImplementedError(
            "the Triton kernels count positions in 32 bits: expected length + padding + "
            f"{TILE} * stride below 2**31, but got length {length}, padding {g.padding}, stride "
            f"{g.stride}; use backend='reference'"
        )


def check_signal(x: Tensor, name: str, channels: int) -> None:
    if x.layout != torch.strided or x.dtype not in DTYPES:
        raise TypeError(
            f"expected {name} to be a dense tensor of float32, float64, bfloat16 or float16, but "
            f"got {_kind(x)}"
        )
    if x.dim() != 3 or x.shape[1] != channels:
        raise ValueError(f"expected {name} of shape (N, {channels}, L), but got {list(x.shape)}")


def check_same_type(x: Tensor, other: Tensor, name: str) -> None:
    if other.device != x.device or other.layout != torch.strided or other.dtype != x.dtype:
        raise TypeError(
            f"expected {name} to be a dense tensor of dtype {x.dtype} on {x.device}, but got "
            f"{_kind(other)}"
        )


def check_vector(vector: Tensor, name: str, x: Tensor, size: int) -> None:
    check_same_type(x, vector, name)
    if vector.shape != (size,):
        raise ValueError(f"expected {name} of shape ({size},), but got {list(vector.shape)}")


def check_gradient(grad: Tensor, g: Geometry, batch: int, input_length: int) -> None:
    shape = (batch, g.shape[0], g.output_length(input_length))
    if grad.shape != shape:
        raise ValueError(
            f"expected grad_output of shape {shape} for an input of length {input_length}, but "
            f"got {list(grad.shape)}"
        )


def check_indices(
    indices: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse what no plan (plan.py) is."""
    if (
        indices.device != device
        or indices.layout != torch.strided
        or indices.dtype != dtype
        or not indices.is_contiguous()
    ):
        raise TypeError(
            f"expected {name} to be a contiguous {dtype} tensor on {device}, but got "
            f"{_kind(indices)}"
        )
    if indices.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, but got {list(indices.shape)}")


def checked_programs(count: int) -> int:
    """Refuse a grid that no GPU takes."""
    if count > _MOST:
        raise ValueError(
            f"expected a problem of less than 2**31 programs, but got one of {count}; split the "
            "batch"
        )
    return count


def _kind(x: Tensor) -> str:
    contiguous = x.layout != torch.strided or x.is_contiguous()
    return f"{'' if contiguous else 'non-contiguous '}{x.dtype} ({x.layout}) on {x.device}"
