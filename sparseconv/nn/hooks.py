"""Whether calling a module runs more than its class's ``forward``."""

from __future__ import annotations

import torch.nn.modules.module as torch_module
from torch import nn


def has_hooks_for_all() -> bool:
    """Whether somebody's hooks run in every module's call."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def has_code_of_its_own(module: nn.Module) -> bool:
    """Whether calling this module does something that is not its class's."""
    attributes = module.__dict__  # half the time that module.name takes, four times a call
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
    )


def has_own_code(module: nn.Module) -> bool:
    """Whether something other than the class decides what calling this module does."""
    return (
        has_code_of_its_own(module)
        or has_hooks_for_all()
        or type(module).__call__ is not nn.Module.__call__
    )
