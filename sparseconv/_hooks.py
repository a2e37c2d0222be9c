"""Whether calling a module runs more than its class's ``forward``."""

from __future__ import annotations

import torch.nn.modules.module as torch_module
from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether calling this module runs somebody's hooks, its own or those of all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def has_own_code(module: nn.Module) -> bool:
    """Whether something other than the class decides what calling this module does."""
    return (
        "forward" in module.__dict__
        or has_hooks(module)
        or type(module).__call__ is not nn.Module.__call__
    )
