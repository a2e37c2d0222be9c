"""CUDA graphs as a CPU can have them: the operations of a call, replayed on the same memory.

Python code runs while recording only, as in a graph: numbers are those of the recording, and a
tensor that has moved since is read at its old place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


def record(call: Callable[[], Any], state: Sequence[Tensor]) -> Callable[[], Any]:
    """Return what replays ``call``; recording leaves ``state``, all that it changes, as it was."""
    before = [tensor.detach().clone() for tensor in state]
    with _Recorder() as recorder:
        outputs = call()
    with torch.no_grad():
        for tensor, content in zip(state, before, strict=True):
            tensor.detach().copy_(content)

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
    """Makes ``GraphedStep`` record and replay on the CPU, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures = self.replays = self.warm_ups = 0

        def on_side_stream(step: GraphedStep, call: Callable[[], Outputs]) -> Outputs:
            self.warm_ups += 1
            return call()

        def capture(step: GraphedStep, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
            self.captures += 1
            replay = record(call, step._tensors())

            def counted() -> Outputs:
                self.replays += 1
                return replay()

            return counted

        monkeypatch.setattr(GraphedStep, "_on_side_stream", on_side_stream)
        monkeypatch.setattr(GraphedStep, "_capture", capture)
        monkeypatch.setattr(GraphedStep, "_only_device", staticmethod(lambda _: None))
