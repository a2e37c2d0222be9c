"""A training step as CUDA graphs that go on serving when the patterns change."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.conv import SparseConv1d

Outputs = tuple[Tensor, ...]

WARM_UP = 3  # calls before a capture: kernels are loaded, gradients and moments allocated


class StaticPattern(KernelCSR):
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
        for (make, args), held in self._cached.items():
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
    places: list[tuple[Mapping[Any, Any], Any]]  # whose entries the graph reads and writes
    addresses: list[int]

    def is_valid(self) -> bool:
        """Say whether everything still lies where the graph looks for it."""
        return _addresses(self.places) == self.addresses


def _addresses(places: list[tuple[Mapping[Any, Any], Any]]) -> list[int]:
    return [registry[name].data_ptr() for registry, name in places if name in registry]


class GraphedStep:
    """Call ``function(*tensors)``, a training step, from CUDA graphs: one for each input shape.

    The first calls with a shape run as they are (they count as steps like any other), then one is
    captured and from there on replayed: a launch instead of hundreds. When a ``SparseConv1d`` of
    the model has another pattern with as many active weights, its plans are written into the memory
    that the graphs read; with another number of them, or when a tensor of the model or of the
    optimizer's state lies elsewhere, the graphs are captured anew. Never yet run on a GPU.

    Args:
        model: on one CUDA device.
        function: takes tensors, returns a tuple of tensors, and changes everything else in place:
            zero_grad, forward, backward, an optimizer's step with ``capturable=True`` (and ``lr`` a
            tensor if it is to change). Hooks and Python code in it run while capturing only: so
            with gradient growth call the function itself in the step before an update.
        optimizer: the one that the function steps. After its ``load_state_dict`` the graphs are
            captured anew.

    Raises:
        ValueError: the model is not on one CUDA device.

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
        ...     step = GraphedStep(model, function, optimizer)
        ...     (loss,) = step(torch.randn(16, 4, 100, device="cuda"))

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(
        self,
        model: nn.Module,
        function: Callable[..., Outputs],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model, self.function, self.optimizer = model, function, optimizer
        self._layers = [layer for layer in model.modules() if isinstance(layer, SparseConv1d)]
        self._device = self._only_device({r[name].device for r, name in self._places()})
        self._graphs: dict[Hashable, _Graph] = {}
        self._calls: Counter[Hashable] = Counter()
        self._static: list[StaticPattern] = []
        self._patterns: list[KernelCSR] = []  # whose content the static patterns have

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Take a step; what it returns is overwritten by the next one.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        self._follow()
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        graph = self._graphs.get(key)
        if graph is not None and graph.is_valid():
            for held, new in zip(graph.inputs, inputs, strict=True):
                held.copy_(new)
            return graph.replay()
        if graph is not None:
            self._forget()
        if not self._static:
            self._patterns = [layer.pattern for layer in self._layers]
            self._static = [
                StaticPattern(p.crow_indices, p.col_indices, p.shape) for p in self._patterns
            ]
        if self._calls[key] < WARM_UP:
            self._calls[key] += 1
            return self._on_side_stream(lambda: self._with_static_patterns(inputs))
        self._graphs[key] = graph = self._captured(inputs)
        return graph.replay()

    def _follow(self) -> None:
        """Bring the static patterns up to date, or begin anew where nnz has changed."""
        for i, known in enumerate(self._patterns):
            pattern = self._layers[i].pattern
            if pattern is known:
                continue
            if pattern.nnz != known.nnz:
                self._forget()
                return
            self._static[i].follow(pattern)
            self._patterns[i] = pattern

    def _forget(self) -> None:
        for held in (self._graphs, self._calls, self._static, self._patterns):
            held.clear()

    def _with_static_patterns(self, inputs: tuple[Tensor, ...]) -> Outputs:
        """Call the function while the layers read their plans from the memory that stays.

        The calls before a capture do it too: a plan that is made while capturing would be copied
        from memory of the CPU which is gone at the replay.
        """
        try:
            for layer, static in zip(self._layers, self._static, strict=True):
                layer._pattern = static
            return self.function(*inputs)
        finally:
            for layer, pattern in zip(self._layers, self._patterns, strict=True):
                layer._pattern = pattern

    def _captured(self, inputs: tuple[Tensor, ...]) -> _Graph:
        held = tuple(tensor.clone() for tensor in inputs)
        try:
            replay = self._capture(lambda: self._with_static_patterns(held))
        except RuntimeError as error:
            raise RuntimeError(
                f"this step cannot be captured as a CUDA graph: {error}; every operation must stay "
                "on the device, without .item() or .cpu(); or call the function itself"
            ) from error
        places = self._places()
        return _Graph(held, replay, places, _addresses(places))

    def _places(self) -> list[tuple[Mapping[Any, Any], Any]]:
        """Where the tensors stand that a graph reads and writes: all but the patterns' buffers."""
        unread = {id(t) for layer in self._layers for t in (layer.crow_indices, layer.col_indices)}
        registries: list[Mapping[Any, Any]] = [
            registry for m in self.model.modules() for registry in (m._parameters, m._buffers)
        ]
        if self.optimizer is not None:
            registries += [_State(self.optimizer, p) for p in self.optimizer.state]
        return [
            (registry, name)
            for registry in registries
            for name, tensor in registry.items()
            if isinstance(tensor, Tensor) and id(tensor) not in unread and name != "pattern_tag"
        ]

    @staticmethod
    def _only_device(found: set[torch.device]) -> torch.device:
        if len(found) != 1 or next(iter(found)).type != "cuda":
            raise ValueError(
                "a graphed step needs a model on one CUDA device, but its tensors are on "
                f"{', '.join(sorted(map(str, found)))}; move it with model.cuda(), or run the step "
                "ungraphed"
            )
        return found.pop()

    @functools.cached_property
    def _side(self) -> Any:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def _on_side_stream(self, call: Callable[[], Outputs]) -> Outputs:
        """Run on the stream of the captures: autograd remembers the streams of its nodes."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                outputs = call()
            current.wait_stream(self._side)
        return outputs

    def _capture(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # Comes back to the present stream also if the capture fails, which torch's does not.
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, stream=self._side),
        ):
            outputs = call()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


class _State(Mapping[str, Any]):
    """A parameter's state in an optimizer, which ``load_state_dict`` puts into new dicts."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
        self.optimizer, self.parameter = optimizer, parameter

    def __getitem__(self, name: str) -> Any:
        return self.optimizer.state[self.parameter][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.optimizer.state[self.parameter])

    def __len__(self) -> int:
        return len(self.optimizer.state[self.parameter])
