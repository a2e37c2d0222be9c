"""The tensors that a layer's state dicts share with it: their positions move with their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from sparseconv.core.pattern import KernelCSR

_NOT_A_COPY = (
    "these entries are a layer's own memory, and its pattern has changed since its latest "
    "state_dict(); to keep a network while it trains, keep copy.deepcopy(model.state_dict())"
)


class LiveState:
    """What the state dicts of one layer hold of its values and its pattern.

    As in every module, the values in a state dict are the layer's own memory. So are the indices
    here: what overwrites the values at a change of the pattern overwrites these too. A state dict
    that was not copied is always the network as it is.

    Attributes:
        indices: the tensors in state dicts, by name; their content is that of the pattern.
        moved: whether the pattern has changed since they were last given out.
    """

    def __init__(self, values: Tensor, indices: dict[str, Tensor]) -> None:
        self._values, self.indices, self.moved = values.detach(), indices, False
        _LIVE[indices["crow_indices"].data_ptr()] = self

    def is_of(self, values: Tensor) -> bool:
        """Whether these are the same values, and not others in new memory."""
        return _same_memory(self._values, values)

    def holds(self, values: Tensor, indices: Mapping[str, Tensor]) -> bool:
        """Whether a state dict of these values and indices may hold these tensors."""
        return self.is_of(values) and all(indices[n].equal(t) for n, t in self.indices.items())

    def move(self, values: Tensor, pattern: KernelCSR) -> None:
        """Follow the layer, which has another pattern now."""
        for name, tensor in self.indices.items():
            if self.is_of(values):
                tensor.copy_(getattr(pattern, name))
            elif values.shape != self._values.shape:  # what they were is at no time the network
                tensor.fill_(-1)
        self.moved = True


_LIVE: WeakValueDictionary[int, LiveState] = WeakValueDictionary()  # by the memory of the rows


def check_whole(found: Mapping[str, Any]) -> None:
    """Refuse indices that ``LiveState.move`` has overwritten because the values could not be."""
    if int(found["crow_indices"].flatten()[:1].sum()) < 0:
        raise ValueError(_NOT_A_COPY)


def check_copied(values: Tensor, found: Mapping[str, Tensor], same_pattern: bool) -> None:
    """Refuse entries for a layer with ``values`` of which a part is not a copy, and has changed."""
    live = _LIVE.get(found["crow_indices"].data_ptr())
    own = _same_memory(found["values"], values)
    if live is None:
        stale = own and not same_pattern
    else:
        stale = live.moved and (own or not live.is_of(found["values"]))
    if stale:
        raise ValueError(_NOT_A_COPY)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.data_ptr() == other.data_ptr() != 0
