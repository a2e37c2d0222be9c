"""Report what ``prune_filters`` and ``factorize`` changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparseconv.core.modules import deepcopy_model
from sparseconv.measure import machine
from sparseconv.measure.records import (
    ACCURACY,
    INFERENCE,
    BeforeAfter,
    Counts,
    Report,
    Verdict,
    where,
)
from sparseconv.measure.table import with_thousands
from sparseconv.measure.timing import LEAST_SECONDS, ROUNDS
from sparseconv.profiling.stopwatch import Passes, Stopwatch, in_sequence, model_passes
from sparseconv.pruning.channels import Channels, kept_channels
from sparseconv.pruning.equivalent import merge
from sparseconv.running import capture, copied_arguments, evaluating

NO_FILTERS = Counts(0, 0)
DECADES = tuple(10.0**k for k in range(-6, 1))


@dataclass(frozen=True, kw_only=True)
class Change:
    """Describe a layer, or a set of layers that ``factorize`` replaced, before and after.

    Attributes:
        name: the name of the module, or all names of a set, separated by commas.
        parameters: the number of active weights and biases.
        macs: multiply-adds for one series; for ``factorize``, for one time step of each output.
        layers: the names of the modules.
        kind, filters, kept: of ``prune_filters``: the class of the module, the number of output
            channels, and the indices of the kept ones.
        rank, relative_error: of ``factorize``: the number of channels between the convolutions, and
            the Frobenius norm of the change in all weights, divided by that of the weights.
        times: the ``"inference"`` time of a forward pass; empty if not measured.
    """

    name: str
    parameters: Counts
    macs: Counts
    layers: tuple[str, ...]
    kind: str = ""
    filters: Counts = NO_FILTERS
    kept: tuple[int, ...] = field(default=(), repr=False)
    rank: int = 0
    relative_error: float = 0.0
    times: Mapping[str, BeforeAfter] = field(default_factory=dict)

    def rows(self) -> list[dict[str, str]]:
        """Return the only row: text by column."""
        row = {"layer": self.name, "class": self.kind}
        if self.rank:
            row |= {"rank": str(self.rank), "relative error": f"{self.relative_error:.3g}"}
        else:
            row["filters"] = f"{self.filters.before} -> {self.filters.after}"
        for name, counts in (("parameters", self.parameters), ("MACs", self.macs)):
            row[name] = " -> ".join(map(with_thousands, counts))
        for found in self.times.values():
            row["ms"] = f"{found.before.median:.4f} -> {found.after.median:.4f}"
            row["speedup"] = str(found.speedup)
        return [row]


@dataclass(frozen=True, kw_only=True, repr=False)
class SmallerNetwork(Report):
    """Report what ``prune_filters`` or ``factorize`` changed; printing it shows a table.

    Attributes:
        method: the criterion with its settings, or the method of ``factorize``.
        layers: one ``Change`` for each layer, in the order of computation, or for each set.
        parameters: the number of parameters of the whole model, without compressors.
        macs: multiply-adds for one series; after ``factorize``, None until ``measure`` counts them.
        left: by name, the reason why a layer keeps all or some of its filters, or is unchanged.
        times: times of the whole model by pass, as in ``LayerTimes``; empty before ``measure``.
        before, after: the given network and its successor.
        arguments: the example input, if one was given.
        optimizer: the successor of the given optimizer.
        unpaired: with ``equivalent=True``, the layers that lost filters without a compressor.
        scores, threshold: of ``prune_filters``: the last score of each unit of filters, and the
            threshold of a graded criterion, such as ``DSP``.

    Example:
        >>> import sparseconv as sc
        >>> from sparseconv.pruning import WHC
        >>> model = nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Conv1d(8, 2, 5))
        >>> report = sc.prune_filters(model, torch.zeros(1, 1, 50), WHC(), fraction=0.5).report
        >>> [(layer.filters.after, layer.macs.after) for layer in report.layers]
        [(4, 920), (2, 1680)]
        >>> list(report.measure(rounds=6).times)  # ["inference"].speedup above 1: faster now
        ['inference', 'training']
    """

    title: ClassVar[str] = "Smaller network"
    text_columns = ("layer", "class")
    short = ("layer", "filters", "relative error", "parameters", "MACs", "speedup")
    method: str
    layers: tuple[Change, ...]
    parameters: Counts
    macs: Counts | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, BeforeAfter] = field(default_factory=dict)
    before: nn.Module = field(repr=False)
    after: nn.Module = field(repr=False)
    arguments: tuple[Any, ...] | None = field(default=None, repr=False)
    channels: Channels | None = field(default=None, repr=False)
    scores: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    optimizer: torch.optim.Optimizer | None = field(default=None, repr=False)
    threshold: float | None = None
    unpaired: tuple[str, ...] = ()

    def merge(self) -> nn.Module:
        """Return the model in its pruned shape, after fine-tuning with ``equivalent=True``."""
        return merge(self.after)

    def curve(self, thresholds: Iterable[float] = DECADES) -> list[tuple[float, int]]:
        """Count the units of filters that other thresholds would keep: ``(threshold, kept)``.

        A value in the middle of a plateau is safe.
        """
        if self.channels is None:
            raise ValueError("expected a report of prune_filters, but factorize has no thresholds")
        best = [int(group.units[self.scores[group.units].argmax()]) for group in self.channels.sets]
        scores = self.scores.clone()
        scores[best] = torch.inf
        return [(float(x), int((scores > x).sum())) for x in thresholds]

    def summary(self) -> list[str]:
        """Return the totals, one line each."""
        lines = [f"method: {self.method}", f"parameters: {self.parameters}"]
        lines += [f"macs: {self.macs}"] if self.macs else []
        for which, found in self.times.items():
            unclear = f": {Verdict.UNCLEAR}" * (Verdict.of(found.speedup) is Verdict.UNCLEAR)
            lines.append(f"{which} of the whole model: {found}{unclear}")
        filters = Counts(*map(sum, zip(*(layer.filters for layer in self.layers), strict=True)))
        lines += [f"filters: {filters}"] if filters.before else []
        lines += [f"{name}: {reason}" for name, reason in self.left.items()]
        if self.unpaired:
            lines.append(f"without compressors: {', '.join(self.unpaired)}")
        if self.threshold is not None:
            kept = ", ".join(f"{kept} at {threshold:g}" for threshold, kept in self.curve())
            lines.append(f"units of filters kept at other thresholds: {kept}")
        return [*lines, ACCURACY, where(self.machine)] if self.machine else lines

    def measure(
        self,
        example_input: Any = None,
        *,
        training: bool = True,
        rounds: int = ROUNDS,
        least_seconds: float = LEAST_SECONDS,
    ) -> Self:
        """Time the layers and the whole model before and after, interleaved; return a new report.

        Copies of both networks run in eval mode on torch's threads, with their current weights and
        merged compressors.

        Args:
            example_input: a tensor ``(N, C, L)``, or a tuple of the model's arguments, whose first
                tensor contains the batch. By default, the ``example_input`` of the first call is
                used.
            training: whether to also time a training step (forward and backward).
            rounds, least_seconds: as in ``profile``, with the same errors.
        """
        stopwatch = Stopwatch(training, rounds, least_seconds)
        given = self.arguments if example_input is None else example_input
        if given is None:
            raise ValueError("pass an example_input, since factorize got none")
        arguments = copied_arguments(self.before, given)
        # Both are new copies, because a model that was trained in place is slower.
        models = {"before": deepcopy_model(self.before).eval(), "after": merge(self.after).eval()}
        layers = []
        with stopwatch.running({self.before: type(self.before).__name__}):
            runs = {when: _runs(m, self.layers, arguments) for when, m in models.items()}
            for layer in self.layers:
                passes = {when: in_sequence(found[layer.name]) for when, found in runs.items()}
                if runs["before"][layer.name]:  # else eval mode does not call it
                    layer = replace(layer, times=stopwatch.compare(**passes))
                layers.append(layer)
            whole = {when: model_passes(m, arguments, training) for when, m in models.items()}
            times = stopwatch.compare(**whole)
        return replace(
            self,
            macs=self.macs or Counts(*(_macs(m, arguments) for m in models.values())),
            layers=tuple(layers),
            times=times,
            machine=machine.environment_info(),
        )


class Smaller(NamedTuple):
    """Contain the smaller model and the report."""

    model: nn.Module
    report: SmallerNetwork


def _runs(
    model: nn.Module, records: Sequence[Change], arguments: tuple[Any, ...]
) -> dict[str, list[tuple[int, Passes]]]:
    """Return, by record name, the calls to its layers in one run, with their counts."""
    layers = {r.name: [model.get_submodule(name) for name in r.layers] for r in records}
    _, calls = capture(model, chain(*layers.values()), arguments)
    for call in chain(*(found for layer, found in calls.items() if isinstance(layer, nn.Conv1d))):
        if call.input.dim() != 3:  # else the first axis would be taken for the batch
            raise ValueError(
                f"expected a batch (N, C, L) for each layer, but one receives {call.input.shape}"
            )
    return {
        name: [
            (call.count, {INFERENCE: partial(layer, call.input)})
            for layer in found
            for call in calls.get(layer, [])
        ]
        for name, found in layers.items()
    }


def _macs(model: nn.Module, arguments: tuple[Any, ...]) -> int:
    series = next(x for x in tree_leaves(arguments) if isinstance(x, Tensor))
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(*arguments)
    return int(counter.get_total_flops()) // (2 * len(series))


def changes(channels: Channels, kept: Tensor) -> tuple[Change, ...]:
    found = []
    for name, layer in channels.layers.items():
        stay = kept_channels(layer.outputs, kept)
        change = Change(
            name=name, layers=(name,), kind=type(layer.module).__name__,
            filters=Counts(len(stay), int(stay.sum())),
            parameters=Counts(layer.parameters(), layer.parameters(kept)),
            macs=Counts(*(layer.samples * layer.weights(units) for units in (None, kept))),
            kept=tuple(stay.nonzero()[:, 0].tolist()),
        )  # fmt: skip
        found.append(change)
    return tuple(found)
