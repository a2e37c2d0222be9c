"""What a layer's state dicts share with it: the positions move with the values."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sparseconv.core.pattern import KernelCSR


class LiveState:
    """The values and indices in the state dicts of one layer.

    As in every module, these values are the layer's own memory. So are these indices: what
    overwrites the values at a change of the pattern overwrites them. A state dict that was not
    copied is always the network as it is.

    Attributes:
        values, pattern: the layer's.
        moves: how many times the pattern has changed.
        given: the memory of the indices in each state dict that still exists, with their name.
    """

    def __init__(self, values: Tensor, pattern: KernelCSR) -> None:
        self.values, self.pattern, self.moves = values.detach(), pattern, 0
        self.given: Any = WeakIdKeyDictionary()
        _LIVE[_memory(values)] = self

    def give(self, indices: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the indices for one state dict, and note when it got them."""
        for name, tensor in indices.items():
            self.given[tensor.untyped_storage()] = name
        first = indices["crow_indices"]
        _GIVEN[_memory(first)] = self, self.moves
        weakref.finalize(first.untyped_storage(), _GIVEN.pop, _memory(first), None)
        return indices

    def move(self, values: Tensor, pattern: KernelCSR) -> None:
        """Follow the layer; with another number of values it has left these, for no network."""
        if same_memory(values, self.values):
            for memory, name in self.given.items():
                indices: Any = pattern.on(memory.device)[name == "col_indices"]
                indices.new_empty(0).set_(memory, 0, indices.shape).copy_(indices)
        else:
            self.values = values.new_empty(0)
        self.pattern = pattern
        self.moves += 1


# By memory: other tensors and NumPy's arrays may hold it, too.
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
    """Refuse to load what is not a copy, or only in part, once the pattern has changed."""
    live, moves = _GIVEN.get(_memory(found["crow_indices"]), (None, 0))
    if live is None:
        live = _LIVE.get(_memory(found["values"]))
        stale = same_memory(found["values"], values) and not same_pattern
        if live is not None and same_memory(found["values"], live.values):
            stale |= pattern != live.pattern
    else:  # for another layer it is a network, if it is whole
        stale = live.moves > moves and (
            live is own or not same_memory(found["values"], live.values)
        )
    if stale:
        raise ValueError(
            "these entries are a layer's own memory, and its pattern has changed since this "
            "state_dict(); to keep a network, keep copy.deepcopy(model.state_dict()). Other layers "
            "may be loaded already"
        )


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same memory, and some."""
    return _memory(one) == _memory(other) and one.data_ptr() != 0


def _memory(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.data_ptr()
