"""A network and what became of it: counted, timed in turns, and reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from sparseconv.measure import machine
from sparseconv.measure.records import (
    INFERENCE,
    BeforeAfter,
    ChangeReport,
    Counts,
    where,
)
from sparseconv.profiling.stopwatch import (
    Stopwatch,
    capture,
    check_on_cpu,
    in_sequence,
    model_passes,
)


class Comparison(NamedTuple):
    """What ``compare`` measured.

    Attributes:
        parts: by name, ``{"inference": ...}`` of some modules together, if eval mode calls them.
        whole: ``"inference"`` and ``"training"`` of the model.
        machine: of the measurement.
    """

    parts: Mapping[str, Mapping[str, BeforeAfter]]
    whole: Mapping[str, BeforeAfter]
    machine: Mapping[str, str]


def compare(
    before: nn.Module,
    after: nn.Module,
    parts: Mapping[str, Sequence[str]],
    arguments: tuple[Any, ...],
    *,
    backward: bool,
    rounds: int,
    least_seconds: float,
) -> Comparison:
    """Time two models, and the modules of the same names in both, in eval mode.

    Both are fresh copies: what has been trained in place is not as fast.

    Raises:
        ValueError: the model fails on the arguments, or they are one series without a batch.
        NotImplementedError: the model is on a GPU.
    """
    stopwatch = Stopwatch(backward, rounds, least_seconds, 0)
    models, names = {"before": before, "after": after}, [n for part in parts.values() for n in part]
    found = {name: before.get_submodule(name) for name in names}
    check_on_cpu({m: name for name, m in found.items() if any(True for _ in m.parameters())})
    with stopwatch.running():
        runs: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
        for when, model in models.items():
            model.eval()
            modules = {model.get_submodule(name): name for name in names}
            for module, calls in capture(model, modules, arguments).items():
                if isinstance(module, nn.Conv1d) and calls[0].input.dim() != 3:
                    raise ValueError(
                        f"{modules[module]!r} must be given (N, C, L), a batch of series, but got "
                        f"{tuple(calls[0].input.shape)}"
                    )
                runs[when][modules[module]] = [
                    (call.count, {INFERENCE: partial(module, call.input)}) for call in calls
                ]
        times = {}
        for part, inside in parts.items():
            if not any(name in runs["before"] for name in inside):
                continue  # eval mode does not call them
            passes = {
                when: in_sequence([run for name in inside for run in runs[when].get(name, [])])
                for when in models
            }
            times[part] = {INFERENCE: BeforeAfter.of(stopwatch.time(passes), INFERENCE)}
        whole = {when: model_passes(model, arguments, backward) for when, model in models.items()}
        seconds = stopwatch.time(whole)
    return Comparison(
        times,
        {which: BeforeAfter.of(seconds, which) for which in whole["after"]},
        machine.environment_info(),
    )


@dataclass(frozen=True, kw_only=True)
class SmallerNetwork(ChangeReport):
    """A network made smaller: what is counted, and what ``measure`` measured.

    Attributes:
        before, after: the network that was given, and its successor.
    """

    before: nn.Module = field(repr=False)
    after: nn.Module = field(repr=False)

    @property
    def parameters(self) -> Counts:
        """Of the whole model."""
        whole = sum(parameter.numel() for parameter in self.before.parameters())
        return Counts(
            whole, whole - sum(x.parameters.before - x.parameters.after for x in self.layers)
        )

    def counts(self) -> dict[str, Counts]:
        """What is counted of the whole model, by name."""
        return {"parameters": self.parameters}

    def notes(self) -> list[str]:
        """Return lines on this change alone."""
        return []

    def summary(self) -> list[str]:
        """What it adds up to, a line each."""
        lines = [f"{name}: {counts}" for name, counts in self.counts().items()]
        lines += [*self.time_lines(), *self.notes()]
        return [*lines, where(self.machine)] if self.machine else lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was counted and measured, as ``json.dumps`` accepts it."""
        return super().to_dict() | {name: list(pair) for name, pair in self.counts().items()}
