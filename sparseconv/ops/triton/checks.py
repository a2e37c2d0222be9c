"""What the ops check of their tensors; ``core.geometry`` checks the rest.

Nothing here waits for a GPU, so contents of index tensors are not checked: the kernels stay
inside their buffers whatever they contain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseconv.core.geometry import DTYPES, Geometry

_MOST = 2**31 - 1  # positions, programs
TILE = 1024  # positions of a program of correlate; the last one reaches beyond the end


def check_length(g: Geometry, length: int) -> None:
    """Refuse an input length that the options do not go with, or that 32 bits do not count."""
    g.check_length(length)
    if length + sum(g.padding) + TILE * g.stride > _MOST:
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
    """Refuse what no plan (``ops.gpu_plans``) is."""
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
