"""Notice that somebody has written another pattern over a layer's own, as averages and DDP do."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from sparseconv.pattern import KernelCSR

_BIT = 2**30
_MIXED = (
    "the buffers of this layer were overwritten, so its values may stand at other positions than "
    "its pattern says. AveragedModel does that once the pattern of the averaged model has changed: "
    "hand it to DSTScheduler(averages=[...]), or begin a new average. DistributedDataParallel does "
    "it where ranks built different patterns: call torch.manual_seed with one seed on all of them "
    "before, or load one state dict. After to_empty(), call reset_parameters() or load a state dict"
)
_OTHER = (
    "col_indices stand in the place of this layer's buffer that are not those of its pattern, so "
    "its values would be taken for weights at other positions: torch.func.functional_call cannot "
    "change a pattern. Load the state dict into a copy of the module, and call that"
)


def pattern_tag(pattern: KernelCSR, device: torch.device) -> Tensor:
    """A buffer that tells two patterns apart, whatever torch's tools do to buffers.

    int32 ``(64,)``: each bit of a checksum and its opposite, times 2**30. Copying another
    pattern's tag over this one, or averaging with it, makes some 0 here another number; averaging
    with an equal one leaves every 0 a 0 (but may change the others: integers are cut off).
    """
    return pattern.derived(_tag).to(device, copy=True)


def checksum(pattern: KernelCSR) -> int:
    """A number that two different patterns share once in 2**32 times, the same in any process."""

    return pattern.derived(_checksum)


def _checksum(pattern: KernelCSR) -> int:
    arrays = (pattern.crow_indices.numpy(), pattern.col_indices.numpy())
    return zlib.crc32(arrays[1].data, zlib.crc32(arrays[0].data))


def _tag(pattern: KernelCSR) -> Tensor:
    bits = torch.tensor([checksum(pattern) >> i & 1 for i in range(32)], device="cpu")
    return (torch.cat([bits, 1 - bits]) * _BIT).to(torch.int32)


class PatternCheck:
    """Compares a layer's buffers with its pattern, once for each time that somebody changes them.

    Its tag shows what was written into the buffers. ``torch.func.functional_call`` with another
    layer's state dict puts other buffers in their place instead, and leaves the tag.
    """

    def __init__(self, col_indices: Tensor | None = None) -> None:
        self.col_indices = col_indices  # the buffer that was looked at
        self.tag: Any = None  # likewise, in this version
        self.version = -1

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied layer looks at its tag for itself. Not at its indices: averages cut them off.
        return PatternCheck, (self.col_indices,)

    def __call__(self, buffers: dict[str, Tensor | None], pattern: KernelCSR) -> None:
        """Refuse the buffers of another pattern.

        Raises:
            RuntimeError: the layer's values belong to another pattern, at least in part.
        """
        tag, col = buffers["pattern_tag"], buffers["col_indices"]
        if tag is not self.tag or tag._version != self.version:
            self._look_at_tag(tag, pattern)
        if col is not self.col_indices:
            self._look_at_indices(col, pattern)

    def _look_at_tag(self, tag: Tensor | None, pattern: KernelCSR) -> None:
        # DistributedDataParallel writes into every buffer before every forward pass in training:
        # the first look is enough, or each layer would wait for the GPU each time.
        if tag is not None and tag is self.tag and tag.is_cuda and torch.is_grad_enabled():
            return
        own = pattern.derived(_tag)
        content = _content(tag, len(own))
        if content is None:
            return
        if bool(content[..., own == 0].any()):
            raise RuntimeError(_MIXED)
        if type(tag) is Tensor and not tag.is_inference():  # those do not count what is written
            self.tag, self.version = tag, tag._version

    def _look_at_indices(self, col: Tensor | None, pattern: KernelCSR) -> None:
        content = _content(col, pattern.nnz)
        if content is None:
            return
        if content.shape[-1:] != (pattern.nnz,) or bool((content != pattern.col_indices).any()):
            raise RuntimeError(_OTHER)
        if col is not None and not is_functorch_wrapped_tensor(col):  # those end with their vmap
            self.col_indices = col


def _content(buffer: Tensor | None, size: int) -> Tensor | None:
    """The numbers in a buffer ``(size,)``, on the CPU; None if it has none to look at.

    ``torch.vmap`` runs over those of an ensemble's members together: ``(members, size)``.
    """
    if type(buffer) is not Tensor or buffer.is_meta:
        return None
    if not is_functorch_wrapped_tensor(buffer):
        return buffer.detach().cpu()
    while is_functorch_wrapped_tensor(buffer):
        buffer = get_unwrapped(buffer)
    with torch._C._DisableFuncTorch():
        content = buffer.detach().cpu()
        # The members may be counted along any dimension; the entries along the one of their size.
        if content.dim() > 1 and content.shape[-1] != size and size in content.shape:
            content = content.movedim(content.shape.index(size), -1)
        return content


def check_in_graph(
    buffers: dict[str, Tensor | None], pattern: KernelCSR, check: PatternCheck
) -> None:
    """The same where a call is traced: there is no version to look at, so each call compares."""
    tag, col = buffers["pattern_tag"], buffers["col_indices"]
    if tag is None or tag.device.type != "cpu" or torch.compiler.is_exporting():
        return  # a failed check would take the GPU's context with it
    own = pattern.derived(_tag)
    torch._assert_async(~((own == 0) & (tag != 0)).any(), _MIXED)
    if col is not None and col is not check.col_indices:
        if col.shape != pattern.col_indices.shape:
            raise RuntimeError(_OTHER)
        torch._assert_async((col == pattern.derived(_col_indices)).all(), _OTHER)


def _col_indices(pattern: KernelCSR) -> Tensor:
    return pattern.col_indices
