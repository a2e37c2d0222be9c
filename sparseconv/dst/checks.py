"""What ``DSTScheduler`` needs of a model, its optimizer and its running averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparseconv.nn.conv import SparseConv1d

Layers = Mapping[str, SparseConv1d]
OTHER_AVERAGE = (
    "averages must be copies of the model with its current patterns, but one differs; "
    "start a new one after a change of pattern that this scheduler did not make"
)


def sparse_layers(model: nn.Module) -> dict[str, SparseConv1d]:
    """Return the model's ``SparseConv1d`` layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseConv1d)}


def copies_of(layers: Layers, averages: Sequence[nn.Module]) -> dict[str, list[SparseConv1d]]:
    """Return for each layer its copies in the averages."""
    found = [sparse_layers(average).values() for average in averages]
    try:
        return {name: copies for name, *copies in zip(layers, *found, strict=True)}
    except ValueError:
        raise ValueError(OTHER_AVERAGE) from None


def check_layers(
    layers: Layers,
    copies: Mapping[str, Sequence[SparseConv1d]],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Refuse values that something else trains or that are in two places, and other averages."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        values = layer._parameters.get("values")  # computed ones are made anew at each access
        if values is not None and values.requires_grad and id(values) not in held:
            raise ValueError(
                f"the optimizer must hold `values` of every SparseConv1d, but it lacks those "
                f"of layer {name!r}; construct it with model.parameters(), or freeze the layer"
            )
        if any(copy.pattern != layer.pattern for copy in copies[name]):
            raise ValueError(OTHER_AVERAGE)
        for i, each in enumerate((layer, *copies[name])):
            values = each._parameters.get("values")
            place = f"layer {name!r}" + " of an average" * (i > 0)
            if values is not None and id(values) in owner:
                raise ValueError(
                    f"each SparseConv1d must have its own `values`, but {owner[id(values)]} and "
                    f"{place} share theirs; use one layer in both places, and AveragedModel or "
                    "copy.deepcopy for an average"
                )
            owner[id(values)] = place


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state is not per weight."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise NotImplementedError(
            "LBFGS keeps a history of all parameters together, which cannot follow a change of "
            "pattern; use SGD, Adam or another elementwise optimizer, or grow='static'"
        )
    for name, inner in vars(optimizer).items():  # ZeroRedundancyOptimizer, SAM, ...
        if isinstance(inner, torch.optim.Optimizer) and inner.state is not optimizer.state:
            raise NotImplementedError(
                f"{type(optimizer).__name__} keeps its state in an inner optimizer, where it "
                f"cannot follow a change of pattern; hand optimizer.{name} to the DSTScheduler"
            )


def check_state(name: str, values: Tensor, state: Mapping[str, object]) -> None:
    """Refuse state of the optimizer that is not elementwise."""
    for key, tensor in state.items():
        if isinstance(tensor, list | tuple | dict):
            raise NotImplementedError(
                f"the optimizer's {key!r} of layer {name!r} is a {type(tensor).__name__}, which "
                "cannot follow a change of pattern; use an elementwise optimizer, or grow='static'"
            )
        if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape != values.shape:
            raise ValueError(
                f"the optimizer's {key!r} of layer {name!r} must have shape {list(values.shape)}, "
                f"one for each active weight, but has {list(tensor.shape)}; build a new optimizer "
                "after a change of their number"
            )
