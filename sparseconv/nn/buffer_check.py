"""Detect tools that average buffers and thereby mix the patterns of two layers."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

from sparseconv.core.pattern import KernelCSR
from sparseconv.core.tracing import is_exporting, outside_tracing

_BIT = 2**30
OVERWRITTEN = (
    "the buffers of this layer were overwritten, so its values may not belong to the positions "
    "of its pattern. AveragedModel overwrites buffers after the pattern of the averaged model "
    "has changed: pass the average to DSTScheduler(averages=[...]), or start a new average; an "
    "average of a state dict must copy its integers. DistributedDataParallel overwrites them if "
    "the patterns of the ranks differ: wrap the model before its first use, or load the same state "
    "dict on all ranks"
)


def checksum(pattern: KernelCSR) -> Tensor:
    """Return a 32-bit checksum of a pattern, which is the same in every process.

    It is an int64 ``()`` on the device of the indices, which are not copied to the CPU.
    """
    arrays = torch.cat(pattern.anywhere())
    number = (_factors(len(arrays), arrays.device) * arrays).sum(dtype=torch.int32)
    return (number.long() + (pattern.block[0] << 16 | pattern.block[1])) & 0xFFFFFFFF


@functools.lru_cache(maxsize=32)
def _factors(count: int, device: torch.device) -> Tensor:
    """Return int32 ``(count,)`` pseudorandom factors, one for each index."""
    # MurmurHash3's finalizer (Appleby 2011) of 1, 2, ... Factors with fewer bits, or nearly linear
    # ones, gave similar patterns the same sum.
    x = torch.arange(1, count + 1, device=device)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    return ((x ^ x >> 16) - 2**31).int()


def new_tag(pattern: KernelCSR) -> Tensor:
    """Return a tensor that reveals when torch's tools copy or average the buffers of two patterns.

    It is int32 ``(64,)``: the bits of the checksum, then their complements, with 2**30 for each 1.
    """
    # If another pattern's tag is copied over this one or averaged with it, some 0 changes.
    # Averaging equal tags keeps every 0, but may change other entries: integers are truncated.
    with outside_tracing():
        number = checksum(pattern)
        bits = number >> torch.arange(32, device=number.device) & 1
        return (torch.cat((bits, 1 - bits)) * _BIT).int()


def is_mixed(tag: Tensor, own: Tensor) -> bool:
    """Return whether a tag was mixed with the tag of a pattern other than its own."""
    return bool(tag[own == 0].any())


def is_truncated(now: Tensor, known: Tensor) -> bool:
    """Return whether an average of integers that are all equal may have made ``now`` of them."""
    # 0.9 * 7 + 0.1 * 7 may become 6. All sevens then become 6.
    if now.shape != known.shape:
        return False
    lower = known - now
    if not bool(((lower == 0) | (lower == 1)).all()):
        return False
    return len(torch.unique(2 * known.long() + lower)) == len(torch.unique(known))


def check_in_graph(tag: Tensor, own: Tensor, crow: Tensor, col: Tensor, known: KernelCSR) -> None:
    """Check buffers on every call to a traced graph, which cannot read their versions."""
    # A failed assertion on a GPU would destroy the CUDA context.
    if tag.device.type != "cpu" or is_exporting():
        return
    wrong = ((own == 0) & (tag != 0)).any()
    if col.shape[0] == known.nnz:
        lower = torch.cat((known.crow_indices, known.col_indices)) - torch.cat((crow, col))
        wrong = wrong | ((lower.min() == 0) & (lower.max() == 1))
    torch._assert_async(~wrong, OVERWRITTEN)


def content_of(buffer: Tensor) -> Tensor | None:
    """Return the content of a buffer, or None if it has none or, in an ensemble, several."""
    while is_functorch_wrapped_tensor(buffer):
        if is_batchedtensor(buffer):
            return None
        buffer = get_unwrapped(buffer)
    if type(buffer) is not Tensor or buffer.is_meta:
        return None
    with torch._C._DisableFuncTorch():
        return buffer.detach()
