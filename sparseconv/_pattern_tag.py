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


class TagCheck:
    """Compares a layer's tag with its pattern, once for each time that somebody writes into it."""

    def __init__(self) -> None:
        self.tag: Any = None  # the one that was looked at, in this version
        self.version = -1

    def __reduce__(self) -> tuple[Any, ...]:
        return TagCheck, ()  # a copied layer looks for itself

    def __call__(self, tag: Tensor | None, pattern: KernelCSR) -> None:
        """Refuse the tag of another pattern.

        Raises:
            RuntimeError: the layer's values belong to another pattern, at least in part.
        """
        if tag is self.tag and tag._version == self.version:
            return
        # DistributedDataParallel writes into every buffer before every forward pass in training:
        # the first look is enough, or each layer would wait for the GPU each time.
        if tag is self.tag and tag.is_cuda and torch.is_grad_enabled():
            return
        if type(tag) is not Tensor or tag.is_meta:
            return  # no content to look at
        own = pattern.derived(_tag)
        if is_functorch_wrapped_tensor(tag):
            _check_wrapped(tag, own)
            return
        if bool(tag.cpu()[own == 0].any()):
            raise RuntimeError(_MIXED)
        if not tag.is_inference():  # those do not count what is written
            self.tag, self.version = tag, tag._version


def _check_wrapped(tag: Tensor, own: Tensor) -> None:
    """Compare all tags that ``torch.vmap`` runs over, those of an ensemble's members for one."""
    while is_functorch_wrapped_tensor(tag):
        tag = get_unwrapped(tag)
    with torch._C._DisableFuncTorch():
        # The members may be counted along any dimension; the 64 entries are the one of that size.
        if tag.dim() > 1 and tag.shape[-1] != len(own):
            tag = tag.movedim(tag.shape.index(len(own)), -1)
        if bool(tag.detach().cpu()[..., own == 0].any()):
            raise RuntimeError(_MIXED)


def check_in_graph(tag: Tensor | None, pattern: KernelCSR) -> None:
    """The same where a call is traced: there is no version to look at, so each call compares."""
    if tag is None or tag.device.type != "cpu" or torch.compiler.is_exporting():
        return  # a failed check would take the GPU's context with it
    own = pattern.derived(_tag)
    torch._assert_async(~((own == 0) & (tag != 0)).any(), _MIXED)
