"""Report what ``convert`` did, for each layer and for the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import nn

from sparseconv.measure.records import (
    INFERENCE,
    TRAINING,
    ChangeReport,
    LayerTimes,
    layer_conditions,
)

EMPTY = "no weight is active, so the output does not depend on the input; prune this layer less"


@dataclass(frozen=True, kw_only=True, repr=False)
class ConversionReport(ChangeReport):
    """Report what ``convert`` did; printing it shows a table.

    Attributes:
        layers: a ``LayerTimes`` for every ``nn.Conv1d``, in the model's order.
        times: those of the whole model as given (with pruning hooks) and as converted, for
            ``"inference"`` (without gradients) and, if measured, ``"training"`` (forward and
            backward); empty if nothing was measured or converted.
        training: whether training, rather than inference, decided.
        unblocked: names of sparse layers that this CPU would compute in blocks if their masks had
            blocks.
        machine: processor, threads, instruction set and versions.

    Example:
        >>> import torch, sparseconv as sc
        >>> model, x = nn.Sequential(nn.Conv1d(4, 8, 9)), torch.randn(2, 4, 50)
        >>> report = sc.convert(model, layers=["0"], example_input=x, rounds=6).report
        >>> print(report.layers[0].verdict, sorted(report.times))
        named in layers ['inference', 'training']
    """

    title: ClassVar[str] = "Converted layers"
    layers: tuple[LayerTimes, ...]
    training: bool
    unblocked: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Return whether any layer was timed."""
        return any(layer.calls for layer in self.layers)

    def summary(self) -> list[str]:
        """Return the totals, notes and conditions, one line each."""
        count = sum(layer.verdict.converts for layer in self.layers)
        lines = [f"{count} of {len(self.layers)} layers are now sparse", *self.time_lines()]
        if self.unblocked:
            lines.append(
                "this CPU has bfloat16 kernels for blocks of channels that share their taps (see "
                f"block_mask), but these layers use single weights: {', '.join(self.unblocked)}"
            )
        notes = [(layer.name, note) for layer in self.layers for note in layer.notes]
        notes += [(layer.name, EMPTY) for layer in self.layers if layer.nnz == 0]
        for note in dict.fromkeys(note for _, note in notes):
            names = [name for name, found in notes if found == note]
            who = ", ".join(names) if len(names) < 5 else f"{len(names)} layers"
            lines.append(f"{who}: {note}")
        if not self.measured:
            return [
                *lines,
                "no layer was measured: with an example_input, measured times decide about every "
                "layer that has zeros or a mask and, with unpruned=True, about the others",
            ]
        lines.append(f"verdicts are based on {TRAINING if self.training else INFERENCE} times")
        return [*lines, *layer_conditions(self.layers, self.machine)]


class Conversion(NamedTuple):
    """Contain the converted model and the report."""

    model: nn.Module
    report: ConversionReport
