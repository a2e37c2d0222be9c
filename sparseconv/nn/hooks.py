"""What may be read of a module in place of calling it: its parameters, and what hooks see."""

from __future__ import annotations

from typing import Any

import torch.nn.modules.module as torch_module
from torch import nn


def has_own_code(module: nn.Module) -> bool:
    """Whether calling this module does something that calling its class does not."""
    attributes = module.__dict__  # half the time of module.name, which is asked four times a call
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
        or type(module).__call__ is not nn.Module.__call__
    )


def own_parameters(module: nn.Module, *names: str) -> Any:
    """Return the parameters of these names; None where one is frozen, pruned or parametrized.

    Such a one is a buffer or an attribute, and to take a missing bias for none would be wrong.
    """
    try:
        return [module._parameters[name] for name in names]
    except KeyError:
        return None


def all_modules_are_watched() -> bool:
    """Whether there are hooks that torch calls for every module."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
