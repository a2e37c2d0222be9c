"""CUDA graphs as a CPU can have them: the operations of a call, replayed on the same memory.

Python that ran while recording is gone at the replay, as it is in a graph: numbers are those of the
recording, and a tensor that lies elsewhere by then is read where it lay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
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
            for old, new in zip(
                tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr() and old.numel():
                    old.detach().copy_(new)
        return outputs

    return replay
