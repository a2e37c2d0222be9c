"""Read a layer's pattern from its buffers; detect tools that average the buffers of two layers."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.compiler import is_dynamo_compiling

from sparseconv.core.pattern import KernelCSR
from sparseconv.core.tracing import is_exporting, outside_tracing
from sparseconv.ops import gpu_plans
from sparseconv.ops.backends import extension
from sparseconv.ops.schemas import is_intact

BUFFERS = ("crow_indices", "col_indices", "pattern_tag")
# What was read: the three buffers, the sum of their versions, and the tag's version.
UNSEEN: tuple[Any, Any, Any, int, int] = (None, None, None, -1, -1)
# A thread that reads a layer must not take half of what another thread writes for the pattern.
WRITING = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child must not wait for a thread that it does not have
    os.register_at_fork(
        before=WRITING.acquire, after_in_parent=WRITING.release, after_in_child=WRITING.release
    )
_BIT = 2**30
_OVERWRITTEN = (
    "the buffers of this layer were overwritten, so its values may not belong to the positions "
    "of its pattern. AveragedModel overwrites buffers after the pattern of the averaged model "
    "has changed: pass the average to DSTScheduler(averages=[...]), or start a new average; an "
    "average of a state dict must copy its integers. DistributedDataParallel overwrites them if "
    "the patterns of the ranks differ: wrap the model before its first use, or load the same state "
    "dict on all ranks"
)


class PatternBuffers(nn.Module):
    """Hold a pattern as the content of two buffers, whoever wrote them.

    ``_pattern`` is the latest reading. ``pattern_tag``, which state dicts lack, shows what others
    did to the indices: who averages or copies all buffers also writes the tag.
    """

    crow_indices: Tensor
    col_indices: Tensor
    pattern_tag: Tensor
    _pattern: KernelCSR
    _own_tag: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._seen = UNSEEN

    @property
    def pattern(self) -> KernelCSR:
        """Return the pattern in the buffers.

        Raises:
            RuntimeError: the buffers contain no pattern, or the values might not belong to it.
        """
        crow, _ = self._indices()
        if not is_dynamo_compiling() and is_batchedtensor(crow):
            raise RuntimeError("the members of an ensemble under torch.vmap have several patterns")
        return self._pattern

    def _indices(self) -> tuple[Tensor, Tensor]:
        """Return both index tensors; check them if they were written to since the last call."""
        held, seen = self._buffers, self._seen
        crow: Any = held["crow_indices"]
        col: Any = held["col_indices"]
        tag: Any = held["pattern_tag"]
        if is_dynamo_compiling():
            _check_in_graph(tag, self._own_tag, crow, col, self._pattern)
        elif (
            crow is not seen[0]
            or col is not seen[1]
            or tag is not seen[2]
            or crow._version + col._version + tag._version != seen[3]
        ):
            self._read()
        return crow, col

    def _read(self) -> None:
        """Read buffers that others may have written or replaced; see ``pattern``."""
        with WRITING:
            self._read_now()

    def _read_now(self) -> None:
        tensors: list[Any] = [self._buffers[name] for name in BUFFERS]
        with outside_tracing():
            crow, col, tag = map(_content_of, tensors)
            if crow is None or col is None:
                return  # nothing to read, or an ensemble
            # Before the first use, others may write all buffers, as DistributedDataParallel does.
            guarded = tag is not None and tensors[2] is self._seen[2]
            touched = guarded and tensors[2]._version != self._seen[4]
            if touched and crow.is_cuda and torch.is_grad_enabled():
                # In training, DistributedDataParallel writes to all buffers before each forward
                # pass. One check is enough: further ones would make each layer wait for the GPU.
                gpu_plans.trust(crow, col, same=True)
                self._mark_seen()
                return
            if tag is not None and guarded and _is_mixed(tag.cpu(), self._own_tag.cpu()):
                raise RuntimeError(_OVERWRITTEN)
            own = self._pattern.anywhere()
            if not all(_equal(a, b) for a, b in zip((crow, col), own, strict=True)):
                in_place = all(a is b for a, b in zip(tensors, self._seen, strict=False))
                self._accept(crow, col, touched, in_place)
            if tag is None or tag.device != crow.device or tag.is_inference():
                tag = self._own_tag.to(crow.device, copy=True)
                self.register_buffer("pattern_tag", tag, persistent=False)
            elif not _equal(tag, self._own_tag):
                tag.copy_(self._own_tag)
        self._mark_seen()

    def _accept(self, crow: Tensor, col: Tensor, touched: bool, in_place: bool) -> None:
        """Make what others wrote the pattern, unless they averaged it."""
        pattern = self._pattern
        arrays = (crow, col), pattern.anywhere()
        truncated = _is_truncated(*(torch.cat([x.cpu() for x in pair]) for pair in arrays))
        if touched != truncated and (touched or in_place):
            raise RuntimeError(_OVERWRITTEN)
        if not touched:  # else an average of equal patterns
            try:
                pattern = KernelCSR(crow, col, pattern.shape, pattern.block)
            except (TypeError, ValueError) as error:
                raise RuntimeError(
                    f"the indices of this layer were overwritten, and are not a pattern: {error}. "
                    "After to_empty(), call reset_parameters() or load a state dict"
                ) from error
        # Not every write counts as a version, but the kernels' plans depend on versions.
        for array, new in zip((crow, col), pattern.anywhere(), strict=True):
            if not array.is_inference():
                array.copy_(new)
        self._pattern, self._own_tag = pattern, new_tag(pattern)

    def _mark_seen(self) -> None:
        """Record that the buffers contain the pattern."""
        crow, col, tag = self.crow_indices, self.col_indices, self.pattern_tag
        # Inference tensors have no version, and a transform's wrapper is used once.
        if any(t.is_inference() or is_functorch_wrapped_tensor(t) for t in (crow, col, tag)):
            if tag is self._seen[2]:
                self._seen = None, None, tag, -1, tag._version
            return
        versions = crow._version + col._version + tag._version
        self._seen = crow, col, tag, versions, tag._version
        if crow.is_cuda:
            gpu_plans.trust(crow, col)

    def _read_again(self) -> None:
        """Read the buffers at the next use: broadcasts, NumPy and ``.data`` change no version."""
        if self._seen is not UNSEEN:
            self._seen = *self._seen[:3], -1, self._seen[4]

    def _read_if_touched(self) -> None:
        """Read buffers that may have been averaged, because a copy of them would not show it."""
        tag = self._buffers["pattern_tag"]
        if tag is not None and tag is self._seen[2] and tag._version != self._seen[4]:
            self._read()

    def train(self, mode: bool = True) -> Self:
        """Do what ``nn.Module.train`` does; tools that exchange weights also call it."""
        self._read_again()
        return super().train(mode)


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


def _is_mixed(tag: Tensor, own: Tensor) -> bool:
    """Return whether a tag was mixed with the tag of a pattern other than its own."""
    return bool(tag[own == 0].any())


def _is_truncated(now: Tensor, known: Tensor) -> bool:
    """Return whether an average of integers that are all equal may have made ``now`` of them."""
    # 0.9 * 7 + 0.1 * 7 may become 6. All sevens then become 6.
    if now.shape != known.shape:
        return False
    lower = known - now
    if not bool(((lower == 0) | (lower == 1)).all()):
        return False
    return len(torch.unique(2 * known.long() + lower)) == len(torch.unique(known))


def _check_in_graph(tag: Tensor, own: Tensor, crow: Tensor, col: Tensor, known: KernelCSR) -> None:
    """Check buffers on every call to a traced graph, which cannot read their versions."""
    # A failed assertion on a GPU would destroy the CUDA context. The op is part of the extension.
    if tag.device.type != "cpu" or extension is None or is_exporting():
        return
    intact = is_intact(tag, own, crow, col, known.crow_indices, known.col_indices)
    torch._assert_async(intact, _OVERWRITTEN)


def _content_of(buffer: Tensor) -> Tensor | None:
    """Return the content of a buffer, or None if it has none or, in an ensemble, several."""
    while is_functorch_wrapped_tensor(buffer):
        if is_batchedtensor(buffer):
            return None
        buffer = get_unwrapped(buffer)
    if type(buffer) is not Tensor or buffer.is_meta:
        return None
    with torch._C._DisableFuncTorch():
        return buffer.detach()


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.equal(other.to(one.device))
