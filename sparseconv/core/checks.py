"""Checks of arguments that several modules share; each names what was expected and given."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ArgumentError(ValueError, RuntimeError):
    """A wrong argument: ``nn.Conv1d`` reports it as RuntimeError, Python says ValueError."""


def integer(expectation: str, value: Any) -> int:
    """Accept a Python or NumPy integer, as ``nn.Conv1d`` does, but not a bool."""
    # A tensor's bool would count as 0 or 1: a mask of kernels as their numbers.
    if not isinstance(value, bool) and getattr(value, "dtype", None) is not torch.bool:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{expectation}, but got {value!r}")


def count(name: str, value: Any, least: int = 1) -> int:
    """Accept a Python or NumPy integer of at least ``least``."""
    found = integer(f"{name} must be an int", value)
    if found < least:
        raise ValueError(f"{name} must be at least {least}, but got {found}")
    return found


def flag(name: str, value: Any) -> bool:
    """Accept a Python or NumPy bool: the text "no" would count as true."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, but got {value!r}")


def number(name: str, value: Any) -> float:
    """Accept a Python or NumPy number, but not a bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, but got a {type(value).__name__}: {value!r}")
    return float(value)


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose elements cannot be read in the ordinary way."""
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(
            f"{name} must be a dense tensor that holds data, but got {tensor.layout} on "
            f"{tensor.device}; a sparse one is converted by .to_dense()"
        )


def checked_shape(shape: Any) -> tuple[int, int, int]:
    """Check the shape of a weight, ``(C_out, C_in // groups, K)``."""
    expectation = "shape must be three ints (C_out, C_in // groups, K)"
    try:
        out_channels, group_channels, kernel_size = (integer(expectation, n) for n in shape)
    except (TypeError, ValueError):
        raise TypeError(f"{expectation}, but got {shape!r}") from None
    sizes = (out_channels, group_channels, kernel_size)
    if min(sizes) < 1:
        raise ValueError(f"shape must be positive in every dimension, but got {sizes}")
    if out_channels * group_channels * kernel_size >= 2**31:
        raise ValueError(
            f"shape {sizes} has {out_channels * group_channels * kernel_size} weights, but int32 "
            "indices count fewer than 2**31; use fewer channels or taps, or split the layer"
        )
    return sizes


def check_array(name: str, array: Tensor) -> None:
    """Refuse anything but an int32 vector on the CPU."""
    if not isinstance(array, Tensor):
        raise TypeError(
            f"{name} must be an int32 tensor, but got {type(array).__name__}; "
            "use torch.as_tensor(..., dtype=torch.int32)"
        )
    if array.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, but got {array.dtype}; use .to(torch.int32)")
    if array.device.type != "cpu" or array.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor on the CPU, but got {array.layout} on {array.device}; "
            "use .cpu()"
        )
    if array.dim() != 1:
        raise TypeError(f"{name} must be 1-dimensional, but got shape {list(array.shape)}")


def check_structure(crow: Tensor, col: Tensor, shape: tuple[int, int, int]) -> None:
    """Refuse arrays that are not a CSR structure, naming the first bad row."""
    out_channels, group_channels, kernel_size = shape
    rows, nnz = out_channels * group_channels, col.shape[0]

    def refuse(row: int, problem: str) -> None:
        out_channel, channel = divmod(row, group_channels)
        raise ValueError(
            f"row {row} (output channel {out_channel}, input channel {channel}): {problem}"
        )

    if crow.shape[0] != rows + 1:
        raise ValueError(
            f"crow_indices must have {rows + 1} entries for shape {shape} "
            f"(one per kernel and one more), but got {crow.shape[0]}"
        )
    if crow[0] != 0:
        refuse(0, f"crow_indices must begin with 0, but begins with {int(crow[0])}")
    falling = crow[1:] < crow[:-1]
    if falling.any():
        row = int(falling.nonzero()[0])
        refuse(
            row,
            f"crow_indices must not decrease, but goes from {int(crow[row])} "
            f"to {int(crow[row + 1])}",
        )
    if crow[-1] != nnz:
        raise ValueError(
            f"crow_indices must end with the number of col_indices, {nnz}, "
            f"but ends with {int(crow[-1])}"
        )

    def row_of(position: int) -> int:
        return int(torch.searchsorted(crow, position, right=True)) - 1

    outside = (col < 0) | (col >= kernel_size)
    if outside.any():
        at = int(outside.nonzero()[0])
        refuse(row_of(at), f"taps must lie in [0, {kernel_size}), but got {int(col[at])}")
    falling = col[1:] <= col[:-1]
    # A new row may begin with any tap: clear the marks at row starts.
    starts = crow[(crow > 0) & (crow < nnz)].long()
    falling[starts - 1] = False
    if falling.any():
        at = int(falling.nonzero()[0])
        problem = "repeated" if col[at] == col[at + 1] else "unsorted"
        refuse(
            row_of(at),
            f"taps must ascend without repetition, but {int(col[at + 1])} follows {int(col[at])} "
            f"({problem}); KernelCSR.from_mask sorts for you",
        )
