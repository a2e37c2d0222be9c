"""Check a model, its optimizer and its running averages for ``DSTScheduler``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparseconv.nn.optimizers import Holdings
from sparseconv.nn.sparse_layer import SparseLayer

Layers = Mapping[str, SparseLayer]
OTHER_AVERAGE = (
    "averages must be copies of the model with its current patterns, but one differs; after "
    "changing a pattern without this scheduler, start a new average"
)


NO_GRADIENT = (
    "grow='gradient' needs a forward and a backward pass through a SparseConv1d between calls "
    "{0} and {1} of step(), but there was none; call loss.backward() and optimizer.step() before "
    "each step(), with a single DSTScheduler for the layers. The replay of a CUDA graph "
    "(GraphedStep) does not count: if (step_count + 1) % update_every == 0, call the function "
    "itself instead of the replay"
)
NEVER_SEEN = (
    "grow={0!r} found no gradient for {1} in three updates, so these layers keep their patterns; "
    "if they are not meant to train, freeze them with requires_grad_(False); otherwise look for "
    "torch.no_grad() or detach() around them, or for torch.autograd.grad instead of backward(), "
    "or choose an update_every whose updates do not all fall on steps that skip these layers"
)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the model's sparse layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def copies_of(
    layers: Layers, averages: nn.Module | Iterable[nn.Module]
) -> dict[str, list[SparseLayer]]:
    """Return each layer's copies in the averages, which may also contain the model itself."""
    found = []
    for average in [averages] if isinstance(averages, nn.Module) else averages:
        if not isinstance(average, nn.Module):
            raise TypeError(
                "averages must be modules that are copies of the model, but got a "
                f"{type(average).__name__}; for an average of only the parameters, pass a copy of "
                "the model that contains them"
            )
        held, own = sparse_layers(average).values(), list(layers.values())
        found.append([layer for layer in held if layer not in own])
        if held and not found[-1]:
            raise ValueError(
                "averages must be copies of the model, but one of them contains only the model's "
                "own layers; pass the module that is averaged: DSTScheduler(model.online, ..., "
                "averages=[model.target])"
            )
    try:
        return {name: copies for name, *copies in zip(layers, *found, strict=True)}
    except ValueError:
        raise ValueError(OTHER_AVERAGE) from None


def untrained(layers: Layers, optimizer: torch.optim.Optimizer, known: Holdings) -> set[str]:
    """Return the layers that no step has trained, as far as the optimizer shows."""
    values = {name: layer._parameters.get("values") for name, layer in layers.items()}
    idle = {name for name, p in values.items() if p is not None and p.grad is None}
    trained = known.ever_trained() if idle else set()
    return {name for name in idle if _would_show(values[name], optimizer, trained)}


def _would_show(values: Any, optimizer: torch.optim.Optimizer, trained: set[int]) -> bool:
    """Return whether training would have left state for this parameter, but there is none."""
    groups = getattr(optimizer, "param_groups", ())
    own = [group.get("momentum") for group in groups if any(p is values for p in group["params"])]
    alike = [group["params"] for group in groups if group.get("momentum") in own or not own]
    return id(values) not in trained and any(id(p) in trained for group in alike for p in group)


def check_backward(
    layers: Iterable[SparseLayer], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Reject a step without dense gradients, unless it merely left out all of these layers."""
    every = (p for group in optimizer.param_groups for p in group["params"])
    held = {id(p): p.grad for p in every if p.grad is not None}
    own = [held.get(id(layer._parameters.get("values"))) for layer in layers]
    if not held or any(grad is not None and grad.any() for grad in own):
        raise RuntimeError(NO_GRADIENT.format(step, step + 1))


def check_layers(
    layers: Layers,
    copies: Mapping[str, Sequence[SparseLayer]],
    optimizer: torch.optim.Optimizer,
    move: bool = True,
) -> Holdings:
    """Reject values that the optimizer does not have, and averages whose patterns differ.

    If ``move`` is true, also check that the optimizer's state can follow moved weights. Return the
    state.
    """
    holdings = Holdings(optimizer)
    held = set(map(id, holdings.trained))
    for name, layer in layers.items():
        values = layer._parameters.get("values")  # computed values are new at each access
        if values is not None and values.requires_grad and id(values) not in held:
            raise ValueError(
                "the optimizer must have the `values` of every SparseConv1d, but those of layer "
                f"{name!r} are missing; construct the optimizer with model.parameters(), or freeze "
                "the layer"
            )
        if any(copy.pattern != layer.pattern for copy in copies[name]):
            raise ValueError(OTHER_AVERAGE)
    if move:
        holdings.check({f"{name}.values": layer.values for name, layer in layers.items()})
    return holdings
