"""Work of a GPU that CUDA graphs repeat: one launch in the place of many."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")


class CudaGraphs:
    """Captures what one CUDA device computes; all graphs share one pool of memory.

    So replay them from one stream at a time, and read the outputs of one before the next.
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
        """Take another pool: one where outputs are still alive cannot be opened again."""
        self.__dict__.pop("_pool", None)

    def give_up(self) -> None:
        """Capture no more: a capture that failed may have left the pool unusable."""
        self.given_up = True
        self.forget()

    def can_capture(self) -> bool:
        """Return whether none has failed, and the caller is not capturing itself."""
        return not (self.given_up or torch.cuda.is_current_stream_capturing())

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

    Where it cannot be captured, a warning says why; from then on all work of ``graphs`` is eager.
    """

    def __init__(self, graphs: CudaGraphs) -> None:
        self._graphs = graphs
        self._key: Hashable = object()
        self._replay: Callable[[], Any] | None = None

    def __call__(self, key: Hashable, work: Callable[[], T]) -> T:
        """Do the work; another ``key`` says that the work or its memory is another."""
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
                f"patterns are updated without CUDA graphs, more slowly: {error}", stacklevel=2
            )
            return work()
        return cast(T, self._replay())
