"""Record what the backend did with a model."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class GraphReport:
    """Say what became of one graph.

    Attributes:
        lanes: how often each operation is computed in lanes, after others were joined to it.
        enters: how many tensors are converted to lanes.
        leaves: how many are converted back.
        outside: reasons, each with the operations on series that it keeps out of lanes.
        modules: those with operations in lanes.
    """

    lanes: Counter[str] = field(default_factory=Counter)
    enters: int = 0
    leaves: int = 0
    outside: dict[str, list[str]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Describe the graph in a few lines."""
        inside = ", ".join(f"{count} {name}" for name, count in sorted(self.lanes.items()))
        head = f"in lanes: {inside or 'nothing'}"
        tensors = f"  tensors: {self.enters} enter, {self.leaves} leave"
        modules = [f"  modules in lanes: {', '.join(self.modules)}"] * bool(self.modules)
        outside = (f"  {', '.join(dict.fromkeys(who))}: {why}" for why, who in self.outside.items())
        return "\n".join((head, tensors, *modules, *outside))


class CompiledReport(tuple[GraphReport, ...]):
    """Hold a ``GraphReport`` for each graph of a model, in the order of compilation."""

    __slots__ = ()

    def __str__(self) -> str:
        """Describe all graphs, equal ones once."""
        numbers: dict[str, list[str]] = {}
        for i, graph in enumerate(self, start=1):
            numbers.setdefault(str(graph), []).append(str(i))
        lines = (f"graph {' and '.join(which)}, {graph}" for graph, which in numbers.items())
        return "\n".join(lines) or "no graph was compiled with backend='sparseconv'"


_reports: list[tuple[list[weakref.ref[Tensor]], GraphReport]] = []


def remember(inputs: Iterable[object], report: GraphReport) -> None:
    """Keep the report of a graph as long as one of its tensors lives."""
    _reports[:] = [(refs, old) for refs, old in _reports if any(ref() is not None for ref in refs)]
    tensors = [weakref.ref(x) for x in inputs if isinstance(x, torch.Tensor)]
    _reports.append((tensors, report))


def compiled_report(model: nn.Module) -> CompiledReport:
    """Return what ``torch.compile(model, backend="sparseconv")`` made of a model so far.

    A graph is compiled at the first call, and again for another mode, size or dtype. Each report
    counts the operations that are computed in lanes, the kernels' own memory order, names their
    modules, and gives the reason for each of the others.

    Args:
        model: the model, compiled or not.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> print(compiled_report(nn.Linear(2, 2)))
        no graph was compiled with backend='sparseconv'
    """
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return CompiledReport(
        report for refs, report in _reports if any(id(ref()) in own for ref in refs)
    )
