"""Walk, copy and change any ``nn.Module``: its names, hooks and layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._pytree import tree_leaves


def deepcopy_model(model: nn.Module) -> nn.Module:
    """Copy a model as ``copy.deepcopy`` does, but with computed tensors too.

    Pruning and weight_norm keep such a tensor, which is not a leaf of a graph, as an attribute.
    """
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def has_codes(model: nn.Module) -> bool:
    """Return whether a model looks integers up in a table, so that they must stay integers."""
    return any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())


class Parametrizations(nn.ModuleDict):
    """The parametrizations of a layer, by the name of the tensor.

    ``nn.ModuleDict`` refuses the name ``"values"``, after torch has removed the parameter. This
    class accepts it: by index, as an attribute, and for ``get_submodule``.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        if name == "values" and module is not None:
            self._modules[name] = module
        else:
            super().add_module(name, module)

    @property
    def values(self) -> Any:
        """The parametrizations of ``values``, else the method of every dict."""
        held = self._modules.get("values")
        return super().values if held is None else held


def check_module(model: nn.Module) -> None:
    """Refuse an object that is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")


def check_not_wrapped(model: nn.Module, what: str) -> None:
    """Refuse a model inside torch.compile, DDP, FSDP or TorchScript; ``what`` names the task."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"expected a model of Python code, but {name or 'it'!r} is a "
                f"{type(module).__name__} of TorchScript; {what} the model before torch.jit.trace "
                "or torch.jit.script"
            )
        inside = {"_orig_mod", "_fsdp_wrapped_module"} & module._modules.keys()
        if isinstance(module, nn.parallel.DistributedDataParallel):
            inside = {"module"}
        for attribute in inside:
            raise ValueError(
                "expected a model before torch.compile and DistributedDataParallel, but "
                f"{name or 'it'!r} is of class {type(module).__name__}; {what} its {attribute} and "
                "wrap the result"
            )


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of the modules that hold each parameter, by its id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in dict.fromkeys(module._parameters.values()):
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def replace(model: nn.Module, successors: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace each module by its successor; return the model, or its successor."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in successors:
                parent._modules[name] = successors[child]
    return successors.get(model, model)


def held_outside(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield modules in plain attributes, for example in lists, where torch cannot see them."""
    for owner in model.modules():
        for name, value in vars(owner).items():
            if name == "_modules":
                continue
            for leaf in tree_leaves(value) if isinstance(value, list | tuple | dict) else [value]:
                leaf = getattr(leaf, "__self__", leaf)  # a method of a module holds it too
                if isinstance(leaf, nn.Module):
                    yield leaf, f"{type(owner).__name__}.{name}"


def hooks_of(layer: nn.Module) -> list[Any]:
    """Return a layer's hooks, except those of ``torch.nn.utils.prune``."""
    registries = [held for name, held in vars(layer).items() if name.endswith("_hooks")]
    every = [hook for held in registries if isinstance(held, dict) for hook in held.values()]
    return [hook for hook in every if not isinstance(hook, BasePruningMethod)]


def has_own_code(module: nn.Module) -> bool:
    """Return whether calling this module does something that calling its class does not."""
    attributes = module.__dict__  # half the time of module.name, and a call reads four of them
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
        or type(module).__call__ is not nn.Module.__call__
    )


# The methods of a layer that a subclass could override.
_CODE = (
    "__call__", "__getattr__", "forward", "train", "_conv_forward", "_check_input_dim", "_geometry",
    "pattern", "values", "weight", "bias",
)  # fmt: skip


def computes_as(module: nn.Module, kinds: Iterable[type[nn.Module]]) -> bool:
    """Return whether the module is of one of these classes, or of a subclass that runs its code."""
    kind = type_before_parametrizations(module)
    return any(
        issubclass(kind, known)
        and all(getattr(kind, name, None) is getattr(known, name, None) for name in _CODE)
        for known in kinds
    )


def own_parameters(module: nn.Module, *names: str) -> Any:
    """Return the parameters of these names; None where one is frozen, pruned or parametrized.

    Such a parameter is a buffer or an attribute. A bias among them is not an absent bias.
    """
    try:
        return [module._parameters[name] for name in names]
    except KeyError:
        return None


def all_modules_are_watched() -> bool:
    """Return whether there are hooks that torch calls for every module."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
