"""How the library behaves while torch traces, transforms or fakes what runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

F = TypeVar("F", bound=Callable[..., Any])
_BEFORE_2_12 = torch.torch_version.TorchVersion(torch.__version__) < "2.12"


def constant_in_graphs(function: F) -> F:
    """``torch.compiler.assume_constant_result`` without importing the compiler, which takes 2 s."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_exporting() -> bool:
    """``torch.compiler.is_exporting``, which before torch 2.12 says yes in torch.compile, too."""
    return torch.compiler._is_exporting_flag if _BEFORE_2_12 else torch.compiler.is_exporting()


@contextmanager
def outside_tracing() -> Iterator[None]:
    """Leave any torch.inference_mode, torch.func transform, FakeTensorMode, tracer or other mode.

    What is computed inside are real tensors that any later call can use.
    """
    set_jit_tracer: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]
    with ExitStack() as stack:
        stack.callback(set_jit_tracer, torch._C._get_tracing_state())
        set_jit_tracer(None)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        yield


class CompiledAttributes:
    """Attributes that compiled code reads: it looks each up when needed, but copies a dict whole.

    A missing one reads as empty. torch reads it only while it looks for the reason why a graph
    does not fit, in a pattern from which compiled code has read nothing yet.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ABSENT


class _Absent(CompiledAttributes):
    def __getitem__(self, index: object) -> Any:
        return self


_ABSENT = _Absent()


def when_imported(name: str, then: str) -> None:
    """Import a second module as soon as the first is imported."""
    if name in sys.modules:
        importlib.import_module(then)
    else:
        sys.meta_path.insert(0, _ImportHook(name, then))


class _ImportHook(MetaPathFinder):
    def __init__(self, name: str, then: str) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                importlib.import_module(self.then)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
