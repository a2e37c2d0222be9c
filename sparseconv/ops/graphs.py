"""Repeat work on a GPU with CUDA graphs: one launch instead of many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class CudaGraphs:
    """Capture work on one CUDA device, with one memory pool for all graphs.

    Because the graphs share the pool, replay them from one stream at a time, and read the outputs
    of each graph before replaying the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @functools.cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @functools.cached_property
    def _side(self) -> Any:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Switch to a new pool, because a pool with live outputs cannot be reused."""
        self.__dict__.pop("_pool", None)

    def on_side_stream(self, call: Callable[[], T]) -> T:
        """Run on the capture stream, because autograd remembers the streams of its nodes."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                outputs = call()
            current.wait_stream(self._side)
        return outputs

    def capture(self, call: Callable[[], T]) -> Callable[[], T]:
        """Return a function that replays the call; a replay overwrites the outputs of the last."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # Restore the current stream even if the capture fails; torch.cuda.graph does not.
            torch.cuda.stream(torch.cuda.current_stream()),
            # thread_local: a DataLoader's thread that pins memory must not break the capture.
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
            ),
        ):
            outputs = call()

        def replay() -> T:
            graph.replay()
            return outputs

        return replay
