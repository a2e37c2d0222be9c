"""CUDA graphs as a CPU can have them: the operations of a call, replayed on the same memory.

Python code runs while recording only, as in a graph: numbers are those of the recording, and a
tensor that has moved since is read at its old place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparseconv.training.graphed import GraphedStep, Outputs


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []
        self.changed: dict[int, tuple[Tensor, Tensor]] = {}  # what was there before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        undeclared = "native_batch_norm" in str(func)  # writes into running statistics
        for formal, given in zip(func._schema.arguments, args, strict=False):
            if undeclared or (formal.alias_info is not None and formal.alias_info.is_write):
                for tensor in (x for x in tree_leaves(given) if isinstance(x, Tensor)):
                    memory = torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())
                    self.changed.setdefault(memory.data_ptr(), (memory, memory.clone()))
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


def record(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return what replays ``call``; recording leaves all that it changes as it was."""
    with _Recorder() as recorder:
        outputs = call()
    for memory, content in recorder.changed.values():
        memory.copy_(content)

    @torch.no_grad()
    def replay() -> Any:
        for func, args, kwargs, result in recorder.operations:
            again = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(result), again, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr() and old.numel():
                    old.detach().copy_(new)
        return outputs

    return replay


class FakeCudaGraph:
    """Makes CUDA graphs record and replay on the CPU, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures = self.replays = self.warm_ups = 0

        def on_side_stream(step: GraphedStep, *inputs: Tensor) -> Outputs:
            self.warm_ups += 1
            return step.function(*inputs)

        def capture(step: GraphedStep, *inputs: Tensor) -> Callable[[], Outputs]:
            self.captures += 1
            replay = record(lambda: step.function(*inputs))

            def counted() -> Outputs:
                self.replays += 1
                return replay()

            return counted

        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        monkeypatch.setattr(GraphedStep, "_on_side_stream", on_side_stream)
        monkeypatch.setattr(GraphedStep, "_capture", capture)
        monkeypatch.setattr(GraphedStep, "_only_device", staticmethod(lambda _: None))
