"""Keep a layer's state dicts valid when its pattern changes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sparseconv.core.pattern import KernelCSR


class LiveState:
    """Track the values and indices in the state dicts of one layer.

    As with every module, the values in a state dict share memory with the layer. A change to the
    pattern also overwrites the indices, so a state dict that was not copied always describes the
    current network.

    Attributes:
        values, pattern: the layer's values and pattern.
        moves: how many times the pattern has changed.
        given: the index tensors in state dicts that still exist, as a map from their memory to
            their name.
    """

    def __init__(self, values: Tensor, pattern: KernelCSR) -> None:
        self.values, self.pattern, self.moves = values.detach(), pattern, 0
        self.given: Any = WeakIdKeyDictionary()
        _LIVE[_memory(values)] = self

    def give(self, indices: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the indices for one state dict, and record the number of moves so far."""
        for name, tensor in indices.items():
            self.given[tensor.untyped_storage()] = name
        first = indices["crow_indices"]
        _GIVEN[_memory(first)] = self, self.moves
        weakref.finalize(first.untyped_storage(), _GIVEN.pop, _memory(first), None)
        return indices

    def move(self, values: Tensor, pattern: KernelCSR) -> None:
        """Update state dicts after a change to the pattern; if nnz changes, they become invalid."""
        if same_memory(values, self.values):
            for memory, name in self.given.items():
                indices: Any = pattern.on(memory.device)[name == "col_indices"]
                indices.new_empty(0).set_(memory, 0, indices.shape).copy_(indices)
        else:
            self.values = values.new_empty(0)
        self.pattern = pattern
        self.moves += 1


# By memory, because other tensors and NumPy arrays may hold it too.
_LIVE: weakref.WeakValueDictionary[tuple[torch.device, int], LiveState]
_LIVE = weakref.WeakValueDictionary()
_GIVEN: dict[tuple[torch.device, int], tuple[LiveState, int]] = {}


def check_copied(
    own: LiveState | None,
    values: Tensor,
    found: Mapping[str, Tensor],
    pattern: KernelCSR,
    same_pattern: bool,
) -> None:
    """Reject entries sharing memory, even partly, with a layer whose pattern has since changed."""
    live, moves = _GIVEN.get(_memory(found["crow_indices"]), (None, 0))
    if live is None:
        live = _LIVE.get(_memory(found["values"]))
        stale = same_memory(found["values"], values) and not same_pattern
        if live is not None and same_memory(found["values"], live.values):
            stale |= pattern != live.pattern
    else:  # another layer may load them, if they are complete
        stale = live.moves > moves and (
            live is own or not same_memory(found["values"], live.values)
        )
    if stale:
        raise ValueError(
            "expected a copy of a state dict, but these entries share memory with a layer whose "
            "pattern has changed since state_dict() was called; to save a network, use "
            "copy.deepcopy(model.state_dict()). Other layers may already have been loaded"
        )


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors share the same nonempty memory."""
    return _memory(one) == _memory(other) and one.data_ptr() != 0


def _memory(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.data_ptr()
