"""Report what ``convert`` did, for each layer and for the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import nn

from sparseconv.measure.records import INFERENCE, TRAINING, LayerTimes, Report, layer_conditions

EMPTY = "no weight is active, so the output does not depend on the input; prune this layer less"


@dataclass(frozen=True, kw_only=True, repr=False)
class ConversionReport(Report):
    """Report what ``convert`` did; printing it shows a table.

    Attributes:
        layers: a ``LayerTimes`` for every ``nn.Conv1d``, in the model's order.
        training: whether training, rather than inference, decided.
        machine: processor, threads, instruction set and versions.

    Example:
        >>> import torch, sparseconv as sc
        >>> model, x = nn.Sequential(nn.Conv1d(4, 8, 9)), torch.randn(2, 4, 50)
        >>> report = sc.convert(model, x, layers=["0"]).report
        >>> print(report.layers[0].verdict, sorted(report.layers[0].times))
        named in layers ['training']
    """

    title: ClassVar[str] = "Converted layers"
    layers: tuple[LayerTimes, ...]
    training: bool

    def summary(self) -> list[str]:
        """Return the totals, notes and conditions, one line each."""
        count = sum(layer.verdict.converts for layer in self.layers)
        lines = [f"{count} of {len(self.layers)} layers are now sparse"]
        notes = [(layer.name, note) for layer in self.layers for note in layer.notes]
        notes += [(layer.name, EMPTY) for layer in self.layers if layer.nnz == 0]
        for note in dict.fromkeys(note for _, note in notes):
            names = [name for name, found in notes if found == note]
            who = ", ".join(names) if len(names) < 5 else f"{len(names)} layers"
            lines.append(f"{who}: {note}")
        if not any(layer.calls for layer in self.layers):
            return [
                *lines,
                "no layer was measured, nor was it checked that the model runs the sparse layers: "
                "with an example_input, measured times decide about every layer that it reaches "
                "and that has zeros or a mask and, with unpruned=True, about the others",
            ]
        lines.append(f"verdicts are based on {TRAINING if self.training else INFERENCE} times")
        return [*lines, *layer_conditions(self.layers, self.machine)]


class Conversion(NamedTuple):
    """Contain the converted model and the report."""

    model: nn.Module
    report: ConversionReport
