"""A network as units: the smallest sets of channels that can be removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
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
    def channel_dim(self) -> int:
        """The dimension of its input, and of its output, that counts the channels."""
        return -1 if isinstance(self.module, nn.Linear) else 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel has its own output channels."""
        return self.groups > 1 and self.groups == len(self.inputs)


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

    def columns(self, units: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the layers that read some units: each with those that it reads, ``(n, m)`` of them.

        The last are its input channels: m > 1 where a unit is read several times, as after
        ``Flatten``. A layer is yielded once per multiplicity m. Layers that hand units on, which
        are depthwise ones and BatchNorm, are left out.
        """
        for name, layer in self.layers.items():
            if not layer.has_filters or layer.is_depthwise:
                continue
            times = (layer.inputs == units[:, None]).sum(1)
            for m in torch.unique(times).tolist():
                if m:
                    some = units[times == m]
                    yield name, some, places(layer.inputs, some)

    def macs(self, kept: Tensor | None = None) -> int:
        """Multiply-adds for one series, if only some units (bool) are kept."""
        total = self.other_macs
        for layer in self.layers.values():
            total += layer.samples * self.weights(layer, kept)
        return total

    def weights(self, layer: Layer, kept: Tensor | None = None) -> int:
        """Active weights of a layer, without its bias."""
        if not layer.has_filters:
            return 0
        rows, columns = kept_channels(layer.outputs, kept), kept_channels(layer.inputs, kept)
        module = layer.module
        if isinstance(module, SparseConv1d):
            return int(active_kept(layer, rows, columns).sum())
        taps = module.kernel_size[0] if isinstance(module, nn.Conv1d) else 1
        inputs = 1 if layer.is_depthwise else int(columns.sum()) // layer.groups
        return int(rows.sum()) * inputs * taps


def kept_channels(channels: Tensor, kept: Tensor | None) -> Tensor:
    """Bool, which channels stay when some units are kept; None keeps all."""
    if kept is None:
        return torch.ones(len(channels), dtype=torch.bool)
    return torch.cat([kept, torch.ones(1, dtype=torch.bool)])[channels]  # FIXED is the last


def columns_in_group(layer: Layer, columns: Tensor) -> Tensor:
    """Which of a weight's input channels, those of one group, stay: ``(C_in // groups,)``."""
    if layer.is_depthwise:
        return torch.ones(1, dtype=torch.bool)
    return columns[: len(columns) // layer.groups]  # tracing has tied the groups to each other


def active_kept(layer: Layer, rows: Tensor, columns: Tensor) -> Tensor:
    """``(nnz,)`` bool: the active weights of a sparse layer whose channels both stay."""
    assert isinstance(layer.module, SparseConv1d)
    _, inputs, taps = layer.module.pattern.shape
    positions = layer.module.pattern.positions()
    kernel = positions // taps
    return rows[kernel // inputs] & columns_in_group(layer, columns)[kernel % inputs]


def places(channels: Tensor, units: Tensor) -> Tensor:
    """Return ``(n, m)``: the places of each of n units among a layer's channels, m of them."""
    return torch.stack([(channels == unit).nonzero()[:, 0] for unit in units])


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
        sets.append(UnitSet(units, {n: places(layers[n].outputs, units) for n, *_ in made}))
    return Channels(layers, tuple(sets), len(number), other_macs)


def _region(module: nn.Module, row: int) -> int:
    """Return the kernel group of a sparse layer's filter: those of unlike reach do not compete."""
    if isinstance(module, SparseConv1d):
        for index, ((first, end), _) in enumerate(module.regions):
            if first <= row < end:
                return index
    return 0
