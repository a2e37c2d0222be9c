"""Read a layer's pattern from its buffers; detect tools that average the buffers of two layers."""

from __future__ import annotations

import os
import threading
import zlib
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.compiler import is_dynamo_compiling

from sparseconv.core.checks import OVERWRITTEN
from sparseconv.core.pattern import KernelCSR
from sparseconv.core.tracing import is_exporting, outside_tracing
from sparseconv.ops import gpu_plans

INDICES = ("crow_indices", "col_indices")
# In place of the versions that were read: the content must be the pattern, or may be any.
UNREAD, UNSEEN = -1, -2
# A thread that reads a layer must not take half of what another thread writes for the pattern.
WRITING = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child must not wait for a thread that it does not have
    os.register_at_fork(
        before=WRITING.acquire, after_in_parent=WRITING.release, after_in_child=WRITING.release
    )


class PatternBuffers(nn.Module):
    """Hold a pattern as the content of two buffers.

    ``_pattern`` is the latest reading. Before the first one, anything may write the buffers. Later,
    their content changes only with ``load_state_dict``, ``set_pattern`` and assigned tensors.
    """

    crow_indices: Tensor
    col_indices: Tensor
    _pattern: KernelCSR
    # Both buffers, and the sum of their versions when they were read.
    _seen: tuple[Any, Any, int] = (None, None, UNSEEN)

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
        held = self._buffers
        crow: Any = held["crow_indices"]
        col: Any = held["col_indices"]
        seen = self._seen
        if is_dynamo_compiling():
            if crow is seen[0] and col is seen[1]:  # not those of functional_call
                _check_in_graph(crow, col, self._pattern)
            return crow, col
        if crow is not seen[0] or col is not seen[1] or crow._version + col._version != seen[2]:
            self._read()
        return crow, col

    def _read(self) -> None:
        """Read buffers that others may have written or replaced; see ``pattern``."""
        with WRITING, outside_tracing():
            held: list[Any] = [self._buffers[name] for name in INDICES]
            *seen, versions = self._seen
            in_place = versions != UNSEEN and held[0] is seen[0] and held[1] is seen[1]
            crow, col = map(_content_of, held)
            if crow is None or col is None:
                return  # nothing to read, or an ensemble
            if in_place and versions != UNREAD and crow.is_cuda and torch.is_grad_enabled():
                # In training, DistributedDataParallel writes to all buffers before each forward
                # pass. One check is enough: further ones would make each layer wait for the GPU.
                gpu_plans.trust(crow, col, same=True)
            elif not all(map(_equal, (crow, col), self._pattern.indices_where_stored())):
                self._accept(crow, col, in_place)
            self._mark_seen()

    def _accept(self, crow: Tensor, col: Tensor, in_place: bool) -> None:
        """Make assigned tensors the pattern; restore one that was averaged with itself."""
        pattern = self._pattern
        if in_place:
            arrays = (crow, col), pattern.indices_where_stored()
            if not _is_truncated(*(torch.cat([x.cpu() for x in pair]) for pair in arrays)):
                raise RuntimeError(OVERWRITTEN)
        else:
            try:
                pattern = KernelCSR(crow, col, pattern.shape, pattern.block)
            except (TypeError, ValueError) as error:
                raise RuntimeError(
                    f"the indices of this layer were overwritten, and are not a pattern: {error}. "
                    "After to_empty(), call reset_parameters() or load a state dict"
                ) from error
        # Not every write counts as a version, but the kernels' plans depend on versions.
        for array, new in zip((crow, col), pattern.indices_where_stored(), strict=True):
            if not array.is_inference():
                array.copy_(new)
        self._pattern = pattern

    def _mark_seen(self) -> None:
        """Record that the buffers contain the pattern."""
        crow, col = self.crow_indices, self.col_indices
        # Inference tensors have no version, and a transform's wrapper is used once.
        if any(t.is_inference() or is_functorch_wrapped_tensor(t) for t in (crow, col)):
            return
        self._seen = crow, col, crow._version + col._version
        if crow.is_cuda:
            gpu_plans.trust(crow, col)

    def _read_later(self, how: int) -> None:
        """Let the next use read the buffers: ``UNREAD`` or ``UNSEEN``."""
        crow, col = self.crow_indices, self.col_indices
        known = not (crow.is_inference() or col.is_inference())
        self._seen = (crow, col, how) if known else (None, None, how)

    def _read_again(self) -> None:
        """Read the buffers at the next use: broadcasts, NumPy and ``.data`` change no version."""
        if self._seen[2] != UNSEEN:
            self._seen = *self._seen[:2], UNREAD

    def _check_overwritten(self) -> None:
        """Raise an error if a copy or a state dict would contain indices that were overwritten."""
        if self._seen[2] != UNSEEN:
            self._indices()

    def train(self, mode: bool = True) -> Self:
        """Do what ``nn.Module.train`` does; tools that exchange weights also call it."""
        self._read_again()
        return super().train(mode)


def checksum(pattern: KernelCSR) -> int:
    """Return a 32-bit checksum of a pattern, which is the same in every process."""
    arrays = torch.cat(pattern.indices_where_stored()).cpu()
    return zlib.crc32(arrays.numpy().tobytes(), pattern.block[0] << 16 | pattern.block[1])


def _is_truncated(now: Tensor, known: Tensor) -> bool:
    """Return whether an average of integers that are all equal may have made ``now`` of them."""
    # 0.9 * 7 + 0.1 * 7 may become 6. All sevens then become 6.
    if now.shape != known.shape:
        return False
    lower = known - now
    if not bool(((lower == 0) | (lower == 1)).all()):
        return False
    return len(torch.unique(2 * known.long() + lower)) == len(torch.unique(known))


def _check_in_graph(crow: Tensor, col: Tensor, known: KernelCSR) -> None:
    """Check buffers on every call to a traced graph, which cannot read their versions."""
    # A failed assertion on a GPU would destroy the CUDA context.
    if crow.device.type != "cpu" or is_exporting():
        return
    # The compiler's backend knows this form.
    intact = (crow == known.crow_indices).all() & (col == known.col_indices).all()
    torch._assert_async(intact, OVERWRITTEN)


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
