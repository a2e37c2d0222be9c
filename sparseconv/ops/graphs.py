"""Work of a GPU that CUDA graphs repeat: one launch in the place of many."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class CudaGraphs:
    """Captures what one CUDA device computes; all graphs share one pool of memory.

    So replay them from one stream at a time, and read the outputs of one before the next.
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
        """Take another pool: one where outputs are still alive cannot be opened again."""
        self.__dict__.pop("_pool", None)

    def on_side_stream(self, call: Callable[[], T]) -> T:
        """Run on the stream of the captures: autograd remembers the streams of its nodes."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                outputs = call()
            current.wait_stream(self._side)
        return outputs

    def capture(self, call: Callable[[], T]) -> Callable[[], T]:
        """Return what replays a call; it writes over the outputs of the last replay.

        Raises:
            RuntimeError: the call does something that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # Restores the current stream also if the capture fails, which torch's does not.
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


class Repeated:
    """Does the same work on the same memory: eagerly once, which loads kernels, then replayed.

    Where it cannot be captured, a warning says why and it stays eager.
    """

    def __init__(self, graphs: CudaGraphs) -> None:
        self._graphs = graphs
        self._key: Hashable = object()
        self._replay: Callable[[], Any] | None = None

    def __call__(self, key: Hashable, work: Callable[[], T]) -> T:
        """Do the work; another ``key`` says that the work or its memory is another."""
        if key != self._key:
            self._key, self._replay = key, None
            return work()
        if self._replay is None:
            try:
                self._replay = self._graphs.capture(work)
            except RuntimeError as error:
                warnings.warn(
                    f"patterns are updated without CUDA graphs, more slowly: {error}", stacklevel=2
                )
                self._replay = work
        return self._replay()
