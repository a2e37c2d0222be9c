"""What making convolutions of factors has changed: parameters, multiply-adds, measured time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparseconv.measure.table import Table, with_thousands
from sparseconv.nn.restored import deepcopy_model
from sparseconv.profiling.result import Compared
from sparseconv.profiling.stopwatch import copied_arguments
from sparseconv.pruning import comparison
from sparseconv.pruning.data import evaluating
from sparseconv.report.page import Section, write_html


@dataclass(frozen=True)
class FactorizedSet:
    """What became of a set of layers.

    Attributes:
        layers: their names.
        rank: channels between the two convolutions.
        parameters_before, parameters_after: of all its layers, biases included.
        relative_error: Frobenius norm of the difference of all weights, over that of the weights.
        macs_before, macs_after: multiply-adds of all its layers, for one sample of each output.
        times: a forward pass of all its layers; None if not measured.
    """

    layers: tuple[str, ...]
    rank: int
    parameters_before: int
    parameters_after: int
    relative_error: float
    macs_before: int
    macs_after: int
    times: Compared | None = None


@dataclass(frozen=True, kw_only=True)
class FactorizationReport:
    """What ``factorize`` did; printing it shows a table.

    Attributes:
        method: as given.
        sets: the layers that are made of factors now.
        left: name -> reason, of the convolutions that are what they were.
        macs: multiply-adds of one series, before and after, once ``measure`` has been called.
        times: then also ``"forward"`` (inference) and ``"step"`` (training: forward and backward)
            of the whole model.
        threads, machine: of the measurement.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(*(nn.Conv1d(8, 8, 9, padding="same") for _ in range(2)))
        >>> report = sc.factorize(model, rank=4).report
        >>> report.parameters, report.sets[0].layers
        ((1168, 368), ('0', '1'))
        >>> report.measure(torch.randn(2, 8, 30), rounds=6).macs
        (34560, 19200)
    """

    method: str
    sets: tuple[FactorizedSet, ...]
    left: Mapping[str, str]
    before: nn.Module = field(repr=False)
    after: nn.Module = field(repr=False)
    macs: tuple[int, int] | None = None
    times: Mapping[str, Compared] = field(default_factory=dict)
    threads: int = 0
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the whole model, before and after."""
        whole = sum(parameter.numel() for parameter in self.before.parameters())
        return whole, whole - sum(s.parameters_before - s.parameters_after for s in self.sets)

    def measure(
        self,
        example_input: Any,
        *,
        backward: bool = False,
        rounds: int = 20,
        least_seconds: float = 2e-3,
    ) -> FactorizationReport:
        """Count the multiply-adds of the model, and time it before and after; a new report.

        On torch's threads, in eval mode, of copies of both networks as they are now, in turns; with
        ``backward`` also a training step (forward and backward).

        Args:
            example_input: a tensor ``(N, C, L)``, or a tuple of the model's arguments, the first
                tensor of which holds the batch.
            backward, rounds, least_seconds: as for ``PruningReport.measure``.

        Raises:
            ValueError: the model fails on the input, or it is one series without a batch.
            NotImplementedError: the model is on a GPU.
        """
        arguments = copied_arguments(example_input, "example_input")
        before, after = deepcopy_model(self.before), deepcopy_model(self.after)
        parts = {", ".join(found.layers): found.layers for found in self.sets}
        found = comparison.compare(
            before, after, parts, arguments, backward=backward, rounds=rounds,
            least_seconds=least_seconds,
        )  # fmt: skip
        macs = _macs(before, arguments), _macs(after, arguments)
        sets = [replace(x, times=found.parts.get(", ".join(x.layers))) for x in self.sets]
        return replace(
            self, sets=tuple(sets), macs=macs, times=found.whole, threads=found.threads,
            machine=found.machine,
        )  # fmt: skip

    def table(self) -> Table:
        """A line for each set."""
        header = ["layers", "rank", "parameters", "after", "MACs a sample", "after"]
        header += ["relative error"]
        header += ["ms", "after", "before / after"] if self.times else []
        rows = []
        for s in self.sets:
            counts = s.parameters_before, s.parameters_after, s.macs_before, s.macs_after
            cells = [", ".join(s.layers), str(s.rank), *map(with_thousands, counts)]
            cells.append(f"{s.relative_error:.3g}")
            if s.times:
                pair = s.times.before_ms, s.times.after_ms
                cells += [*(f"{time.median:.4f}" for time in pair), str(s.times.ratio)]
            cells += [""] * (len(header) - len(cells))  # eval mode does not call them
            rows.append(cells)
        return Table(header, rows)

    def _counts(self) -> dict[str, tuple[int, int]]:
        return {"parameters": self.parameters, **({"MACs": self.macs} if self.macs else {})}

    def __str__(self) -> str:
        """The table and what it adds up to."""
        left = [f"{name} is what it was: {reason}" for name, reason in self.left.items()]
        lines = [self.table().markdown(), *left]
        lines += comparison.summary(self._counts(), self.times)
        lines += [comparison.conditions(self.threads, self.machine)] if self.times else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The figures, as ``json.dumps`` accepts them."""
        return {
            "method": self.method,
            "sets": [asdict(found) for found in self.sets],
            "left": dict(self.left),
            "parameters": self.parameters,
            "macs": self.macs,
            "times": {which: asdict(found) for which, found in self.times.items()},
            "threads": self.threads,
            "machine": dict(self.machine),
        }

    def write_html(self, path: str | Path) -> Path:
        """Write the report as a page of its own."""
        where = comparison.conditions(self.threads, self.machine) if self.times else ""
        sections = [
            Section("Whole model", where, comparison.table(self._counts(), self.times)),
            Section("Sets of layers", table=self.table()),
        ]
        if self.left:
            left = Table(("layer", "why it is what it was"), [*self.left.items()], 2)
            sections.append(Section("Other convolutions", table=left))
        return write_html(path, "Shared factors", sections, subtitle=f"method: {self.method}")


def _macs(model: nn.Module, arguments: tuple[Any, ...]) -> int:
    """Multiply-adds of one series, as torch counts them."""
    series = next(x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor))
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*arguments)
    return int(counter.get_total_flops()) // (2 * len(series))
