"""Training steps as CUDA graphs that stay valid when patterns change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.sparse_layer import SparseLayer
from sparseconv.ops import gpu_plans

Outputs = tuple[Tensor, ...]

WARM_UP = 3  # calls before a capture: kernels are loaded, gradients and moments allocated


class _Graph(NamedTuple):
    inputs: tuple[Tensor, ...]
    replay: Callable[[], Outputs]
    addresses: list[int]  # of all that it reads and writes


@dataclass(eq=False, repr=False)
class GraphedStep:
    """Run ``function(*tensors)``, a training step, as CUDA graphs: one per input shape and dtype.

    The first steps with a given shape run eagerly; the next one is captured, then replayed with a
    single launch instead of hundreds. Graphs follow new patterns, and are captured again if nnz or
    a tensor's place in memory changes. All graphs share one memory pool: use one stream at a time.

    Args:
        model: a model on one CUDA device.
        function: accepts tensors, returns a tuple of tensors, and changes everything else in place.
            It runs zero_grad, forward, backward, and an optimizer's step with ``capturable=True``
            (``lr`` must be a tensor if it changes). Replays skip hooks and Python code: with
            gradient growth, call the function itself in the step before an update.
        optimizer: the optimizer whose ``step`` the function calls.

    Raises:
        ValueError: the model is not on one CUDA device.

    Example:
        >>> def function(x):
        ...     optimizer.zero_grad()
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return (loss.detach(),)
        >>> if torch.cuda.is_available():
        ...     model = SparseConv1d(4, 8, 9, device="cuda")
        ...     optimizer = torch.optim.SGD(model.parameters(), 0.1)
        ...     step = GraphedStep(model, function, optimizer)
        ...     (loss,) = step(torch.randn(16, 4, 100, device="cuda"))

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    model: nn.Module
    function: Callable[..., Outputs]
    optimizer: torch.optim.Optimizer

    def __post_init__(self) -> None:
        self._layers = [layer for layer in self.model.modules() if isinstance(layer, SparseLayer)]
        self._device = self._only_device({tensor.device for tensor in self._tensors()})
        self._side: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, _Graph] = {}
        self._calls: Counter[Hashable] = Counter()
        self._patterns: list[KernelCSR] = []  # whose plans the graphs read

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Take a step; the next step overwrites the returned tensors.

        Raises:
            RuntimeError: the function cannot be captured, for example because it calls
                ``.item()`` or ``.cpu()``.
        """
        self._follow()
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        graph = self._graphs.get(key)
        if graph is not None and graph.addresses == self._addresses():
            for held, new in zip(graph.inputs, inputs, strict=True):
                held.copy_(new)
            return graph.replay()
        if graph is not None:
            self._forget()
        if not self._patterns:
            self._patterns = [layer.pattern for layer in self._layers]
        if self._calls[key] < WARM_UP:
            self._calls[key] += 1
            return self._on_side_stream(*inputs)
        copies = tuple(tensor.clone() for tensor in inputs)
        replay = self._capture(*copies)
        self._graphs[key] = _Graph(copies, replay, self._addresses())
        return replay()

    def _on_side_stream(self, *inputs: Tensor) -> Outputs:
        """Run on the capture stream, because autograd remembers the streams of its nodes."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                outputs = self.function(*inputs)
            current.wait_stream(self._side)
        return outputs

    def _capture(self, *inputs: Tensor) -> Callable[[], Outputs]:
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
            outputs = self.function(*inputs)

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _follow(self) -> None:
        """Update the plans of changed patterns; forget all graphs if nnz or a block has changed."""
        for i, known in enumerate(self._patterns):
            layer = self._layers[i]
            pattern = layer.pattern
            if pattern is known:
                continue
            if (pattern.nnz, pattern.block) != (known.nnz, known.block):
                self._forget()
                return
            gpu_plans.refresh(layer.crow_indices, layer.col_indices)
            self._patterns[i] = pattern

    def _forget(self) -> None:
        for held in (self._graphs, self._calls, self._patterns):
            held.clear()
        self._pool = torch.cuda.graph_pool_handle()  # one with live outputs cannot be reused

    def _tensors(self) -> list[Tensor]:
        """Return the tensors that a graph reads or writes."""
        tensors: list[Any] = [*self.model.parameters(), *self.model.buffers()]
        tensors += [entry for state in self.optimizer.state.values() for entry in state.values()]
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self._tensors()]

    @staticmethod
    def _only_device(found: set[torch.device]) -> torch.device:
        if len(found) != 1 or next(iter(found)).type != "cuda":
            raise ValueError(
                "a graphed step needs a model on one CUDA device, but the model's tensors are on "
                f"{', '.join(sorted(map(str, found)))}; call model.cuda(), or run the step without "
                "a graph"
            )
        return found.pop()
