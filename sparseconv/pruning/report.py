"""What pruning filters has changed: filters, parameters, multiply-adds, and measured time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.measure.table import Table, with_thousands
from sparseconv.nn.restored import deepcopy_model
from sparseconv.profiling.result import Compared
from sparseconv.pruning import comparison
from sparseconv.pruning.channels import Channels, kept_channels
from sparseconv.pruning.equivalent import has_pairs, merge
from sparseconv.report.page import Section, write_html

PLATEAUS = "How many units of filters other thresholds would keep; a safe one lies on a plateau."
DECADES = [10.0**k for k in range(-6, 1)]  # of a curve in a line of text


@dataclass(frozen=True)
class LayerChange:
    """A layer before and after; pairs are (before, after).

    Attributes:
        name: of the module.
        kind: its class.
        filters: output channels.
        parameters: active weights and biases.
        macs: multiply-adds of one series.
        kept: the numbers of the output channels that are kept.
        times: a forward pass of the layer; None if not measured.
    """

    name: str
    kind: str
    filters: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    kept: tuple[int, ...] = field(repr=False)
    times: Compared | None = None


@dataclass(frozen=True, kw_only=True)
class PruningReport:
    """What ``prune_filters`` did; printing it shows a table.

    Attributes:
        criterion: what decided.
        layers: a ``LayerChange`` each, in the order of computation.
        times: ``"forward"`` (inference) and ``"step"`` (training: forward and backward) of the
            whole model, once ``measure`` has been called.
        threads, machine: of the measurement.
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
        [('0', (8, 4), (1840, 920)), ('2', (2, 2), (3360, 1680))]
        >>> list(report.measure(rounds=6).times)  # ["forward"].ratio above 1: faster now
        ['forward']
    """

    criterion: str
    layers: tuple[LayerChange, ...]
    before: nn.Module = field(repr=False)
    after: nn.Module = field(repr=False)
    arguments: tuple[Any, ...] = field(repr=False)
    channels: Channels = field(repr=False)
    scores: Tensor = field(repr=False)
    optimizer: torch.optim.Optimizer | None = field(default=None, repr=False)
    threshold: float | None = None
    unpaired: tuple[str, ...] = ()
    times: Mapping[str, Compared] = field(default_factory=dict)
    threads: int = 0
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the whole model, before and after; of compressors not, since they are merged."""
        whole = sum(parameter.numel() for parameter in self.before.parameters())
        return whole, whole - sum(x.parameters[0] - x.parameters[1] for x in self.layers)

    @property
    def macs(self) -> tuple[int, int]:
        """Multiply-adds of one series, before and after."""
        others = self.channels.other_macs
        before, after = (sum(layer.macs[i] for layer in self.layers) for i in range(2))
        return others + before, others + after

    def merge(self) -> nn.Module:
        """With ``equivalent=True``: the fine-tuned model in its pruned shape (``merge``)."""
        if all(layer.filters[0] == layer.filters[1] for layer in self.layers):
            return deepcopy_model(self.after)  # nothing was removed
        return merge(self.after)

    def curve(self, thresholds: Iterable[float] | None = None) -> list[tuple[float, int]]:
        """How many units of filters other thresholds would keep: ``(threshold, kept)``.

        For ``DSP``: a threshold in the middle of a plateau is a safe one. Without an argument from
        1e-6 to 1, eight in each decade.

        Raises:
            ValueError: the criterion has no threshold.
            TypeError: thresholds that are no list of numbers.
        """
        if self.threshold is None:
            raise ValueError(f"{self.criterion} has no threshold, and so no curve; DSP has one")
        if thresholds is None:
            thresholds = torch.logspace(-6, 0, 49).tolist()
        try:
            thresholds = [float(value) for value in thresholds]
        except (TypeError, ValueError):
            raise TypeError(
                f"thresholds must be a list of numbers, but got {thresholds!r}"
            ) from None
        best = [int(group.units[self.scores[group.units].argmax()]) for group in self.channels.sets]
        result = []
        for threshold in thresholds:
            kept = self.scores > threshold
            kept[best] = True
            result.append((threshold, int(kept.sum())))
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
        after = merge(self.after) if has_pairs(self.after) else deepcopy_model(self.after)
        found = comparison.compare(
            deepcopy_model(self.before), after, {layer.name: [layer.name] for layer in self.layers},
            self.arguments, backward=backward, rounds=rounds, least_seconds=least_seconds,
        )  # fmt: skip
        layers = [replace(layer, times=found.parts[layer.name]) for layer in self.layers]
        return replace(
            self, layers=tuple(layers), times=found.whole, threads=found.threads,
            machine=found.machine,
        )  # fmt: skip

    def table(self) -> Table:
        """A line for each layer."""
        timed = any(layer.times for layer in self.layers)
        header = ["layer", "", "filters", "kept", "parameters", "kept", "MACs", "kept"]
        header += ["ms", "after", "before / after"] if timed else []
        rows = []
        for layer in self.layers:
            cells = [layer.name, layer.kind]
            for counts in (layer.filters, layer.parameters, layer.macs):
                cells += map(with_thousands, counts)
            if layer.times:
                pair = layer.times.before_ms, layer.times.after_ms
                cells += [f"{time.median:.4f}" for time in pair]
                cells.append(str(layer.times.ratio))
            rows.append(cells)
        return Table(header, rows, 2)

    def summary(self) -> list[str]:
        """What it adds up to, a line each."""
        lines = list(comparison.summary(self._counts(), self.times))
        if self.unpaired:
            lines.append(f"without compressors: {', '.join(self.unpaired)}")
        if self.threshold is not None:
            kept = ", ".join(f"{kept} at {threshold:g}" for threshold, kept in self.curve(DECADES))
            lines.append(f"units of filters kept at other thresholds: {kept}")
        return [*lines, *self._conditions()]

    def _conditions(self) -> list[str]:
        if "forward" not in self.times:
            return []
        return [*self._rest(), comparison.conditions(self.threads, self.machine)]

    def _counts(self) -> dict[str, tuple[int, int]]:
        return {"parameters": self.parameters, "MACs": self.macs}

    def _rest(self) -> list[str]:
        """What keeps the time from falling as the multiply-adds do."""
        if not self.macs[1] or self.macs[0] == self.macs[1]:
            return []
        promised, got = self.macs[0] / self.macs[1], self.times["forward"].ratio.median
        inside = [
            sum(getattr(layer.times, when).median for layer in self.layers if layer.times)
            for when in ("before_ms", "after_ms")
        ]
        whole = self.times["forward"]
        rest = max(0, whole.before_ms.median - inside[0]), max(0, whole.after_ms.median - inside[1])
        return [
            f"{got / promised:.0%} of the {promised:.2f} times that multiply-adds promise; the "
            f"layers themselves take {inside[0]:.3f} -> {inside[1]:.3f} ms, what is between them "
            f"(activations, pooling, concatenation) {rest[0]:.3f} -> {rest[1]:.3f} ms"
        ]

    def __str__(self) -> str:
        """The table and what it adds up to."""
        return "\n".join([self.table().markdown(), "", self.criterion, *self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """The figures, as ``json.dumps`` accepts them."""
        return {
            "criterion": self.criterion,
            "layers": [asdict(layer) for layer in self.layers],
            "parameters": self.parameters,
            "macs": self.macs,
            "unpaired": self.unpaired,
            "curve": None if self.threshold is None else self.curve(),
            "times": {which: asdict(found) for which, found in self.times.items()},
            "threads": self.threads,
            "machine": dict(self.machine),
        }

    def write_html(self, path: str | Path) -> Path:
        """Write the report as a page of its own."""
        whole = comparison.table(self._counts(), self.times)
        text = "; ".join(self._conditions())
        sections = [Section("Whole model", text, whole), Section("Layers", table=self.table())]
        if self.unpaired:
            sections.append(Section("Layers without compressors", ", ".join(self.unpaired)))
        if self.threshold is not None:
            sections.append(Section("Other thresholds", PLATEAUS, self._plateaus()))
        return write_html(path, "Pruned filters", sections, subtitle=self.criterion)

    def _plateaus(self) -> Table:
        rows = []
        for count, points in groupby(self.curve(), key=lambda point: point[1]):
            thresholds = [f"{threshold:.2g}" for threshold, _ in points]
            rows.append((thresholds[0], thresholds[-1], str(count)))
        return Table(("from", "to", "units kept"), rows)


def changes(channels: Channels, kept: Tensor) -> tuple[LayerChange, ...]:
    """Of each layer."""
    found = []
    for name, layer in channels.layers.items():
        stay = kept_channels(layer.outputs, kept)
        rows = len(stay), int(stay.sum())
        weights = [channels.weights(layer, k) for k in (None, kept)]
        own = [p for p in ("weight", "bias") if getattr(layer.module, p, None) is not None]
        each = len(own) if not layer.has_filters else int("bias" in own)
        found.append(
            LayerChange(
                name,
                type(layer.module).__name__,
                rows,
                (weights[0] + each * rows[0], weights[1] + each * rows[1]),
                (layer.samples * weights[0], layer.samples * weights[1]),
                tuple(stay.nonzero()[:, 0].tolist()),
            )
        )
    return tuple(found)
