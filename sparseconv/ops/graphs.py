"""Repeat work on a GPU with CUDA graphs: one launch instead of many."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")


class CudaGraphs:
    """Capture work on one CUDA device, with one memory pool for all graphs.

    Because the graphs share the pool, replay them from one stream at a time, and read the outputs
    of each graph before replaying the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.given_up = False

    @functools.cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @functools.cached_property
    def _side(self) -> Any:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Switch to a new pool, because a pool with live outputs cannot be reused."""
        self.__dict__.pop("_pool", None)

    def give_up(self) -> None:
        """Stop capturing, because a failed capture may have left the pool unusable."""
        self.given_up = True
        self.forget()

    def can_capture(self) -> bool:
        """Return whether no capture has failed and the caller is not capturing."""
        return not (self.given_up or torch.cuda.is_current_stream_capturing())

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
        """Return a function that replays the call; each replay overwrites the outputs of the last.

        Raises:
            RuntimeError: the call cannot be captured.
        """
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


class Repeated:
    """Repeat work on the same memory: once eagerly, which loads the kernels, then with replays.

    If the work cannot be captured, a warning says why, and ``graphs`` captures nothing more.
    """

    def __init__(self, graphs: CudaGraphs) -> None:
        self._graphs = graphs
        self._key: Hashable = object()
        self._replay: Callable[[], Any] | None = None

    def __call__(self, key: Hashable, work: Callable[[], T]) -> T:
        """Do the work; a new ``key`` means that the work or its memory has changed."""
        if self._key == key and self._replay is not None and not self._graphs.given_up:
            return cast(T, self._replay())
        if self._key != key or not self._graphs.can_capture():
            self._replay = None
            outputs = work()
            self._key = key
            return outputs
        try:
            self._replay = self._graphs.capture(work)
        except RuntimeError as error:
            self._graphs.give_up()
            warnings.warn(
                f"patterns are updated without CUDA graphs, which is slower: {error}", stacklevel=2
            )
            return work()
        return cast(T, self._replay())
