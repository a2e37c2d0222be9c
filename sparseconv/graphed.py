"""A training step as CUDA graphs that go on serving when the patterns change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseconv.modules import SparseConv1d
from sparseconv.pattern import KernelCSR

Outputs = tuple[Tensor, ...]

WARM_UP = 3  # calls before a capture: kernels are loaded, gradients and moments allocated


class Slot(KernelCSR):
    """A pattern whose content can be replaced: what was derived from it keeps its memory.

    That is what a CUDA graph needs, which reads the same addresses at every replay. Nobody but the
    graph may hold it.
    """

    __slots__ = ()

    def follow(self, pattern: KernelCSR) -> None:
        """Take the content of a pattern with the same shape and nnz, in place."""
        for own, new in ((self._crow, pattern.crow_indices), (self._col, pattern.col_indices)):
            own.copy_(new)
        object.__setattr__(self, "_versions", (self._crow._version, self._col._version))
        object.__setattr__(self, "_hash", None)
        for (make, args), held in self._derived.items():
            _overwrite(held, make(self, *args))


def _overwrite(held: Any, new: Any) -> None:
    if isinstance(held, Tensor) and isinstance(new, Tensor) and held.shape == new.shape:
        held.copy_(new)
    elif isinstance(held, tuple) and isinstance(new, tuple) and len(held) == len(new):
        for old_part, new_part in zip(held, new, strict=True):
            _overwrite(old_part, new_part)
    elif held != new:
        raise RuntimeError(
            "this was derived from a pattern and cannot be rewritten in place for another one with "
            f"the same shape and nnz: {held!r}"
        )


class _Graph(NamedTuple):
    inputs: tuple[Tensor, ...]
    replay: Callable[[], Outputs]
    reads: list[tuple[Tensor, int]]  # the model's tensors, and where they lay

    def stands(self) -> bool:
        """Say whether everything still lies where the graph looks for it."""
        return all(tensor.data_ptr() == address for tensor, address in self.reads)


class GraphedStep:
    """Call ``function(*tensors)``, a training step, from CUDA graphs: one for each input shape.

    The first calls with a shape run as they are (they count as steps like any other), then one is
    captured and from there on replayed: a launch instead of hundreds. When a ``SparseConv1d`` of
    the model has another pattern with as many active weights, its plans are written into the memory
    that the graphs read; with another number of them the graphs are captured anew.

    Args:
        model: on a CUDA device. Its parameters and buffers stay the same tensors.
        function: takes tensors, returns a tuple of tensors, and changes everything else in place:
            zero_grad, forward, backward, an optimizer's step with ``capturable=True`` (and ``lr`` a
            tensor if it is to change). Hooks and Python code in it run while capturing only.

    Raises:
        ValueError: the model is not on a CUDA device.

    Example:
        >>> import sparseconv as sc
        >>> if torch.cuda.is_available():
        ...     model = sc.SparseConv1d(4, 8, 9, device="cuda")
        ...     optimizer = torch.optim.SGD(model.parameters(), 0.1)
        ...
        ...     def function(x):
        ...         optimizer.zero_grad()
        ...         loss = model(x).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         return (loss.detach(),)
        ...
        ...     step = GraphedStep(model, function)
        ...     (loss,) = step(torch.randn(16, 4, 100, device="cuda"))

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, model: nn.Module, function: Callable[..., Outputs]) -> None:
        self.model, self.function = model, function
        self._layers = [layer for layer in model.modules() if isinstance(layer, SparseConv1d)]
        self._check_devices({tensor.device.type for tensor in self._pinned()})
        self._graphs: dict[Hashable, _Graph] = {}
        self._calls: Counter[Hashable] = Counter()
        self._slots: list[Slot] = []
        self._patterns: list[KernelCSR] = []  # whose content the slots have

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Take a step; what it returns is overwritten by the next one.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        self._follow()
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        graph = self._graphs.get(key)
        if graph is not None and graph.stands():
            for held, new in zip(graph.inputs, inputs, strict=True):
                held.copy_(new)
            return graph.replay()
        if graph is not None:
            self._forget()
        if not self._slots:
            self._patterns = [layer.pattern for layer in self._layers]
            self._slots = [Slot(p.crow_indices, p.col_indices, p.shape) for p in self._patterns]
        if self._calls[key] < WARM_UP:
            self._calls[key] += 1
            return self._aside(lambda: self._in_slots(inputs))
        self._graphs[key] = graph = self._captured(inputs)
        return graph.replay()

    def _follow(self) -> None:
        """Bring the slots up to date, or begin anew where nnz has changed."""
        for i, known in enumerate(self._patterns):
            pattern = self._layers[i].pattern
            if pattern is known:
                continue
            if pattern.nnz != known.nnz:
                self._forget()
                return
            self._slots[i].follow(pattern)
            self._patterns[i] = pattern

    def _forget(self) -> None:
        for held in (self._graphs, self._calls, self._slots, self._patterns):
            held.clear()

    def _in_slots(self, inputs: tuple[Tensor, ...]) -> Outputs:
        """Call the function while the layers read their plans from the memory that stays.

        The calls before a capture do it too: a plan that is made while capturing would be copied
        from memory of the CPU which is gone at the replay.
        """
        try:
            for layer, slot in zip(self._layers, self._slots, strict=True):
                layer._pattern = slot
            return self.function(*inputs)
        finally:
            for layer, pattern in zip(self._layers, self._patterns, strict=True):
                layer._pattern = pattern

    def _captured(self, inputs: tuple[Tensor, ...]) -> _Graph:
        held = tuple(tensor.clone() for tensor in inputs)
        try:
            replay = self._capture(lambda: self._in_slots(held))
        except RuntimeError as error:
            raise RuntimeError(
                f"this step cannot be captured as a CUDA graph: {error}; every operation must stay "
                "on the device, without .item() or .cpu(); or call the function itself"
            ) from error
        return _Graph(held, replay, [(tensor, tensor.data_ptr()) for tensor in self._pinned()])

    def _pinned(self) -> list[Tensor]:
        """What the graphs read of the model; the indices in its buffers are not among it."""
        indices = {id(t) for layer in self._layers for t in (layer.crow_indices, layer.col_indices)}
        return [
            *self.model.parameters(),
            *(b for b in self.model.buffers() if id(b) not in indices),
        ]

    @staticmethod
    def _check_devices(found: set[str]) -> None:
        if found != {"cuda"}:
            raise ValueError(
                f"a graphed step needs a model on a CUDA device, but its tensors are on {found}; "
                "move it with model.cuda(), or run the step ungraphed"
            )

    @staticmethod
    def _aside(call: Callable[[], Outputs]) -> Outputs:
        """Run on a side stream, as a capture will: autograd remembers the streams of its nodes."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            outputs = call()
        current.wait_stream(side)
        return outputs

    @staticmethod
    def _capture(call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay
