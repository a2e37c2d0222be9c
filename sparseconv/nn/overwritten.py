"""Notice when a layer's pattern buffers were overwritten, as averages and DDP do."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from sparseconv.core.pattern import KernelCSR
from sparseconv.core.tracing import is_exporting, outside_tracing

_BIT = 2**30
_MIXED = (
    "the buffers of this layer were overwritten, so its values may belong to other positions than "
    "its pattern says. AveragedModel does that once the pattern of the averaged model has changed: "
    "hand it to DSTScheduler(averages=[...]), or start a new average. DistributedDataParallel does "
    "it where ranks built different patterns: call torch.manual_seed with one seed on all of them "
    "before, or load one state dict. After to_empty(), call reset_parameters() or load a state dict"
)
_OTHER = (
    "this layer's index buffers were replaced by those of another pattern, so its values would be "
    "used as weights at other positions: torch.func.functional_call cannot "
    "change a pattern. Load the state dict into a copy of the module, and call that"
)


def checksum_buffer(pattern: KernelCSR, device: torch.device) -> Tensor:
    """A buffer that differs between patterns, whatever torch's tools do to buffers.

    int32 ``(64,)``: the 32 bits of a checksum, then their complements; a 1 is stored as 2**30.
    Copying another pattern's tag over this one, or averaging with it, makes some 0 here another
    number; averaging with an equal one leaves every 0 a 0 (but may change the others: integers are
    cut off).
    """
    return pattern.cached(_tag).to(device, copy=True)


def checksum(pattern: KernelCSR) -> int:
    """The CRC-32 of a pattern, the same in any process."""
    return pattern.cached(_checksum)


def _checksum(pattern: KernelCSR) -> int:
    arrays = (pattern.crow_indices.numpy(), pattern.col_indices.numpy())
    return zlib.crc32(arrays[1].data, zlib.crc32(arrays[0].data))


def _tag(pattern: KernelCSR) -> Tensor:
    bits = torch.tensor([checksum(pattern) >> i & 1 for i in range(32)], device="cpu")
    return (torch.cat([bits, 1 - bits]) * _BIT).to(torch.int32)


class PatternCheck:
    """Compares a layer's buffers with its pattern, once after each change of them.

    The tag shows what was written into the buffers. ``torch.func.functional_call`` with another
    layer's state dict replaces the buffers instead, and keeps the tag.
    """

    def __init__(self, buffers: Mapping[str, Tensor | None] = {}) -> None:
        self.crow_indices = buffers.get("crow_indices")  # the layer's own
        self.col_indices = buffers.get("col_indices")
        self.tag: Any = None  # the one checked last, at this version
        self.version = -1

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied layer checks its tag again, but not its indices: averages truncate them.
        return PatternCheck, ({"crow_indices": self.crow_indices, "col_indices": self.col_indices},)

    def __call__(self, buffers: dict[str, Tensor | None], pattern: KernelCSR) -> None:
        """Refuse the buffers of another pattern.

        Raises:
            RuntimeError: the layer's values belong to another pattern, at least in part.
        """
        tag = buffers["pattern_tag"]
        if tag is not self.tag or tag._version != self.version:
            self._check_tag(tag, pattern)
        if not self.is_own(buffers):  # compared in each call: they may be modified
            for name in ("crow_indices", "col_indices"):
                _check_indices(buffers[name], getattr(pattern, name))

    def is_own(self, buffers: dict[str, Tensor | None]) -> bool:
        """Whether these are the index buffers that the layer registered, whatever their content."""
        return (
            buffers["col_indices"] is self.col_indices
            and buffers["crow_indices"] is self.crow_indices
        )

    def _check_tag(self, tag: Tensor | None, pattern: KernelCSR) -> None:
        # DistributedDataParallel writes into every buffer before every forward pass in training:
        # one check is enough, or each layer would wait for the GPU each time.
        if tag is not None and tag is self.tag and tag.is_cuda and torch.is_grad_enabled():
            return
        own = pattern.cached(_tag)
        content = _content(tag, len(own))
        if content is None:
            return
        if bool(content[..., own == 0].any()):
            raise RuntimeError(_MIXED)
        if type(tag) is Tensor and not tag.is_inference():  # those have no version
            self.tag, self.version = tag, tag._version


def _check_indices(buffer: Tensor | None, own: Tensor) -> None:
    with outside_tracing():
        content = _content(buffer, len(own))
        known = content is None or (
            content.shape[-1:] == own.shape and bool((content == own).all())
        )
    if not known:
        raise RuntimeError(_OTHER)


def _content(buffer: Tensor | None, size: int) -> Tensor | None:
    """The content of a buffer ``(size,)``, on the CPU; None if it has none.

    Under ``torch.vmap`` over an ensemble it is that of all members: ``(members, size)``.
    """
    if type(buffer) not in (Tensor, nn.Parameter) or buffer is None or buffer.is_meta:
        return None
    if not is_functorch_wrapped_tensor(buffer):
        return buffer.detach().cpu()
    while is_functorch_wrapped_tensor(buffer):
        buffer = get_unwrapped(buffer)
    with torch._C._DisableFuncTorch():
        content = buffer.detach().cpu()
        # The members may be along any dimension; the entries are along that of their size.
        if content.dim() > 1 and content.shape[-1] != size and size in content.shape:
            content = content.movedim(content.shape.index(size), -1)
        return content


def check_in_graph(
    check: PatternCheck, buffers: dict[str, Tensor | None], pattern: KernelCSR
) -> None:
    """``PatternCheck`` in a traced call: it has no version to read, so each call compares."""
    tag = buffers["pattern_tag"]
    if tag is None or tag.device.type != "cpu" or is_exporting():
        return  # a failed check would destroy the GPU's context
    own = pattern.cached(_tag)
    torch._assert_async(~((own == 0) & (tag != 0)).any(), _MIXED)
    if not check.is_own(buffers):
        for name, make in (("crow_indices", _crow_indices), ("col_indices", _col_indices)):
            there = buffers[name]
            if there is not None:
                if there.shape != getattr(pattern, name).shape:
                    raise RuntimeError(_OTHER)
                torch._assert_async((there == pattern.cached(make)).all(), _OTHER)


def _crow_indices(pattern: KernelCSR) -> Tensor:
    return pattern.crow_indices


def _col_indices(pattern: KernelCSR) -> Tensor:
    return pattern.col_indices
