"""Let removed filters contribute while the network is fine-tuned (equivalent pruning)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.modules import deepcopy_model, replace
from sparseconv.pruning.channels import Channels, UnitSet, kept_channels
from sparseconv.pruning.surgery import remove, shorten

SLOWER = 5  # under Adam, a pair's weights move slower than others by this factor
DENSE = (nn.Conv1d, nn.Linear)
WIDEST = 8192  # inputs of a layer with a decompressor, a square matrix of this size


class Mix(nn.Module):
    """Mix channels with a matrix that initially selects some or inserts zeros between them.

    Args:
        start: the first matrix, ``(outputs, inputs)``.
        mixed: the entries that training may change, bool of the same shape.
    """

    start: Tensor
    mixed: Tensor

    def __init__(self, start: Tensor, mixed: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)
        self.register_buffer("mixed", mixed)
        self.moved = nn.Parameter(torch.zeros_like(start))

    def matrix(self) -> Tensor:
        return self.start + self.mixed * self.moved / SLOWER

    def forward(self, x: Tensor, last: bool) -> Tensor:
        """Mix the channels in the last dimension, or in the second one of ``(N, inputs, L)``."""
        matrix = self.matrix()
        return F.linear(x, matrix) if last else F.conv1d(x, matrix[:, :, None])


class EquivalentLayer(nn.Module):
    """Run a layer with a decompressor before it, a compressor after it, or both."""

    def __init__(self, layer: nn.Module, before: Mix | None, after: Mix | None) -> None:
        super().__init__()
        self.decompressor, self.layer, self.compressor = before, layer, after

    def forward(self, input: Tensor) -> Tensor:  # named as in the layer, for calls by keyword
        last = isinstance(self.layer, nn.Linear)
        if self.decompressor is not None:
            input = self.decompressor(input, last)
        y: Tensor = self.layer(input)
        return y if self.compressor is None else self.compressor(y, last)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Change the layer in place to the pruned shape, with the same outputs, and return it."""
        layer: Any = self.layer
        weight, bias = layer.weight.double(), layer.bias
        if self.decompressor is not None:
            weight = torch.einsum("oi...,ij->oj...", weight, self.decompressor.matrix().double())
        if self.compressor is not None:
            matrix = self.compressor.matrix().double()
            weight = torch.einsum("po,o...->p...", matrix, weight)
            bias = bias if bias is None else matrix @ bias.double()
        content = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        content = {name: tensor.to(layer.weight.dtype) for name, tensor in content.items()}
        shorten(layer, content, weight.shape[1])
        return self.layer


def merge(model: nn.Module) -> nn.Module:
    """Return a copy of a model with each compressor and decompressor merged into its layer.

    Args:
        model: the fine-tuned model from ``prune_filters(..., equivalent=True)``. Any other module
            is only copied.

    Example:
        >>> import sparseconv as sc
        >>> from sparseconv.pruning import WHC
        >>> model, x = sc.models.ResNet(1, 2, nf=8), torch.randn(2, 1, 40)
        >>> pairs, _ = sc.prune_filters(model, x, WHC(), fraction=0.5, equivalent=True)
        >>> plain = merge(pairs)  # after fine-tuning
        >>> torch.allclose(plain.eval()(x), pairs.eval()(x), atol=1e-5)
        True

    Source: Chen et al., "Optimal Brain Connection", arXiv 2508.05521 (equivalent pruning).
    """
    merged = deepcopy_model(model)
    pairs = [layer for layer in merged.modules() if isinstance(layer, EquivalentLayer)]
    return replace(merged, {layer: layer.merged() for layer in pairs})


# The paper puts the compressor after BatchNorm. Before it, the same functions can be learned, and
# BatchNorm stays.
def with_pairs(model: nn.Module, channels: Channels, kept: Tensor) -> tuple[str, ...]:
    """Put compressors and decompressors into a model; remove the filters that have no such pair.

    The model is changed in place. Return the names of the layers whose filters have no pair.
    """
    pruned = [group for group in channels.sets if not kept[group.units].all()]
    owner = torch.full((channels.n_units + 1,), -1)  # by unit, its paired set; FIXED finds the last
    for number, group in enumerate(pruned):
        if _can_be_paired(channels, group):
            owner[group.units] = number
    spared = owner[:-1] >= 0
    if pruned and not spared.any():
        raise ValueError(
            "equivalent pruning needs nn.Conv1d or nn.Linear on both sides of removed filters, but "
            "all filters are next to sparse, grouped, depthwise, hooked, frozen or very wide "
            "layers; omit equivalent=True, or prune before layers become sparse, hooked or frozen"
        )
    remove(model, channels, kept, spared)
    successors: dict[nn.Module, nn.Module] = {}
    for name, layer in channels.layers.items():
        module: Any = model.get_submodule(name)
        if not isinstance(module, DENSE):
            continue
        before, after = (_mix(x, owner, kept, spared) for x in (layer.inputs, layer.outputs))
        if before is not None:
            before = Mix(before.start.T.contiguous(), before.mixed.T.contiguous())
        if before is not None or after is not None:
            parts = [None if mix is None else mix.to(module.weight) for mix in (before, after)]
            successors[module] = EquivalentLayer(module, *parts).train(module.training)
    replace(model, successors)
    return tuple(dict.fromkeys(g.name for g in pruned if owner[g.units[0]] < 0))


def _can_be_paired(channels: Channels, group: UnitSet) -> bool:
    for name, layer in channels.layers.items():
        reads = layer.reads and torch.isin(layer.inputs, group.units).any()
        if (reads or name in group.rows) and (
            # Merging would make a sparse layer dense, and fails for subclasses, transposed
            # convolutions and groups. Hooks may change what is between a layer and its compressor,
            # and a pair would train a frozen layer.
            type(layer.module) not in DENSE
            or layer.groups > 1
            or len(layer.inputs) > WIDEST
            or layer.module._forward_hooks
            or layer.module._forward_pre_hooks
            or not all(parameter.requires_grad for parameter in layer.module.parameters())
        ):
            return False
    return True


def _mix(units: Tensor, owner: Tensor, kept: Tensor, spared: Tensor) -> Mix | None:
    """Return the ``Mix`` of a layer's channels into the kept ones, or None if none is paired."""
    units = units[kept_channels(units, kept | spared)]
    group = owner[units]
    if not (group >= 0).any():
        return None
    # Channels of one set mix; if a layer reads a unit several times, only those at one place do.
    place = torch.tril(units[:, None] == units, -1).sum(1)
    same = (group[:, None] == group) & (place[:, None] == place) & (group >= 0)
    stay = kept_channels(units, kept)
    return Mix(torch.eye(len(units))[stay], same[stay])
