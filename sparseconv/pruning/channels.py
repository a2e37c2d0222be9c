"""Divide the channels of a network into units, which are removed as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sparseconv.nn.conv import SparseConv1d

FIXED = -1  # the unit of every channel that cannot be removed
FILTERED = (nn.Conv1d, nn.ConvTranspose1d, SparseConv1d, nn.Linear)
NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)  # outputs match inputs one to one
PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")  # a norm's tensors


@dataclass(frozen=True, eq=False)
class Layer:
    """Describe a layer that can lose channels.

    Attributes:
        module: a convolution, ``nn.Linear``, or a batch, instance or group norm.
        outputs, inputs: int64, the unit of each channel, or ``FIXED`` if the channel is kept.
        samples: the number of output positions for one series, or of input positions for a
            transposed convolution.
    """

    module: nn.Module
    outputs: Tensor
    inputs: Tensor
    samples: int

    @property
    def groups(self) -> int:
        """Return the number of groups of a convolution, or 1 for any other layer."""
        return int(getattr(self.module, "groups", 1))

    @property
    def has_filters(self) -> bool:
        """Return whether the layer has filters; norms have none."""
        return isinstance(self.module, FILTERED)

    @property
    def reads(self) -> bool:
        """Return whether the layer mixes its input channels; norms and depthwise layers do not."""
        return self.has_filters and not self.is_depthwise

    @property
    def is_depthwise(self) -> bool:
        """Return whether each input channel has its own output channels."""
        return self.groups > 1 and self.groups == len(self.inputs)

    @property
    def channel_dim(self) -> int:
        """Return the dimension of the channels in the input and the output."""
        return -1 if isinstance(self.module, nn.Linear) else 1

    def columns(self, kept: Tensor | None = None) -> Tensor:
        """Return a bool mask of the weight's kept input channels, ``(C_in // groups,)``."""
        if self.is_depthwise:
            return torch.ones(1, dtype=torch.bool)
        # Tracing ties the groups, so all of them lose the same columns.
        return kept_channels(self.inputs, kept)[: len(self.inputs) // self.groups]

    def weights(self, kept: Tensor | None = None) -> int:
        """Count the active weights, without biases, that remain with the ``kept`` units (bool)."""
        if not self.has_filters:
            return 0
        rows, columns = kept_channels(self.outputs, kept), self.columns(kept)
        if isinstance(self.module, SparseConv1d):
            return int(self.module.pattern.to_mask()[rows][:, columns].sum())
        weight: Any = self.module.weight
        one = filters_first(self.module, weight)[0, 0]
        return int(rows.sum()) * int(columns.sum()) * one.numel()

    def parameters(self, kept: Tensor | None = None) -> int:
        """Count the active weights and the biases; see ``weights``."""
        names = ("bias",) if self.has_filters else ("weight", "bias")
        each = sum(getattr(self.module, name) is not None for name in names)
        return self.weights(kept) + each * int(kept_channels(self.outputs, kept).sum())


@dataclass(frozen=True, eq=False)
class UnitSet:
    """Group units that belong to the same layers and compete with each other.

    Attributes:
        units: ``(n,)`` int64, ascending.
        rows: by layer name, the m output channels of each unit: ``(n, m)`` int64.
    """

    units: Tensor
    rows: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """Return the names of the layers, joined by plus signs."""
        return " + ".join(self.rows)


@dataclass(frozen=True, eq=False)
class Channels:
    """Divide a network into units, the smallest sets of channels that can be removed.

    Attributes:
        layers: the layers by name, in the order of computation.
        sets: sets of units that compete with each other.
        n_units: the number of units in all sets.
        other_macs: multiply-adds for one series outside the layers, taken to be constant.
        vectors: for each other parameter or buffer, by name, the units of its channels and the
            channel dimension.
        left: by layer name, the reason why some or all of its filters cannot be removed.
    """

    layers: Mapping[str, Layer]
    sets: tuple[UnitSet, ...]
    n_units: int
    other_macs: int = 0
    vectors: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def macs(self, kept: Tensor | None = None) -> int:
        """Count the multiply-adds for one series that remain with the ``kept`` units (bool)."""
        layers = self.layers.values()
        return self.other_macs + sum(layer.samples * layer.weights(kept) for layer in layers)

    def weights(self, kept: Tensor | None = None) -> int:
        """Count the active weights, without biases, of all layers; see ``macs``."""
        return sum(layer.weights(kept) for layer in self.layers.values())

    def zeros(self) -> Tensor:
        """Return a score of 0 for each unit: ``(n_units,)`` float64."""
        return torch.zeros(self.n_units, dtype=torch.float64)

    def sums(self, values: Tensor, units: Tensor) -> Tensor:
        """Add up values ``(..., channels)`` by unit, and return ``(..., n_units)``."""
        places = torch.where(units < 0, self.n_units, units)  # the last entry is dropped
        found = values.new_zeros(*values.shape[:-1], self.n_units + 1)
        return found.index_add_(-1, places, values)[..., :-1]


def kept_channels(channels: Tensor, kept: Tensor | None) -> Tensor:
    """Return a bool mask of the channels that remain with the ``kept`` units; None keeps all."""
    if kept is None:
        return torch.ones(len(channels), dtype=torch.bool)
    return torch.cat([kept, torch.ones(1, dtype=torch.bool)])[channels]  # FIXED finds the last


def filters_first(module: nn.Module, tensor: Tensor) -> Tensor:
    """View a layer's weight, or a tensor of its shape, as ``(C_out, C_in // groups, ...)``."""
    swapped = isinstance(module, nn.ConvTranspose1d) and module.groups == 1
    return tensor.transpose(0, 1) if swapped else tensor


class ChannelNumbers:
    """Number the channels of tensors; unite the numbers of channels that are removed together.

    The number 0 marks the zeros that code puts next to channels.
    """

    def __init__(self) -> None:
        self.parent = [0]  # a disjoint-set forest; the root of a set is its least number
        self.reasons = {0: "the code puts zeros next to its channels"}  # by root
        # By id: numbers, their dimension, and the tensor, held so that its id is not reused.
        self.tensors: dict[int, tuple[Tensor, int, Tensor]] = {}

    def new(self, count: int, reason: str | None = None) -> Tensor:
        """Return ``count`` new numbers; if a reason is given, their channels are kept."""
        numbers = torch.arange(len(self.parent), len(self.parent) + count)
        self.parent += numbers.tolist()
        if reason is not None:
            self.reasons |= dict.fromkeys(numbers.tolist(), reason)
        return numbers

    def roots(self, numbers: Tensor) -> list[int]:
        """Return the root of each number, or 0 if its channel is kept."""
        roots = map(self._root, numbers.tolist())
        return [0 if root in self.reasons else root for root in roots]

    def why(self, numbers: Tensor) -> list[str]:
        """Return the reasons why channels with these numbers are kept."""
        roots = map(self._root, numbers.tolist())
        return [self.reasons[root] for root in roots if root in self.reasons]

    def _root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def unite(self, a: Tensor, b: Tensor) -> None:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            least, other = sorted((self._root(i), self._root(j)))
            self.parent[other] = least
            if other in self.reasons:
                self.reasons.setdefault(least, self.reasons[other])

    def follow(self, tensor: Tensor, numbers: Tensor, dim: int) -> None:
        """Assign numbers to a tensor's channels in dimension ``dim``."""
        self.tensors[id(tensor)] = (numbers, dim, tensor)

    def get(self, tensor: Any) -> tuple[Tensor, int] | None:
        """Return a tensor's numbers and their dimension, or None if it is not followed."""
        found = self.tensors.get(id(tensor))
        return None if found is None else found[:2]

    def free(self, tensor: Any) -> tuple[Tensor, int] | None:
        """Return the same as ``get``, but None also if all channels are kept."""
        found = self.get(tensor)
        if found is None or all(self._root(x) in self.reasons for x in found[0].tolist()):
            return None
        return found

    def __getitem__(self, tensor: Tensor) -> tuple[Tensor, int]:
        return self.tensors[id(tensor)][:2]

    def fix(self, reason: str, *tensors: Any) -> None:
        """Keep the channels of those tensors that are followed."""
        for tensor in tensors:
            if (found := self.get(tensor)) is not None:
                self.fix_numbers(reason, found[0])

    def fix_numbers(self, reason: str, numbers: Tensor) -> None:
        for number in numbers.tolist():
            self.reasons.setdefault(self._root(number), reason)


def numbered_units(
    traced: Mapping[str, Layer], numbers: ChannelNumbers, vectors: Mapping[str, Tensor],
    n_series: int, other_macs: int, left: Mapping[str, str],
) -> Channels:  # fmt: skip
    """Turn united numbers into units, and group units of the same layers into sets.

    Args:
        traced: layers with numbers in place of units, and with the samples of all series.
        vectors: parameters and buffers outside the layers, by name.
    """
    # By root and layer: the filters of a unit.
    makers: dict[int, dict[str, list[int]]] = defaultdict(dict)
    left = dict(left)
    for name, layer in traced.items():
        if not layer.has_filters:
            continue
        for row, root in enumerate(numbers.roots(layer.outputs)):
            if root:
                makers[root].setdefault(name, []).append(row)
        if reasons := numbers.why(layer.outputs):
            some = len(reasons) < len(layer.outputs)
            why = f"{len(reasons)} of them, because {reasons[0]}" if some else reasons[0]
            left.setdefault(name, why)
    units = {root: unit for unit, root in enumerate(makers)}

    def units_of(side: Tensor) -> Tensor:
        return torch.tensor([units.get(root, FIXED) for root in numbers.roots(side)])

    alike: dict[Any, list[int]] = defaultdict(list)
    for root, made in makers.items():
        kinds = ((name, len(r), _region(traced[name].module, r[0])) for name, r in made.items())
        alike[tuple(kinds)].append(root)
    sets = []
    for roots in alike.values():
        names = makers[roots[0]]
        rows = {name: torch.tensor([makers[root][name] for root in roots]) for name in names}
        sets.append(UnitSet(torch.tensor([units[root] for root in roots]), rows))
    layers = {
        name: Layer(x.module, units_of(x.outputs), units_of(x.inputs), x.samples // n_series)
        for name, x in traced.items()
    }
    found = {name: (units_of(numbers[x][0]), numbers[x][1]) for name, x in vectors.items()}
    return Channels(layers, tuple(sets), len(units), other_macs, found, left)


def _region(module: nn.Module, row: int) -> int:
    """Return the kernel group of a sparse layer's filter; groups do not compete."""
    if isinstance(module, SparseConv1d):
        for index, ((first, end), _) in enumerate(module.regions):
            if first <= row < end:
                return index
    return 0
