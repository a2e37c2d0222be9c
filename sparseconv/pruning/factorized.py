"""What making convolutions of factors has changed: parameters, multiply-adds, measured time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparseconv.measure.records import Change, Counts
from sparseconv.profiling.stopwatch import copied_arguments
from sparseconv.pruning.comparison import SmallerNetwork
from sparseconv.pruning.data import evaluating


@dataclass(frozen=True, kw_only=True)
class FactorizedSet(Change):
    """What became of a set of layers.

    Attributes:
        name, layers: their names, as one text and as several.
        rank: channels between the two convolutions.
        parameters: of all its layers, biases included.
        relative_error: Frobenius norm of the difference of all weights, over that of the weights.
        macs: multiply-adds of all its layers, for one sample of each output.
        times: ``"inference"``, a forward pass of all its layers; empty if not measured.
    """

    layers: tuple[str, ...]
    rank: int
    relative_error: float

    def row(self) -> dict[str, str]:
        """Return the cells of this line of the table, by column."""
        first = {"layers": self.name, "rank": str(self.rank)}
        return first | {"relative error": f"{self.relative_error:.3g}"} | super().row()


@dataclass(frozen=True, kw_only=True)
class FactorizationReport(SmallerNetwork):
    """What ``factorize`` did; printing it shows a table.

    Attributes:
        method: as given.
        layers: a ``FactorizedSet`` for each set of layers that are made of factors now.
        left: name -> reason, of the convolutions that are unchanged.
        macs: multiply-adds of one series, once ``measure`` has been called.
        times: then also ``"inference"`` and ``"training"`` (forward and backward) of the whole
            model.
        machine: of the measurement.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(*(nn.Conv1d(8, 8, 9, padding="same") for _ in range(2)))
        >>> report = sc.factorize(model, rank=4).report
        >>> report.parameters, report.layers[0].layers
        (Counts(before=1168, after=368), ('0', '1'))
        >>> report.measure(torch.randn(2, 8, 30), rounds=6).macs
        Counts(before=34560, after=19200)
    """

    title: ClassVar[str] = "Shared factors"
    text_columns = ("layers",)
    method: str
    layers: tuple[FactorizedSet, ...]
    left: Mapping[str, str]
    macs: Counts | None = None

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
        parts = {found.name: found.layers for found in self.layers}
        report = self._measured(parts, arguments, backward, rounds, least_seconds)
        macs = Counts(_macs(self.before, arguments), _macs(self.after, arguments))
        return replace(report, macs=macs)

    def counts(self) -> dict[str, Counts]:
        """Return the counts of the whole model, by name."""
        return super().counts() | ({} if self.macs is None else {"macs": self.macs})

    def notes(self) -> list[str]:
        """Return the method, and the layers that are unchanged."""
        left = [f"{name} is unchanged: {reason}" for name, reason in self.left.items()]
        return [f"method: {self.method}", *left]


def _macs(model: nn.Module, arguments: tuple[Any, ...]) -> int:
    """Count the multiply-adds of one series, as torch does."""
    series = next(x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor))
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*arguments)
    return int(counter.get_total_flops()) // (2 * len(series))
