"""Putting another layer in a layer's place: where it stands, and what stays with it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._pytree import tree_leaves

from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.conv import SparseConv1d


def check_module(model: nn.Module) -> None:
    """Refuse what is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")


def check_not_compiled(model: nn.Module, what: str) -> None:
    """Refuse a model in which something is compiled; ``what`` is to be done with the original."""
    for name, module in model.named_modules(remove_duplicate=False):
        if "_orig_mod" in module._modules:
            raise ValueError(
                f"expected a model before torch.compile, but {name or 'it'!r} is compiled; {what} "
                "its _orig_mod and compile the result"
            )


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """The names of the modules that hold a parameter, by its id; several share it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in dict.fromkeys(module._parameters.values()):
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def own_names(layer: nn.Conv1d | SparseConv1d) -> frozenset[str]:
    """What a layer of this class holds for itself, but for its bias, however it is pruned."""
    if isinstance(layer, SparseConv1d):
        # On the meta device nothing is drawn, so torch's generator is left as it was.
        pattern = KernelCSR.full((1, 1, 1))
        plain: nn.Module = SparseConv1d(1, 1, 1, device="meta", pattern=pattern)
        weight = "values"
    else:
        plain, weight = nn.Conv1d(1, 1, 1, device="meta"), "weight"
    names = {*vars(plain), *plain._parameters, *plain._buffers} - {"bias"}
    names |= {weight, f"{weight}_orig", f"{weight}_mask", "parametrizations"}
    return frozenset(names | {"_compiled_call_impl"})  # of layer.compile(): it calls the old layer


def replace(model: nn.Module, successors: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each successor wherever its predecessor stands; returns the model, or its successor."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in successors:
                parent._modules[name] = successors[child]
    return successors.get(model, model)


def held_outside(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield modules that stand in plain attributes, lists for one, where torch cannot see them."""
    for owner in model.modules():
        for name, value in vars(owner).items():
            if name == "_modules":
                continue
            for leaf in tree_leaves(value) if isinstance(value, list | tuple | dict) else [value]:
                leaf = getattr(leaf, "__self__", leaf)  # a method of a module holds it as well
                if isinstance(leaf, nn.Module):
                    yield leaf, f"{type(owner).__name__}.{name}"


def carry_state(old: nn.Conv1d | SparseConv1d, new: nn.Module) -> None:
    """Move the bias, the same parameter object, and whatever somebody has added to the layer.

    ``new`` already holds the weights, a bias if the old one has one, and the mode.
    """
    if "bias" in old._parameters:
        new._parameters["bias"] = old._parameters["bias"]
    elif "bias_orig" in old._parameters:  # pruned, and stays so
        del new._parameters["bias"]
    carry_added(old, new)


def carry_added(old: nn.Conv1d | SparseConv1d, new: nn.Module) -> None:
    """Move whatever somebody has added to the layer."""
    own = own_names(old)
    for registry in ("_parameters", "_buffers", "_modules"):
        held = vars(old)[registry].items()
        added = {name: v for name, v in held if name not in own and name != "bias"}
        vars(new)[registry].update(added)
    new._non_persistent_buffers_set |= old._non_persistent_buffers_set - own
    for name in vars(old).keys() - vars(new).keys() - own:
        vars(new)[name] = vars(old)[name]


def carry_hooks(old: nn.Conv1d | SparseConv1d, new: nn.Module) -> None:
    """Move all hooks but those that belong to the weight; their handles keep working."""
    own = own_names(old)

    def belongs_to_the_weight(hook: Any) -> bool:
        return isinstance(hook, BasePruningMethod) and hook._tensor_name in own

    for name, hooks in vars(old).items():
        if "hook" not in name:
            continue
        if isinstance(hooks, dict) and any(map(belongs_to_the_weight, hooks.values())):
            hooks = type(hooks)((k, h) for k, h in hooks.items() if not belongs_to_the_weight(h))
        if name == "_load_state_dict_pre_hooks":
            for hook in hooks.values():
                if hook.with_module:  # torch's wrapper, which holds the layer
                    hook.module = weakref.ref(new)
        vars(new)[name] = hooks
