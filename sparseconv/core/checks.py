"""Provide argument checks that several modules share."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import torch
from torch import Tensor

from sparseconv.core.arrays import as_tensor

OVERWRITTEN = (
    "the indices of this layer were overwritten in place, so its values may not belong to them: "
    "call load_state_dict(), set_pattern() or reset_parameters(), or assign new tensors. "
    "AveragedModel overwrites buffers after the pattern of the averaged model has changed: pass "
    "the average to DSTScheduler(averages=[...]), or start a new average; an average of a state "
    "dict must copy its integers. DistributedDataParallel overwrites them if the patterns of the "
    "ranks differ: wrap the model before its first use, or load the same state dict on all ranks"
)


class ArgumentError(ValueError, RuntimeError):
    """Report an invalid argument, as both a RuntimeError (like ``nn.Conv1d``) and a ValueError."""


def integer(expectation: str, value: Any) -> int:
    """Accept a Python or NumPy integer, but not a bool."""
    # A bool would count as 0 or 1, so a mask of kernels would be read as their numbers.
    if not isinstance(value, bool) and getattr(value, "dtype", None) is not torch.bool:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{expectation}, but got {value!r}")


def count(name: str, value: Any, least: int = 1) -> int:
    found = integer(f"{name} must be an int", value)
    if found < least:
        raise ValueError(f"{name} must be at least {least}, but got {found}")
    return found


def number(name: str, value: Any) -> float:
    """Accept a real Python or NumPy number, but not a bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, but got {type(value).__name__}: {value!r}")
    return float(value)


def share(name: str, value: Any, below_one: bool = False) -> float:
    """Accept a share in [0, 1], or in [0, 1) if ``below_one``."""
    found = number(name, value)
    if 0 <= found <= 1 and not (below_one and found == 1):
        return found
    hint = f"; {found:g} % is {found / 100:g}" if 1 < found <= 100 else ""
    raise ValueError(f"{name} must lie in [0, 1{')' if below_one else ']'}, but got {value}{hint}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Reject a tensor that is not strided or has no data."""
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(
            f"{name} must be a dense tensor with data, but got {tensor.layout} on "
            f"{tensor.device}; convert a sparse one with .to_dense()"
        )


def checked_mask(name: str, mask: Any) -> Tensor:
    """Return a mask as bools; reject scores, because every nonzero score would be active."""
    given = as_tensor(mask, f"{name} must contain bools, or zeros and ones")
    if not bool(((given == 0) | (given == 1)).all()):
        raise ValueError(
            f"{name} must contain bools, or zeros and ones, but contains other numbers; compare "
            "them with a threshold"
        )
    return given != 0


def checked_shape(shape: Any) -> tuple[int, int, int]:
    """Return the shape of a weight, ``(C_out, C_in // groups, K)``, if it is valid."""
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
            "indices allow fewer than 2**31; use fewer channels or taps, or split the layer"
        )
    return sizes


def check_vector(name: str, array: Tensor, dtype: torch.dtype) -> None:
    if isinstance(array, Tensor) and array.dtype == dtype and array.dim() == 1:
        check_dense(name, array)
        return
    came = type(array).__name__
    if isinstance(array, Tensor):
        came = f"{array.dtype} of shape {list(array.shape)}"
    raise TypeError(
        f"{name} must be a one-dimensional tensor with dtype {dtype}, but got {came}; use "
        f"torch.as_tensor({name}, dtype={dtype})"
    )


def check_structure(crow: Tensor, col: Tensor, shape: tuple[int, int, int]) -> None:
    """Reject arrays that are not a CSR structure, and name the first bad row."""
    out_channels, group_channels, kernel_size = shape
    rows, nnz = out_channels * group_channels, len(col)
    sizes = crow.long().diff()
    if len(sizes) != rows or crow[0] != 0 or crow[-1] != nnz or bool((sizes < 0).any()):
        raise ValueError(
            f"for shape {shape}, crow_indices must have {rows + 1} entries that start at 0, never "
            f"decrease and end at {nnz} (the number of col_indices), but got {crow}"
        )
    row = torch.arange(rows, device="cpu").repeat_interleave(sizes)
    wrong = (col < 0) | (col >= kernel_size)
    wrong[1:] |= (col[1:] <= col[:-1]) & (row[1:] == row[:-1])
    if wrong.any():
        bad = int(row[wrong.nonzero()[0]])
        out_channel, channel = divmod(bad, group_channels)
        raise ValueError(
            f"row {bad} (output channel {out_channel}, input channel {channel}): taps must lie in "
            f"[0, {kernel_size}) and ascend without repetition, but got {col[row == bad].tolist()}"
            "; KernelCSR.from_mask sorts the taps"
        )
