"""Taking channels out of a network: its layers, their state, and an optimizer's."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sparseconv.core.pattern import KernelCSR, Region
from sparseconv.nn.conv import SparseConv1d
from sparseconv.pruning.channels import (
    Channels,
    Layer,
    active_kept,
    columns_in_group,
    kept_channels,
)

Cut = Mapping[int, Tensor]  # for each shortened dimension of a tensor: the indices that stay


@dataclass(frozen=True, eq=False)
class Surgery:
    """What is cut from each parameter and buffer, by which other tensors of its shape follow.

    Attributes:
        cuts: by the name that the parameter or buffer has in the state dict.
    """

    cuts: Mapping[str, Cut]

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Cut a tensor of the shape that this parameter had."""
        return _cut(tensor, self.cuts.get(name, {}))

    def optimizer(
        self, old: torch.optim.Optimizer, model: nn.Module, pruned: nn.Module
    ) -> torch.optim.Optimizer:
        """Return an optimizer of the pruned model's parameters, with the state of the old one."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        successors = dict(pruned.named_parameters())
        # Not by its class, whose arguments differ from what it keeps of them; nor by its pickled
        # state, which leaves out hooks and what a subclass has added.
        new = object.__new__(type(old))
        for key, value in vars(old).items():
            if not callable(getattr(type(old), key, None)):  # a scheduler's step() is the old one's
                vars(new)[key] = copy.copy(value) if isinstance(value, dict) else value
        new.defaults, new.param_groups, new.state = dict(old.defaults), [], defaultdict(dict)
        for group in old.param_groups:
            held = [successors[names[id(parameter)]] for parameter in group["params"]]
            options = {key: value for key, value in group.items() if key != "params"}
            new.param_groups.append({"params": held, **copy.deepcopy(options)})
        for parameter, state in old.state.items():
            name, shape = names[id(parameter)], parameter.shape

            def successor(value: Any, name: str = name, shape: torch.Size = shape) -> Any:
                if isinstance(value, Tensor) and value.shape == shape:
                    return self.cut(name, value).clone()
                return copy.deepcopy(value)

            new.state[successors[name]] = tree_map(successor, state)
        return new


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse one whose state cannot be followed."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, but got {type(optimizer).__name__}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(x) not in own for group in optimizer.param_groups for x in group["params"]):
        raise ValueError(
            "the optimizer holds a parameter that is not the model's; give the one that trains "
            "this model alone"
        )
    for name, value in vars(optimizer).items():
        apart = name not in ("param_groups", "state")
        if apart and any(id(leaf) in own for leaf in tree_leaves(value)):  # as LBFGS does
            raise ValueError(
                f"{type(optimizer).__name__} holds parameters in its attribute {name!r}, which "
                "cannot be followed; build a new optimizer"
            )
    for parameter, state in optimizer.state.items():
        for tensor in tree_leaves(state):
            of_all = isinstance(tensor, Tensor) and tensor.numel() > 1
            if of_all and tensor.shape != parameter.shape:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps tensors of other shapes than its parameters "
                    "have, which cannot be followed; build a new optimizer"
                )


def remove(
    model: nn.Module, channels: Channels, kept: Tensor, spared: Tensor | None = None
) -> Surgery:
    """Shorten a model's layers in place to the kept units (bool); return what was cut.

    Layers keep the filters and inputs of ``spared`` units, which only BatchNorm loses.
    """
    cuts: dict[str, Cut] = {}
    for name, layer in channels.layers.items():
        module = model.get_submodule(name)
        stay = kept | spared if spared is not None and layer.has_filters else kept
        rows, columns = (kept_channels(side, stay) for side in (layer.outputs, layer.inputs))
        if rows.all() and columns.all():
            continue
        found = _cuts(layer, rows, columns)
        prefix = f"{name}." if name else ""
        cuts |= {prefix + key: cut for key, cut in found.items()}
        content = {key: _cut(getattr(module, key), cut) for key, cut in found.items()}
        shorten(module, content, int(columns.sum()))
        if isinstance(module, SparseConv1d):
            _shorten_pattern(module, layer, rows, columns)
    return Surgery(cuts)


def _cuts(layer: Layer, rows: Tensor, columns: Tensor) -> dict[str, Cut]:
    module = layer.module
    stay = {0: rows.nonzero()[:, 0]}
    if isinstance(module, SparseConv1d):
        found: dict[str, Cut] = {"values": {0: active_kept(layer, rows, columns).nonzero()[:, 0]}}
    elif layer.has_filters:
        found = {"weight": {**stay, 1: columns_in_group(layer, columns).nonzero()[:, 0]}}
    else:
        names = ("weight", "running_mean", "running_var")
        found = {name: stay for name in names if getattr(module, name) is not None}
    if module.bias is not None:
        found["bias"] = stay
    return found


def _cut(tensor: Tensor, cut: Cut) -> Tensor:
    for dim, indices in cut.items():
        tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor


@torch.no_grad()
def shorten(module: nn.Module, content: Mapping[str, Tensor], inputs: int) -> None:
    """Give a layer smaller parameters and buffers; a dense one also counts its channels anew."""
    for name, tensor in content.items():
        if name in module._parameters:
            old = module._parameters[name]
            assert old is not None
            new = nn.Parameter(tensor.detach().clone(), requires_grad=old.requires_grad)
            module._parameters[name] = new
        else:
            module._buffers[name] = tensor.detach().clone()
    if isinstance(module, nn.BatchNorm1d):
        module.num_features = inputs
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, len(module.weight)
    elif isinstance(module, nn.Conv1d):
        module.groups = inputs // module.weight.shape[1]  # fewer of a depthwise layer
        module.in_channels, module.out_channels = inputs, len(module.weight)


@torch.no_grad()
def _shorten_pattern(module: SparseConv1d, layer: Layer, rows: Tensor, columns: Tensor) -> None:
    """Keep some rows and columns of a sparse layer's pattern, those of its shortened values."""
    _, inputs, taps = module.pattern.shape
    inside = columns_in_group(layer, columns)
    shape = (int(rows.sum()), int(inside.sum()), taps)
    old = module.pattern.positions()[active_kept(layer, rows, columns)]
    row, column = (side.cumsum(0) - 1 for side in (rows, inside))
    kernel = old // taps
    positions = (row[kernel // inputs] * shape[1] + column[kernel % inputs]) * taps + old % taps
    module._pattern = KernelCSR.from_positions(positions, shape)
    module._adopt(module._pattern)  # as after to_empty(): what belongs to the pattern is new
    module.in_channels, module.out_channels = int(columns.sum()), shape[0]
    module.groups = module.in_channels // shape[1]
    regions = []
    for (first, end), reach in module.regions:
        before, within = int(rows[:first].sum()), int(rows[first:end].sum())
        if within:
            regions.append(Region((before, before + within), reach))
    module.regions = tuple(regions)


@torch.no_grad()
def mask(model: nn.Module, channels: Channels, kept: Tensor) -> None:
    """Make a model compute as if units were removed, at full size: none reads them any more.

    Works on parameters in place.
    """
    for name, layer in channels.layers.items():
        if not layer.has_filters or layer.is_depthwise:
            continue
        columns = kept_channels(layer.inputs, kept)
        if columns.all():
            continue
        module = model.get_submodule(name)
        if isinstance(module, SparseConv1d):
            every = torch.ones(len(layer.outputs), dtype=torch.bool)
            stays = active_kept(layer, every, columns)
            module.values.masked_fill_(~stays.to(module.values.device), 0)
        else:
            weight = module.weight
            assert isinstance(weight, Tensor)
            weight[:, ~columns_in_group(layer, columns).to(weight.device)] = 0
