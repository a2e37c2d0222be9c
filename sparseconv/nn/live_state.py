"""What a layer's state dicts share with it: the positions move with the values."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakValueDictionary

from torch import Tensor

from sparseconv.core.pattern import KernelCSR


class LiveState:
    """The values and indices in the state dicts of one layer.

    As in every module, these values are the layer's own memory. So are these indices: what
    overwrites the values at a change of the pattern overwrites them. A state dict that was not
    copied is always the network as it is.

    Attributes:
        values, indices: the tensors, indices by name.
        moved: whether the pattern has changed since the latest state dict.
    """

    def __init__(self, values: Tensor, indices: dict[str, Tensor]) -> None:
        self.values, self.indices, self.moved = values.detach(), indices, False
        _LIVE[indices["crow_indices"].data_ptr()] = self

    def move(self, values: Tensor, pattern: KernelCSR) -> None:
        """Follow the layer, unless it has left these values for others."""
        for name, tensor in self.indices.items() if same_memory(values, self.values) else ():
            tensor.copy_(getattr(pattern, name))
        self.moved = True


_LIVE: WeakValueDictionary[int, LiveState] = WeakValueDictionary()  # by the memory of the rows


def check_copied(
    own: LiveState | None, values: Tensor, found: Mapping[str, Tensor], same_pattern: bool
) -> None:
    """Refuse to load what is not a copy, or only in part, once the pattern has changed."""
    live = _LIVE.get(found["crow_indices"].data_ptr())
    if live is None:
        stale = same_memory(found["values"], values) and not same_pattern
    else:  # for another layer it is a network, if it is whole
        stale = live.moved and (live is own or not same_memory(found["values"], live.values))
    if stale:
        raise ValueError(
            "these entries are a layer's own memory, and its pattern has changed since its latest "
            "state_dict(); to keep a network, keep copy.deepcopy(model.state_dict())"
        )


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same memory, and some."""
    return one.device == other.device and one.data_ptr() == other.data_ptr() != 0
