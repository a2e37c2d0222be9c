"""What a layer's state dicts share with it: the positions move with the values."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparseconv.core.pattern import KernelCSR


class LiveState:
    """The values and indices in the state dicts of one layer.

    As in every module, these values are the layer's own memory. So are these indices: what
    overwrites the values at a change of the pattern overwrites them. A state dict that was not
    copied is always the network as it is.

    Attributes:
        values, indices: the tensors, indices by name.
    """

    def __init__(self, values: Tensor, indices: dict[str, Tensor]) -> None:
        self.values, self.indices, self.moves = values.detach(), indices, 0

    def give(self) -> dict[str, Tensor]:
        """Return the indices for one state dict, and note when it got them."""
        given = {name: tensor.detach() for name, tensor in self.indices.items()}
        _GIVEN[given["crow_indices"]] = self, self.moves
        return given

    def move(self, values: Tensor, pattern: KernelCSR) -> None:
        """Follow the layer; with another number of values it has left these, for no network."""
        if same_memory(values, self.values):
            for name, tensor in self.indices.items():
                tensor.copy_(getattr(pattern, name))
        else:
            self.values = values.new_empty(0)
        self.moves += 1


_GIVEN = WeakTensorKeyDictionary()


def check_copied(
    own: LiveState | None, values: Tensor, found: Mapping[str, Tensor], same_pattern: bool
) -> None:
    """Refuse to load what is not a copy, or only in part, once the pattern has changed."""
    live, moves = _GIVEN.get(found["crow_indices"], (None, 0))  # type: ignore[no-untyped-call]
    if live is None:
        stale = same_memory(found["values"], values) and not same_pattern
    else:  # for another layer it is a network, if it is whole
        stale = live.moves > moves and (
            live is own or not same_memory(found["values"], live.values)
        )
    if stale:
        raise ValueError(
            "these entries are a layer's own memory, and its pattern has changed since this "
            "state_dict(); to keep a network, keep copy.deepcopy(model.state_dict())"
        )


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same memory, and some."""
    return one.device == other.device and one.data_ptr() == other.data_ptr() != 0
