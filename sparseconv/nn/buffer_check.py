"""Detect tools that copy or average buffers and thereby mix the patterns of two layers."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from sparseconv.core.pattern import KernelCSR
from sparseconv.core.tracing import is_exporting, outside_tracing

_BIT = 2**30
_OVERWRITTEN = (
    "the buffers of this layer were overwritten, so its values may not belong to the positions "
    "of its pattern. AveragedModel overwrites buffers after the pattern of the averaged model "
    "has changed: pass the average to DSTScheduler(averages=[...]), or start a new average. "
    "DistributedDataParallel overwrites them if ranks built different patterns: first call "
    "torch.manual_seed with the same seed on all ranks, or load the same state dict. After "
    "to_empty(), call reset_parameters() or load a state dict"
)
_OTHER = (
    "expected the indices of the layer's pattern, but got those of a different pattern: "
    "torch.func.functional_call cannot change a pattern. Load the state dict into a copy of the "
    "module, and call the copy"
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


def check_tag(tag: Tensor, own: Tensor, checked: tuple[Any, int]) -> tuple[Any, int]:
    """Reject a layer's tag, on any device, if it was mixed with the tag of another pattern.

    ``checked`` is the last checked tag and its version; pass the result to the next call.
    """
    # In training, DistributedDataParallel writes into every buffer before every forward pass. One
    # check is enough, and further ones would make each layer wait for the GPU.
    if tag is checked[0] and tag.is_cuda and torch.is_grad_enabled():
        return checked
    content = _content(tag)
    if content is not None and bool(content[..., own.cpu() == 0].any()):
        raise RuntimeError(_OVERWRITTEN)
    counts = content is not None and not tag.is_inference()  # inference tensors have no version
    return (tag, tag._version) if counts else checked


def check_tag_in_graph(tag: Tensor, own: Tensor) -> None:
    """Check a tag on every call to a traced graph, which cannot read the version of the tag."""
    # A failed assertion on a GPU would destroy the CUDA context.
    if tag.device.type == "cpu" and not is_exporting():
        torch._assert_async(~((own == 0) & (tag != 0)).any(), _OVERWRITTEN)


def check_indices(indices: Tensor, own: Tensor) -> None:
    """Reject indices, perhaps from ``functional_call``, that differ from the pattern's ``own``."""
    with outside_tracing():
        content = _content(indices)
        known = content is None or (
            content.shape[-1:] == own.shape and bool((content == own).all())
        )
    if not known:
        raise RuntimeError(_OTHER)


def _content(buffer: Tensor) -> Tensor | None:
    """Return the content of a buffer ``(size,)`` on the CPU, or None if the buffer has none.

    Under ``torch.vmap`` over an ensemble, return the content for all members, ``(members, size)``.
    """
    if type(buffer) is not Tensor or buffer.is_meta:
        return None
    while is_functorch_wrapped_tensor(buffer):
        buffer = get_unwrapped(buffer)
    with torch._C._DisableFuncTorch():
        return buffer.detach().cpu()
