"""Help code that torch may trace, transform or run with fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

_BEFORE_2_12 = torch.torch_version.TorchVersion(torch.__version__) < "2.12"


def is_exporting() -> bool:
    """Return whether torch is exporting; torch's test before 2.12 is also true in torch.compile."""
    return torch.compiler._is_exporting_flag if _BEFORE_2_12 else torch.compiler.is_exporting()


@contextmanager
def outside_tracing() -> Iterator[None]:
    """Leave torch.inference_mode, torch.func transforms, FakeTensorMode, tracers and other modes.

    Tensors computed in the block are real, and any later call can use them.
    """
    set_jit_tracer: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]
    with ExitStack() as stack:
        stack.callback(set_jit_tracer, torch._C._get_tracing_state())
        set_jit_tracer(None)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C.DisableTorchFunction())
        yield
