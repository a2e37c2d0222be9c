"""What optimizers keep for each parameter, followed through the optimizers that they hold."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SEQUENCES = (list, tuple, set, frozenset, deque)


class Kept(NamedTuple):
    """Something that an optimizer keeps, and where.

    Attributes:
        path: of attributes and keys, from the class of the optimizer on.
        owner: the parameter that it belongs to, or None.
        value: no container; of dicts also the keys; of optimizers themselves, then what they keep.
    """

    path: str
    owner: Any
    value: Any


def followed(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], model: nn.Module | None = None
) -> list[Kept]:
    """List what an optimizer keeps, and those that it holds (SAM, Lookahead, lists of them).

    A tensor belongs to the parameter that is its key in a dict, or has its place in a list like
    those of ``param_groups``.

    Args:
        parameters: by name, those whose entries are about to move or to fall.
        model: theirs, where a copy takes its place; None where all stay the same objects.

    Raises:
        TypeError: no optimizer. ValueError, NotImplementedError: one that keeps something which
            cannot follow these parameters.
    """
    found = check_optimizer(optimizer)
    optimizers = [kept.value for kept in found if isinstance(kept.value, Optimizer)]
    trained = trained_by(found)
    names = {id(parameter): name for name, parameter in parameters.items()}
    if model is not None and any(id(parameter) not in names for parameter in trained):
        raise ValueError(
            "the optimizer holds a parameter that is not the model's; give the one that trains "
            "this model alone"
        )
    ours = {id(x) for x in (*optimizers, *trained, *parameters.values())}
    known = ours | {id(kept.value) for kept in found} | {id(p.grad) for p in trained}
    sizes = {p.shape for p in parameters.values()}

    def is_left(x: Any) -> bool:
        """Whether something would go on with what was before."""
        if model is None:
            return _is_state(x) and x.shape in sizes and id(x) not in known
        held = x.parameters() if isinstance(x, nn.Module) else [x]
        return any(id(each) in ours for each in held) or (type(x) is int and x in ours)

    for path, owner, value in found:
        name = names.get(id(owner))
        if isinstance(value, torch.optim.LBFGS):
            raise NotImplementedError(
                f"{path} is LBFGS, whose history is of all parameters together and cannot be "
                "followed; use SGD, Adam or another elementwise optimizer"
            )
        if isinstance(value, Tensor):
            if id(value) in ours:
                if name is not None and id(value) not in names:
                    raise NotImplementedError(
                        f"{path} is trained in the place of {name!r}, which cannot be followed; "
                        "give an optimizer of the model's own parameters"
                    )
            elif owner is None and _is_state(value):
                raise NotImplementedError(
                    f"{path} is a tensor of shape {list(value.shape)} that belongs to no parameter "
                    "alone, so it cannot be followed; build a new optimizer"
                )
            elif name is not None and _is_state(value) and value.shape != owner.shape:
                raise ValueError(
                    f"{path} of {name!r} must have its shape {list(owner.shape)}, an entry for "
                    f"each weight, but has {list(value.shape)}; build a new optimizer"
                )
        elif isinstance(value, Optimizer) or value is model:
            continue
        elif any(map(is_left, _held(value))):
            raise NotImplementedError(
                f"{path} is a {type(value).__name__} that holds parameters or their state where "
                "they cannot be followed; give the optimizer inside, and wrap again what comes of "
                "it, or build a new one"
            )
    return found


def check_optimizer(optimizer: Optimizer) -> list[Kept]:
    """Return what an optimizer keeps; TypeError for another object."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, but got {type(optimizer).__name__}; of a "
            "wrapper or a learning-rate scheduler give the optimizer inside"
        )
    return list(_walk(optimizer, type(optimizer).__name__, None, [], set()))


def trained_by(found: Sequence[Kept]) -> list[Tensor]:
    """Return the parameters in the groups of an optimizer, and of those that it holds."""
    optimizers = [kept.value for kept in found if isinstance(kept.value, Optimizer)]
    return [p for each in optimizers for group in _groups(each) for p in group]


def state_of(found: Sequence[Kept], parameter: Tensor) -> list[Tensor]:
    """Return the tensors of a parameter's state, each memory once, and not its own."""
    own = [parameter] if parameter.grad is None else [parameter, parameter.grad]
    state = {id(x): x for x in own} | {
        id(kept.value): kept.value
        for kept in found
        if kept.owner is parameter
        and isinstance(kept.value, Tensor)
        and kept.value.shape == parameter.shape
    }
    places = {x.data_ptr() or id(x): x for x in reversed(state.values())}
    return [x for x in state.values() if places[x.data_ptr() or id(x)] is x][len(own) :]


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1


def _groups(optimizer: Optimizer) -> list[list[Tensor]]:
    return [group["params"] for group in getattr(optimizer, "param_groups", ())]


def _walk(
    value: Any, path: str, owner: Any, layouts: list[list[Any]], seen: set[int]
) -> Iterator[Kept]:
    """Yield what is kept; ``layouts`` are the lists of parameters whose places others may have."""
    if isinstance(value, (Optimizer, dict, *SEQUENCES)):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, Optimizer):
        yield Kept(path, None, value)
        groups = _groups(value)
        layouts = [groups, [p for group in groups for p in group], *groups]
        for name, held in vars(value).items():
            if not name.endswith("_hooks"):
                yield from _walk(held, f"{path}.{name}", None, layouts, seen)
    elif isinstance(value, dict):
        for key, held in value.items():
            yield Kept(path, None, key)
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
    else:
        yield Kept(path, owner, value)


def _fits(value: Any, layout: Any) -> bool:
    if isinstance(layout, Tensor):
        return isinstance(value, Tensor) and value.shape == layout.shape
    return (
        isinstance(value, list | tuple)
        and len(value) == len(layout)
        and all(map(_fits, value, layout))
    )


def _held(value: Any) -> Iterator[Any]:
    """Yield an object and what it holds, at any depth; not what is in classes and in modules."""
    stack, seen = [value], set()
    while stack:
        held = stack.pop()
        if id(held) in seen or isinstance(held, type | ModuleType):
            continue
        seen.add(id(held))
        yield held
        if isinstance(held, FunctionType):  # its globals hold everything
            stack += [held.__closure__, held.__defaults__, vars(held)]
        elif not isinstance(held, nn.Module):
            stack += gc.get_referents(held)
