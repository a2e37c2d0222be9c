"""Record which weights have ever been active, using one bit per weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseconv.core.pattern import KernelCSR, positions_of
from sparseconv.nn.sparse_layer import SparseLayer


def active_bits(pattern: KernelCSR) -> Tensor:
    """Return uint8 ``((numel + 7) // 8,)``: one bit per weight, set if the weight is active."""
    crow, col = pattern.anywhere()
    at = positions_of(crow, col, pattern.shape)
    bits = at.new_zeros((pattern.numel + 7) // 8, dtype=torch.uint8)
    return bits.index_add_(0, at >> 3, (1 << (at & 7)).to(torch.uint8))


class EverActive:
    """Record which weights of some layers have ever been active.

    Attributes:
        bits: uint8 ``((numel + 7) // 8,)`` by layer name, on the device that updates the layer.

    Source: Liu et al. 2021 (ITOP).
    """

    def __init__(self, layers: Mapping[str, SparseLayer]) -> None:
        self._layers = layers
        self.bits = {
            name: torch.zeros((layer.pattern.numel + 7) // 8, dtype=torch.uint8, device="cpu")
            for name, layer in layers.items()
        }
        self._recorded: dict[str, KernelCSR] = {}  # the latest patterns in the bits
        self.record()

    def record(self) -> None:
        """Mark the weights that are active now, because other code may have set a pattern."""
        for name, layer in self._layers.items():
            self.add(name, layer.pattern)

    def add(self, name: str, pattern: KernelCSR) -> None:
        """Mark the active weights of a layer's new pattern."""
        if self._recorded.get(name) is pattern:
            return
        self._recorded[name] = pattern
        bits = pattern.cached(active_bits)
        self.bits[name] = self.bits[name].to(bits.device).bitwise_or_(bits)

    def rate(self) -> float:
        """Return the share of all weights that have ever been active."""
        self.record()
        ever = sum(int((bits >> bit & 1).sum()) for bits in self.bits.values() for bit in range(8))
        return ever / max(1, sum(layer.pattern.numel for layer in self._layers.values()))

    def load(self, bits: Mapping[str, Tensor]) -> None:
        """Continue from these bits."""
        self.bits, self._recorded = dict(bits), {}
