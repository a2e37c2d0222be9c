"""Inspect, copy and change any ``nn.Module``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._pytree import tree_leaves


def deepcopy_model(model: nn.Module) -> nn.Module:
    """Copy a model as ``copy.deepcopy`` does, including computed tensors; check its type."""
    check_module(model)
    # Pruning and weight_norm keep a tensor that is not a leaf of a graph, which deepcopy refuses.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def has_codes(model: nn.Module) -> bool:
    """Return whether a model has an embedding, in which case integer inputs must stay integers."""
    return any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())


def check_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")


def check_not_wrapped(model: nn.Module, what: str) -> None:
    """Reject a model inside torch.compile, DDP or FSDP, and others; ``what`` names the task."""
    check_module(model)
    for name, module in model.named_modules(remove_duplicate=False):
        where = repr(name) if name else "the model"
        inside = {"_orig_mod", "_fsdp_wrapped_module"}.intersection(module._modules.keys())
        if isinstance(module, nn.parallel.DistributedDataParallel):
            inside = {"module"}
        for attribute in inside:
            raise ValueError(
                f"expected a model before torch.compile and DistributedDataParallel, but {where} "
                f"is a {type(module).__name__}; {what} its .{attribute}, then wrap the result"
            )


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """Map the id of each parameter to the names of the modules that own it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in dict.fromkeys(module._parameters.values()):
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def replace(model: nn.Module, successors: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace each module with its successor; return the model or its successor."""
    names = {module: name for name, module in model.named_modules()}
    for module, reason in held_outside(model):
        if module in successors:
            raise ValueError(f"layer {names[module]!r} {reason}")
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in successors:
                parent._modules[name] = successors[child]
    return successors.get(model, model)


def held_outside(model: nn.Module) -> Iterator[tuple[nn.Module | nn.Parameter, str]]:
    """Yield modules and parameters in plain attributes, and why they must stay.

    Containers in objects are not searched: optimizers and schedulers list the layers they update.
    """
    for owner in model.modules():
        for name, value in vars(owner).items():
            if name in ("_modules", "_parameters"):
                continue
            place = f"{type(owner).__name__}.{name}, where it cannot be replaced"
            why = f"is also referenced by {place}; keep it only where torch registers it"
            held = tree_leaves(value)
            calls = [(x.func, x.args, x.keywords) for x in held if isinstance(x, partial)]
            held = [getattr(x, "__self__", x) for x in [*held, *tree_leaves(calls)]]  # of methods
            plain = [getattr(x, "__dict__", {}) for x in held if not isinstance(x, nn.Module)]
            for leaf in chain(held, *(attributes.values() for attributes in plain)):
                if isinstance(leaf, nn.Module | nn.Parameter):
                    yield leaf, why


def bonds_of(model: nn.Module) -> Callable[[nn.Module, Tensor], str | None]:
    """Return a function that says why a layer with a certain weight must stay, or None."""
    outside, owners = dict(held_outside(model)), owners_of(model)

    def bond(layer: nn.Module, weight: Tensor) -> str | None:
        if hooks_of(layer):
            return "has hooks, which would be lost; remove them, and add them again afterwards"
        if len(names := owners[id(weight)]) > 1:
            return (
                f"shares its weight ({', '.join(map(repr, names))}); create a separate weight for "
                "each layer, or call the same layer in both places"
            )
        if isinstance(weight, nn.Parameter) and weight in outside:
            return f"has a weight that {outside[weight]}"
        return outside.get(layer)

    return bond


def hooks_of(layer: nn.Module) -> list[Any]:
    """Return a layer's forward and backward hooks, except those of ``torch.nn.utils.prune``."""
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    every = [hook for kind in kinds for hook in vars(layer)[f"_{kind}_hooks"].values()]
    return [hook for hook in every if not isinstance(hook, BasePruningMethod)]


def has_own_code(module: nn.Module) -> bool:
    """Return whether calling a module runs hooks or code other than its class's ``forward``."""
    attributes = module.__dict__  # half the time of module.name, and every call reads four
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
        or attributes.get("_compiled_call_impl") is not None
        or type(module).__call__ is not nn.Module.__call__
    )


# The attributes of a layer that a subclass could override.
_CODE = (
    "__call__", "__getattr__", "forward", "train", "_conv_forward", "_check_input_dim", "_geometry",
    "pattern", "values", "weight", "bias",
)  # fmt: skip


def computes_as(module: nn.Module, known: type[nn.Module]) -> bool:
    """Return whether a module's class is the known one, or a subclass that runs the same code."""
    kind = type_before_parametrizations(module)
    return issubclass(kind, known) and all(
        getattr(kind, name, None) is getattr(known, name, None) for name in _CODE
    )


def all_modules_are_watched() -> bool:
    """Return whether torch has global hooks, which it calls for every module."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
