"""What ``DSTScheduler`` needs of a model, its optimizer and its running averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparseconv.nn.conv import SparseConv1d

Layers = Mapping[str, SparseConv1d]


def sparse_layers(model: nn.Module) -> dict[str, SparseConv1d]:
    """The model's ``SparseConv1d`` layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseConv1d)}


def check_layers(
    layers: Layers, optimizer: torch.optim.Optimizer, averages: Sequence[Sequence[SparseConv1d]]
) -> None:
    """Refuse values that the optimizer does not hold, and averages of something else."""
    check_held(layers, optimizer)
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        values = layer._parameters.get("values")  # computed ones are made anew at each access
        if values is not None and owner.setdefault(id(values), name) != name:
            raise ValueError(
                f"each SparseConv1d must have its own `values`, but {owner[id(values)]!r}"
                f" and {name!r} share theirs; use one layer in both places"
            )
    for average in averages:
        if [layer.pattern for layer in average] != [layer.pattern for layer in layers.values()]:
            raise ValueError(OTHER_AVERAGE)
        for layer in average:
            values = layer._parameters.get("values")
            if values is not None and id(values) in owner:
                raise ValueError(
                    f"averages must be copies of the model, but one has the `values` of layer "
                    f"{owner[id(values)]!r} itself; use AveragedModel or copy.deepcopy"
                )


def check_held(layers: Layers, optimizer: torch.optim.Optimizer) -> None:
    """Refuse values that are to be trained by something else than the optimizer."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers.items():
        values = layer._parameters.get("values")
        if values is not None and values.requires_grad and id(values) not in held:
            raise ValueError(
                f"the optimizer must hold `values` of every SparseConv1d, but it lacks those "
                f"of layer {name!r}; construct it with model.parameters(), or freeze the layer"
            )


OTHER_AVERAGE = (
    "averages must be copies of the model with its current patterns, but one differs; "
    "start a new one after a change of pattern that this scheduler did not make"
)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state is not per weight."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise NotImplementedError(
            "LBFGS keeps a history of all parameters at once, which cannot follow a change of "
            "pattern; use SGD, Adam or another elementwise optimizer, or grow='static'"
        )
    for name, inner in vars(optimizer).items():  # ZeroRedundancyOptimizer, SAM, ...
        if isinstance(inner, torch.optim.Optimizer) and inner.state is not optimizer.state:
            raise NotImplementedError(
                f"{type(optimizer).__name__} keeps its state in an optimizer of its own, where it "
                f"cannot follow a change of pattern; hand optimizer.{name} to the DSTScheduler"
            )


def check_state(name: str, values: Tensor, state: Mapping[str, object]) -> None:
    """Refuse state of the optimizer that is not elementwise."""
    for key, tensor in state.items():
        if isinstance(tensor, (list, tuple, dict)):
            raise NotImplementedError(
                f"the optimizer's {key!r} of layer {name!r} is a {type(tensor).__name__}, which "
                "cannot follow a change of pattern; use an elementwise optimizer, or grow='static'"
            )
        if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape != values.shape:
            raise ValueError(
                f"the optimizer's {key!r} of layer {name!r} must have shape "
                f"{list(values.shape)}, one for each active weight, but has "
                f"{list(tensor.shape)}; build a new optimizer after a change of their number (one "
                "that counts something else keeps it in a tensor without dimensions)"
            )


def unseen(name: str, step_count: int) -> str:
    """The error of gradient growth without a gradient, and what to do."""
    return (
        f"grow='gradient' needs a forward and a backward pass through layer {name!r} between "
        f"step() number {step_count} and {step_count + 1}, but saw none; call loss.backward() and "
        "optimizer.step() before each step(). The replay of a CUDA graph (GraphedStep) is none: in "
        "the step before an update, where (step_count + 1) % update_every == 0, call the function "
        "itself instead of its GraphedStep"
    )
