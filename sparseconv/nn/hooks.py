"""Whether calling a module does more than its class's ``forward``, or torch more than compute."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from sparseconv.functional.chain import runs_eagerly


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


def in_plain_eager_mode() -> bool:
    """Whether torch just computes: no tracer, cast, transform, mode, or hook of all modules."""
    return (
        runs_eagerly()
        and not torch._C._len_torch_dispatch_stack()
        and not torch_module._global_forward_hooks
        and not torch_module._global_forward_pre_hooks
        and not torch_module._global_backward_hooks
        and not torch_module._global_backward_pre_hooks
        and (not torch._C._len_torch_function_stack() or _is_default_device_all())
    )


def _is_default_device_all() -> bool:
    """Whether the modes are those of torch.set_default_device(), which see new tensors alone."""
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return all(type(mode) is DeviceContext for mode in modes)
