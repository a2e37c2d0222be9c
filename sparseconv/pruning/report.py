"""What pruning filters has changed: filters, parameters, multiply-adds, and measured time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseconv.measure.records import INFERENCE, Change, Counts, count_cells
from sparseconv.nn.modules import deepcopy_model
from sparseconv.pruning.channels import Channels, kept_channels
from sparseconv.pruning.comparison import SmallerNetwork
from sparseconv.pruning.equivalent import merge

DECADES = [10.0**k for k in range(-6, 1)]  # of a curve in a line of text


@dataclass(frozen=True, kw_only=True)
class LayerChange(Change):
    """A layer before and after its filters were pruned.

    Attributes:
        name: of the module.
        kind: its class.
        filters: output channels.
        parameters: active weights and biases.
        macs: multiply-adds of one series.
        kept: the numbers of the output channels that are kept.
        times: ``"inference"``, a forward pass of the layer; empty if not measured.
    """

    kind: str
    filters: Counts
    kept: tuple[int, ...] = field(repr=False)

    def row(self) -> dict[str, str]:
        """Return the cells of this line of the table, by column."""
        first = {"layer": self.name, "class": self.kind}
        return first | count_cells("filters", self.filters) | super().row()


@dataclass(frozen=True, kw_only=True)
class PruningReport(SmallerNetwork):
    """What ``prune_filters`` did; printing it shows a table.

    Attributes:
        criterion: what decided.
        layers: a ``LayerChange`` each, in the order of computation.
        times: ``"inference"`` and ``"training"`` (forward and backward) of the whole model, once
            ``measure`` has been called.
        machine: of the measurement.
        optimizer: the successor of the optimizer that was given.
        scores: of each unit of filters, as the criterion gave them last before it fell.
        threshold: of a criterion whose scores have a degree; None where a ratio said how many
            filters go, or the criterion itself did.
        unpaired: with ``equivalent=True`` the layers that lost filters without a compressor.

    Example:
        >>> import sparseconv as sc
        >>> from sparseconv.pruning import WHC
        >>> model = nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Conv1d(8, 2, 5))
        >>> report = sc.prune_filters(model, torch.zeros(1, 1, 50), WHC(), ratio=0.5).report
        >>> [(layer.name, layer.filters, layer.macs) for layer in report.layers]
        [('0', Counts(before=8, after=4), Counts(before=1840, after=920)), \
('2', Counts(before=2, after=2), Counts(before=3360, after=1680))]
        >>> list(report.measure(rounds=6).times)  # ["inference"].ratio above 1: faster now
        ['inference']
    """

    title: ClassVar[str] = "Pruned filters"
    text_columns = ("layer", "class")
    criterion: str
    layers: tuple[LayerChange, ...]
    arguments: tuple[Any, ...] = field(repr=False)
    channels: Channels = field(repr=False)
    scores: Tensor = field(repr=False)
    optimizer: torch.optim.Optimizer | None = field(default=None, repr=False)
    threshold: float | None = None
    unpaired: tuple[str, ...] = ()

    @property
    def macs(self) -> Counts:
        """Return the multiply-adds of one series."""
        others = self.channels.other_macs
        return Counts(*(others + sum(layer.macs[i] for layer in self.layers) for i in range(2)))

    def counts(self) -> dict[str, Counts]:
        """Return the counts of the whole model, by name."""
        return super().counts() | {"macs": self.macs}

    def merge(self) -> nn.Module:
        """With ``equivalent=True``: the fine-tuned model in its pruned shape (``merge``)."""
        if all(layer.filters[0] == layer.filters[1] for layer in self.layers):
            return deepcopy_model(self.after)  # nothing was removed
        return merge(self.after)

    def curve(self, thresholds: Iterable[float] | None = None) -> list[tuple[float, int]]:
        """Count the units of filters that other thresholds would keep: ``(threshold, kept)``.

        For ``DSP``: a threshold in the middle of a plateau is a safe one. Without an argument from
        1e-6 to 1, eight in each decade.

        Raises:
            ValueError: the criterion has no threshold.
        """
        if self.threshold is None:
            raise ValueError(f"{self.criterion} has no threshold, and so no curve; DSP has one")
        if thresholds is None:
            thresholds = torch.logspace(-6, 0, 49).tolist()
        best = [int(group.units[self.scores[group.units].argmax()]) for group in self.channels.sets]
        result = []
        for threshold in thresholds:
            kept = self.scores > threshold
            kept[best] = True
            result.append((float(threshold), int(kept.sum())))
        return result

    def measure(
        self, *, backward: bool = False, rounds: int = 20, least_seconds: float = 2e-3
    ) -> PruningReport:
        """Time the layers and the whole model, before and after in turns; returns a new report.

        On torch's threads, on the example input, in eval mode, of copies of both networks as they
        are now, compressors merged; with ``backward`` also a training step (forward and backward).

        Raises:
            NotImplementedError: the model is on a GPU.
        """
        parts = {layer.name: [layer.name] for layer in self.layers}
        return self._measured(parts, self.arguments, backward, rounds, least_seconds)

    def notes(self) -> list[str]:
        """Return the criterion, and what keeps the time from falling as the multiply-adds do."""
        lines = [f"criterion: {self.criterion}", *self._rest()]
        if self.unpaired:
            lines.append(f"without compressors: {', '.join(self.unpaired)}")
        if self.threshold is not None:
            kept = ", ".join(f"{kept} at {threshold:g}" for threshold, kept in self.curve(DECADES))
            lines.append(f"units of filters kept at other thresholds: {kept}")
        return lines

    def _rest(self) -> list[str]:
        if INFERENCE not in self.times or not self.macs.after or self.macs.ratio == 1:
            return []
        promised, whole = self.macs.ratio, self.times[INFERENCE]
        layers = [layer.times[INFERENCE] for layer in self.layers]
        before = sum(found.before.median for found in layers)
        after = sum(found.after.median for found in layers)
        rest = max(0, whole.before.median - before), max(0, whole.after.median - after)
        return [
            f"{whole.ratio.median / promised:.0%} of the {promised:.2f} times that multiply-adds "
            f"promise; the layers themselves take {before:.3f} -> {after:.3f} ms, what is between "
            f"them (activations, pooling, concatenation) {rest[0]:.3f} -> {rest[1]:.3f} ms"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was counted and measured, as ``json.dumps`` accepts it."""
        return super().to_dict() | {"curve": None if self.threshold is None else self.curve()}


def changes(channels: Channels, kept: Tensor) -> tuple[LayerChange, ...]:
    """Build a ``LayerChange`` of each layer."""
    found = []
    for name, layer in channels.layers.items():
        stay = kept_channels(layer.outputs, kept)
        rows = len(stay), int(stay.sum())
        weights = [channels.weights(layer, k) for k in (None, kept)]
        own = [p for p in ("weight", "bias") if getattr(layer.module, p, None) is not None]
        each = len(own) if not layer.has_filters else int("bias" in own)
        found.append(
            LayerChange(
                name=name,
                kind=type(layer.module).__name__,
                filters=Counts(*rows),
                parameters=Counts(weights[0] + each * rows[0], weights[1] + each * rows[1]),
                macs=Counts(layer.samples * weights[0], layer.samples * weights[1]),
                kept=tuple(stay.nonzero()[:, 0].tolist()),
            )
        )
    return tuple(found)
