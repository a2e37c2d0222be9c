"""Find and check the state that optimizers, including nested ones, keep for each parameter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from functools import cache
from types import FunctionType, MethodType, ModuleType, NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

SEQUENCES = (list, tuple, set, frozenset, deque)
_ATOMS = (Tensor, nn.Module, type, FunctionType, MethodType, ModuleType)
_FORMER_NNZ: MutableMapping[Tensor, set[int]] = WeakIdKeyDictionary()  # by values
PLAIN = (NoneType, bool, int, float, str, type, torch.dtype, torch.device)


class StateEntry(NamedTuple):
    """Record an object that an optimizer keeps, its path, and the parameter it belongs to."""

    path: str
    owner: Any
    value: Any


class OptimizerState:
    """Collect the state of an optimizer and of the optimizers nested in it (SAM, Lookahead, lists).

    A tensor belongs to the parameter that is its key in a dict. In a list that is arranged like one
    of ``param_groups``, it belongs to the parameter at the same index. What functions and objects
    inside other objects keep is not known.

    Attributes:
        kept: all objects that these optimizers keep, including the keys of dicts.
        optimizers, trained: the optimizer and those nested in it; the parameters in their groups.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        kind = type(optimizer).__name__
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, but got {kind}; for a learning-rate "
                "scheduler or a wrapper, pass its optimizer (.optimizer, .base)"
            )
        self.kept = list(_walk(optimizer, kind, None, [], set()))
        self.optimizers = [x.value for x in self.kept if isinstance(x.value, Optimizer)]
        self.trained = [p for each in self.optimizers for group in _groups(each) for p in group]

    def check(self, parameters: Mapping[str, Tensor], model: nn.Module | None = None) -> None:
        """Reject an optimizer whose state cannot follow these parameters.

        Args:
            parameters: those whose entries will move or be removed, by name.
            model: the model of these parameters if a copy will replace it; None if the objects
                are kept.
        """
        names = {id(parameter): name for name, parameter in parameters.items()}
        if model is not None and any(id(parameter) not in names for parameter in self.trained):
            raise ValueError(
                "the optimizer has a parameter that does not belong to the model; pass an "
                "optimizer that trains only this model"
            )
        ours = {id(x) for x in (*self.optimizers, *self.trained, *parameters.values())}
        for path, owner, value in self.kept:
            name, kind, wrong = names.get(id(owner)), type(value).__name__, ""
            if isinstance(value, torch.optim.LBFGS):
                wrong = "keeps a history that mixes all parameters"
            elif id(value) in ours or value is model or isinstance(value, PLAIN):
                if name is not None and isinstance(value, Tensor) and id(value) not in names:
                    wrong = f"is trained in place of {name!r}"
            elif not isinstance(value, Tensor):
                left_out = hasattr(value, "_wrapped_by_lr_sched")  # by the pruned model's optimizer
                if name is not None or (model is not None and not left_out):
                    wrong = f"is of type {kind} and may contain parameters or their state"
            elif value.numel() > 1 and owner is None:
                wrong = f"is a tensor of shape {list(value.shape)} that belongs to no parameter"
            elif value.numel() > 1 and name is not None and value.shape != owner.shape:
                raise ValueError(
                    f"{path} of {name!r} must have the parameter's shape {list(owner.shape)}, one "
                    f"entry per weight, but has {list(value.shape)}; build a new optimizer"
                )
            if wrong:
                raise NotImplementedError(
                    f"{path} {wrong}, so the state cannot follow the weights; train with an "
                    "elementwise optimizer, such as SGD or Adam, pass the optimizer inside a "
                    "wrapper (.optimizer), or do not pass the optimizer, and build a new one "
                    "afterwards"
                )

    def tensors_of(self, parameter: Tensor) -> list[Tensor]:
        """Return the tensors in a parameter's state that have the parameter's shape."""
        state = [x.value for x in self.kept if x.owner is parameter]
        return [x for x in state if isinstance(x, Tensor) and x.shape == parameter.shape]


def _groups(optimizer: Optimizer) -> list[list[Tensor]]:
    return [group["params"] for group in getattr(optimizer, "param_groups", ())]


def _walk(
    value: Any, path: str, owner: Any, layouts: list[list[Any]], seen: set[int]
) -> Iterator[StateEntry]:
    """Yield what is kept; match lists of tensors with the lists of parameters in ``layouts``."""
    if isinstance(value, (Optimizer, dict, *SEQUENCES)):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, Optimizer):
        yield StateEntry(path, None, value)
        groups = _groups(value)
        layouts = [groups, [p for group in groups for p in group], *groups]
        for name, held in vars(value).items():
            yield from _walk(held, f"{path}.{name}", None, layouts, seen)
    elif isinstance(value, dict):
        for key, held in value.items():
            yield StateEntry(path, None, key)
            where = path if isinstance(key, Tensor) else f"{path}[{key!r}]"
            mine = key if isinstance(key, Tensor) else owner
            yield from _walk(held, where, mine, layouts, seen)
    elif isinstance(value, SEQUENCES):
        if owner is None:
            places = [layout for layout in layouts if _fits(value, layout)]
            if len({tuple(map(id, layout)) for layout in places}) == 1:
                owner = places[0]
        owners = owner if isinstance(owner, list) else [owner] * len(value)
        for i, (held, mine) in enumerate(zip(value, owners, strict=True)):
            yield from _walk(held, f"{path}[{i}]", mine, layouts, seen)
    elif isinstance(value, MethodType) and isinstance(value.__self__, Optimizer | nn.Module):
        yield from _walk(value.__self__, path, None, layouts, seen)
    elif layouts and hasattr(value, "__dict__") and not isinstance(value, _ATOMS):
        for name, held in vars(value).items():  # but not of objects inside
            yield from _walk(held, f"{path}.{name}", owner, [], seen)
    else:
        yield StateEntry(path, owner, value)


def _fits(value: Any, layout: Any) -> bool:
    """Return whether tensors are arranged like these parameters."""
    if isinstance(layout, Tensor):
        return isinstance(value, Tensor) and value.shape == layout.shape
    is_list = isinstance(value, list | tuple) and len(value) == len(layout)
    return is_list and all(map(_fits, value, layout))


def watch_optimizers(values: Tensor) -> None:
    """Make ``step()`` raise an error in optimizers whose moments still have a former length."""
    # torch's fused optimizers do not check the length, and would write outside their memory.
    _hook_into_optimizers()
    _FORMER_NNZ.setdefault(values, set()).add(values.numel())


@cache
def _hook_into_optimizers() -> None:
    register_optimizer_step_pre_hook(_check_moments)


def _check_moments(optimizer: Optimizer, *_: Any) -> None:
    if is_dynamo_compiling():
        return
    for values, lengths in list(_FORMER_NNZ.items()):
        for name, held in optimizer.state.get(values, {}).items():
            wrong = isinstance(held, Tensor) and held.ndim == 1 and len(held) != values.numel()
            if wrong and len(held) in lengths:
                raise RuntimeError(
                    f"{name} of the optimizer has {len(held)} entries, but load_state_dict or "
                    f"set_pattern changed the layer's pattern, which now has {values.numel()} "
                    "active weights; build a new optimizer"
                )
