"""Remove channels from a network's layers and from an optimizer's state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseconv.core.blocks import Region
from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.optimizers import OptimizerState
from sparseconv.pruning.channels import NORMS, PER_CHANNEL, Channels, filters_first, kept_channels

Cut = Mapping[int, Tensor]  # by dimension of a tensor, the indices that stay


def successor(
    old: OptimizerState, model: nn.Module, pruned: nn.Module, cuts: Mapping[str, Cut]
) -> Optimizer:
    """Return an optimizer for the pruned model's parameters, with the state of the old one.

    Args:
        cuts: the result of ``remove``; state with a parameter's shape is cut in the same way.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    after = dict(pruned.named_parameters())
    memo: dict[int, Any] = {id(model): pruned}  # by id, the successor of an object
    for _, owner, value in old.kept:
        if isinstance(value, Optimizer):
            # Its class cannot be called, because its arguments differ from its attributes. Its
            # pickled state lacks hooks and what a subclass has added.
            memo[id(value)] = object.__new__(type(value))
        elif not isinstance(value, Tensor):
            memo.setdefault(id(value), value)
        elif id(value) in names:
            memo[id(value)] = after[names[id(value)]]
        elif id(owner) in names and value.shape == owner.shape:
            name = names[id(owner)]
            same = value.data_ptr() == owner.data_ptr()  # it is parameter.data
            cut = _cut(value.detach(), cuts.get(name, {})).clone()
            memo[id(value)] = after[name].detach() if same else cut
    for each in old.optimizers:
        for key, value in vars(each).items():
            if not hasattr(value, "_wrapped_by_lr_sched"):  # a scheduler's step() of the old one
                vars(memo[id(each)])[key] = copy.deepcopy(value, memo)
    new: Optimizer = memo[id(old.optimizers[0])]
    return new


@torch.no_grad()
def remove(
    model: nn.Module, channels: Channels, kept: Tensor, spared: Tensor | None = None
) -> dict[str, Cut]:
    """Remove all but the kept units (bool) from a model's layers, in place.

    Layers with filters also keep ``spared`` units; norms do not.

    Returns:
        The indices that are kept, by name of each shortened parameter or buffer.
    """
    cuts: dict[str, Cut] = {}
    for name, layer in channels.layers.items():
        module = model.get_submodule(name)
        stay = kept | spared if spared is not None and layer.has_filters else kept
        rows, inputs = (kept_channels(side, stay) for side in (layer.outputs, layer.inputs))
        if rows.all() and inputs.all():
            continue
        columns, stays = layer.columns(stay), {0: rows.nonzero()[:, 0]}
        if isinstance(module, SparseConv1d):
            found: dict[str, Cut] = {"values": {0: _active(module, rows, columns).nonzero()[:, 0]}}
        elif layer.has_filters:
            rest, weight = columns.nonzero()[:, 0], module.get_parameter("weight")
            swapped = filters_first(module, weight) is not weight
            found = {"weight": {0: rest, 1: stays[0]} if swapped else {**stays, 1: rest}}
        else:
            found = {key: stays for key in PER_CHANNEL if getattr(module, key, None) is not None}
        if module.bias is not None:
            found["bias"] = stays
        content = {key: _cut(getattr(module, key), cut) for key, cut in found.items()}
        if isinstance(module, SparseConv1d):
            _shorten_pattern(module, rows, columns)
        shorten(module, content, int(inputs.sum()))
        cuts |= {f"{name}.{key}" if name else key: cut for key, cut in found.items()}
    for name, (units, dim) in channels.vectors.items():
        if not (rows := kept_channels(units, kept)).all():
            cuts[name] = {dim: rows.nonzero()[:, 0]}
            owner, _, key = name.rpartition(".")
            module = model.get_submodule(owner)
            shorten(module, {key: _cut(getattr(module, key), cuts[name])}, int(rows.sum()))
    return cuts


def _active(module: SparseConv1d, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``(nnz,)`` bool: whether both channels of an active weight are kept."""
    mask = module.pattern.to_mask()
    return (rows[:, None, None] & columns[:, None]).expand(mask.shape)[mask]


def _cut(tensor: Tensor, cut: Cut) -> Tensor:
    for dim, indices in cut.items():
        tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor


@torch.no_grad()
def shorten(module: nn.Module, content: Mapping[str, Tensor], inputs: int) -> None:
    """Replace a layer's parameters and buffers with smaller ones; update its channel counts."""
    for name, tensor in content.items():
        tensor = tensor.detach().clone()
        if (old := module._parameters.get(name)) is not None:
            module._parameters[name] = nn.Parameter(tensor, requires_grad=old.requires_grad)
        else:
            module._buffers[name] = tensor
    if isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * inputs // module.num_channels
        module.num_channels = inputs
    elif isinstance(module, NORMS):
        module.num_features = inputs
    elif isinstance(module, nn.PReLU):
        module.num_parameters = inputs
    elif isinstance(module, nn.ConvTranspose1d):
        module.groups = 1 if module.groups == 1 else inputs
        module.in_channels, module.out_channels = inputs, module.groups * module.weight.shape[1]
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, len(module.weight)
    elif isinstance(module, nn.Conv1d | SparseConv1d):
        shape = module.weight.shape if isinstance(module, nn.Conv1d) else module.pattern.shape
        module.in_channels, module.out_channels = inputs, shape[0]
        module.groups = inputs // shape[1]  # a depthwise layer now has fewer


def _shorten_pattern(module: SparseConv1d, rows: Tensor, columns: Tensor) -> None:
    module._adopt(KernelCSR.from_mask(module.pattern.to_mask()[rows][:, columns]))
    regions = []
    for (first, end), reach in module.regions:
        before, within = int(rows[:first].sum()), int(rows[first:end].sum())
        if within:
            regions.append(Region((before, before + within), reach))
    module.regions = tuple(regions)


@torch.no_grad()
def mask(model: nn.Module, channels: Channels, kept: Tensor) -> None:
    """Set weights to 0 in place, so that no layer reads removed units."""
    for name, layer in channels.layers.items():
        columns = layer.columns(kept)
        if not layer.reads or columns.all():
            continue
        module = model.get_submodule(name)
        if isinstance(module, SparseConv1d):
            every = torch.ones(len(layer.outputs), dtype=torch.bool)
            stays = _active(module, every, columns).to(module.values.device)
            module.values.masked_fill_(~stays, 0)
        else:
            weight: Any = module.weight
            filters_first(module, weight)[:, ~columns.to(weight.device)] = 0
