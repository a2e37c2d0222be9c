"""A network as units: the smallest sets of channels that can be removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseconv.nn.conv import SparseConv1d

FIXED = -1  # the unit of a channel that stays


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that can lose channels.

    Attributes:
        module: a convolution, ``nn.Linear`` or ``nn.BatchNorm1d``.
        outputs, inputs: int64, the unit of each output and input channel, ``FIXED`` where it stays.
        samples: at how many points of a series the layer computes.
        groups: of a convolution; 1 for others.
    """

    module: nn.Module
    outputs: Tensor
    inputs: Tensor
    samples: int
    groups: int

    @property
    def has_filters(self) -> bool:
        """Whether its output channels have weights of their own: all but BatchNorm's."""
        return not isinstance(self.module, nn.BatchNorm1d)

    @property
    def reads(self) -> bool:
        """Whether it mixes its inputs: BatchNorm and depthwise layers hand each of them on."""
        return self.has_filters and not self.is_depthwise

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel has its own output channels."""
        return self.groups > 1 and self.groups == len(self.inputs)

    @property
    def channel_dim(self) -> int:
        """The dimension of its input, and of its output, that counts the channels."""
        return -1 if isinstance(self.module, nn.Linear) else 1

    def columns(self, kept: Tensor | None) -> Tensor:
        """Which input channels of its weight ``(C_out, C_in // groups, K)`` stay, as bool."""
        if self.is_depthwise:
            return torch.ones(1, dtype=torch.bool)
        # Tracing has tied the groups to each other.
        return kept_channels(self.inputs, kept)[: len(self.inputs) // self.groups]

    def weights(self, kept: Tensor | None = None) -> int:
        """Count its active weights, without its bias, if only some units (bool) are kept."""
        if not self.has_filters:
            return 0
        rows, columns = kept_channels(self.outputs, kept), self.columns(kept)
        if isinstance(self.module, SparseConv1d):
            return int(self.module.pattern.to_mask()[rows][:, columns].sum())
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return int(rows.sum()) * int(columns.sum()) * weight[0, 0].numel()

    def parameters(self, kept: Tensor | None = None) -> int:
        """Count its active weights and biases, if only some units (bool) are kept."""
        names = ("bias",) if self.has_filters else ("weight", "bias")
        each = sum(getattr(self.module, name) is not None for name in names)
        return self.weights(kept) + each * int(kept_channels(self.outputs, kept).sum())


@dataclass(frozen=True, eq=False)
class UnitSet:
    """Units made by the same layers, which compete with each other.

    Attributes:
        units: ``(n,)`` int64, ascending.
        rows: for each layer that has filters of these units, ``(n, m)``: the output channels of
            each unit, m of them.
    """

    units: Tensor
    rows: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The layers."""
        return " + ".join(self.rows)


@dataclass(frozen=True, eq=False)
class Channels:
    """A network as units: the smallest sets of channels that can be removed.

    Attributes:
        layers: by name, in the order of computation.
        sets: what competes with each other.
        n_units: how many units there are, over all sets.
        other_macs: multiply-adds of one series outside of the layers, which stay.
    """

    layers: Mapping[str, Layer]
    sets: tuple[UnitSet, ...]
    n_units: int
    other_macs: int = 0

    def macs(self, kept: Tensor | None = None) -> int:
        """Count multiply-adds of one series, if only some units (bool) are kept."""
        layers = self.layers.values()
        return self.other_macs + sum(layer.samples * layer.weights(kept) for layer in layers)

    def zeros(self) -> Tensor:
        """Return a score of 0 for each unit, float64."""
        return torch.zeros(self.n_units, dtype=torch.float64)

    def sums(self, values: Tensor, units: Tensor) -> Tensor:
        """Add up values ``(..., channels)`` by their channels' units: ``(..., n_units)``."""
        places = torch.where(units < 0, self.n_units, units)  # the last: channels that stay
        found = values.new_zeros(*values.shape[:-1], self.n_units + 1)
        return found.index_add_(-1, places, values)[..., :-1]


def kept_channels(channels: Tensor, kept: Tensor | None) -> Tensor:
    """Return a bool mask: the channels that stay when some units are kept; None keeps all."""
    if kept is None:
        return torch.ones(len(channels), dtype=torch.bool)
    return torch.cat([kept, torch.ones(1, dtype=torch.bool)])[channels]  # FIXED is the last


class Numbers:
    """The numbers of channels, of which some have become one: a disjoint-set forest."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.fixed: list[bool] = []

    def new(self, count: int, fixed: bool = False) -> Tensor:
        first = len(self.parent)
        self.parent += range(first, first + count)
        self.fixed += [fixed] * count
        return torch.arange(first, first + count)

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def unite(self, a: Tensor, b: Tensor) -> None:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            i, j = self.root(i), self.root(j)
            self.parent[j] = i
            self.fixed[i] = self.fixed[i] or self.fixed[j]

    def fix(self, numbers: Tensor) -> None:
        for number in numbers.tolist():
            self.fixed[self.root(number)] = True

    def are_fixed(self, numbers: Tensor) -> bool:
        return all(self.fixed[self.root(number)] for number in numbers.tolist())


class TracedLayer(NamedTuple):
    """A layer, the numbers of its channels, and at how many points it computed, of all series."""

    module: nn.Module
    outputs: Tensor
    inputs: Tensor
    samples: int


def numbered_units(
    traced: Mapping[str, TracedLayer], numbers: Numbers, n_series: int, other_macs: int
) -> Channels:
    """Number the units, and put those that the same layers make into sets."""
    roots = {
        name: [list(map(numbers.root, side.tolist())) for side in (layer.outputs, layer.inputs)]
        for name, layer in traced.items()
    }
    # Of each unit the layers that have filters for it, how many, and in which kernel group.
    makers: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for name, found in traced.items():
        if isinstance(found.module, nn.BatchNorm1d):
            continue
        rows: dict[int, list[int]] = defaultdict(list)
        for row, root in enumerate(roots[name][0]):
            if not numbers.fixed[root]:
                rows[root].append(row)
        for root, own in rows.items():
            makers[root].append((name, len(own), _region(found.module, own[0])))
    number = {root: unit for unit, root in enumerate(makers)}
    layers = {}
    for name, found in traced.items():
        outputs, inputs = (
            torch.tensor([number.get(root, FIXED) for root in side], dtype=torch.int64)
            for side in roots[name]
        )
        groups = int(getattr(found.module, "groups", 1))
        layers[name] = Layer(found.module, outputs, inputs, found.samples // n_series, groups)
    alike: dict[Any, list[int]] = defaultdict(list)
    for root, made in makers.items():
        alike[tuple(made)].append(number[root])
    sets = []
    for made, members in alike.items():
        units = torch.tensor(sorted(members))
        outputs_of = {
            name: torch.stack([(layers[name].outputs == unit).nonzero()[:, 0] for unit in units])
            for name, *_ in made
        }
        sets.append(UnitSet(units, outputs_of))
    return Channels(layers, tuple(sets), len(number), other_macs)


def _region(module: nn.Module, row: int) -> int:
    """Return the kernel group of a sparse layer's filter: those of unlike reach do not compete."""
    if isinstance(module, SparseConv1d):
        for index, ((first, end), _) in enumerate(module.regions):
            if first <= row < end:
                return index
    return 0
