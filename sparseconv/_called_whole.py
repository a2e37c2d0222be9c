"""Which ``nn.Sequential`` of a model run whole, from first to last, and in no other way.

A module may be replaced by an equal one whatever the model does with it. Two neighbours may be
merged only if nobody takes what stands between them, and that depends on the code around them:
``self.net(x)`` runs a Sequential whole, ``self.net[:2](x)`` or ``for layer in self.net`` need not.
Proven here for every module from the root down, by reading: the bytecode of ``forward``, and of the
methods that it calls, uses a child only by calling it, and besides children only what can hold no
module. That holds for every path through the code. What it does not see through, such as a loop
over a ``ModuleList``, is not proven.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from sparseconv._hooks import has_hooks
from sparseconv.models.block import Block


def called_whole(root: nn.Module) -> list[nn.Sequential]:
    """Return the Sequentials below ``root`` that are proven to run whole whenever they run.

    The proof is about one place in the tree: a module that hangs in several is not looked for.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
        >>> called_whole(net) == [net, net[0]]
        True
    """
    found, visited = [], set()
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if id(module) in visited or has_hooks(module):  # a hook may look at anything below
            continue
        visited.add(id(module))
        if _is_plain_sequential(module):
            assert isinstance(module, nn.Sequential)
            found.append(module)
        waiting += reversed(list(_whole_children(module)))
    return found


def _is_plain_sequential(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward in (nn.Sequential.forward, Block.forward)
        and type(module).__iter__ is nn.Sequential.__iter__
        and "forward" not in vars(module)
        and type(module).__call__ is nn.Module.__call__
    )


def _whole_children(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules below this one that it calls whole, and not otherwise."""
    if _is_plain_sequential(module):
        yield from module._modules.values()  # type: ignore[misc]
        return
    children = {name: child for name, child in module._modules.items() if child is not None}
    kind = type(module)
    if (
        not children
        or "forward" in vars(module)
        or kind.__call__ is not nn.Module.__call__
        or kind.__getattr__ is not nn.Module.__getattr__
        or kind.__getattribute__ is not nn.Module.__getattribute__
    ):
        return
    taken = _children_taken(module, set(children))
    yield from (child for name, child in children.items() if name not in taken)


# What the code says: which children does forward use in another way than by calling them?


def _children_taken(module: nn.Module, children: set[str]) -> set[str]:
    """Names of the children that some path through ``forward`` may not call whole."""
    taken: set[str] = set()
    owners = [owner for owner in type(module).__mro__ if owner not in (nn.Module, object)]
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for member in (vars(owner)[name] for owner in owners if name in vars(owner)):
            uses = _uses_of_self(member)
            if uses is None:
                return children
            for attribute, called in uses:
                if attribute in children:
                    taken |= set() if called else {attribute}
                elif attribute in vars(module):
                    value = vars(module)[attribute]
                    if not (
                        _knows_only_its_arguments(value) if called else _holds_no_module(value)
                    ):
                        return children
                elif hasattr(nn.Module, attribute) and attribute != "forward":
                    return children  # children(), _modules, get_submodule, ...
                else:
                    waiting.append(attribute)
    return taken


def _holds_no_module(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_holds_no_module(item) for item in value)
    inert = int | float | complex | str | bytes | None | torch.dtype | torch.device | torch.Tensor
    return isinstance(value, inert)


def _knows_only_its_arguments(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return value.__closure__ is None
    return isinstance(value, BuiltinFunctionType | type) and not isinstance(
        getattr(value, "__self__", None), nn.Module
    )


def _uses_of_self(member: Any) -> list[tuple[str, bool]] | None:
    """What ``_attributes`` says of a member of a class; None if it has no code to be read."""
    if isinstance(member, property):
        member = member.fget
    while isinstance(member, FunctionType):
        wrapped = getattr(member, "__wrapped__", None)
        if wrapped is None:
            return _attributes(member.__code__)
        if not str(member.__globals__.get("__name__")).startswith("torch."):
            return None  # a decorator; torch.no_grad() and the like do nothing with self
        member = wrapped
    computes = callable(member) or hasattr(type(member), "__get__")
    return None if computes else []  # a constant of the class


def _attributes(code: CodeType) -> list[tuple[str, bool]] | None:
    """List ``(attribute, is only called)`` per ``self.attribute``; None if self goes astray."""
    if code.co_argcount == 0:
        return None
    itself = code.co_varnames[0]
    if itself in code.co_cellvars:  # an inner function knows self
        return None
    uses = []
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    for at, instruction in enumerate(instructions):
        names = instruction.argval
        names = names if isinstance(names, tuple) else (names,)
        if not instruction.opname.startswith("LOAD_FAST") or itself not in names:
            continue
        before, after = instructions[at - 1], instructions[at + 1]
        if before.argval == "__class__" and after.opname in ("PRECALL", "CALL", "LOAD_SUPER_ATTR"):
            named = next(i for i in instructions[at + 1 :] if i.opname.startswith("LOAD_"))
            uses.append((str(named.argval), True))  # super().name: every class's is looked at
            continue
        if names[-1] != itself or names.count(itself) > 1:
            return None
        if after.opname == "LOAD_METHOD" or (
            after.opname == "LOAD_ATTR" and "NULL|self" in after.argrepr
        ):
            uses.append((str(after.argval), True))
        elif after.opname == "LOAD_ATTR":
            uses.append((str(after.argval), False))
        elif after.opname != "STORE_ATTR":
            return None
    return uses
