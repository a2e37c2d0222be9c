"""Count, time and report a network and its smaller successor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from torch import nn

from sparseconv.measure import machine
from sparseconv.measure.records import (
    INFERENCE,
    BeforeAfter,
    ChangeReport,
    Counts,
    where,
)
from sparseconv.nn.modules import deepcopy_model
from sparseconv.profiling.stopwatch import (
    Passes,
    Stopwatch,
    capture,
    check_on_cpu,
    in_sequence,
    model_passes,
)
from sparseconv.pruning.equivalent import has_pairs, merge


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
        """Parameters of the whole model."""
        whole = sum(parameter.numel() for parameter in self.before.parameters())
        return Counts(
            whole, whole - sum(x.parameters.before - x.parameters.after for x in self.layers)
        )

    def counts(self) -> dict[str, Counts]:
        """Return the counts of the whole model, by name."""
        return {"parameters": self.parameters}

    def notes(self) -> list[str]:
        """Return lines on this change alone."""
        return []

    def summary(self) -> list[str]:
        """Return what it adds up to, a line each."""
        lines = [f"{name}: {counts}" for name, counts in self.counts().items()]
        lines += [*self.time_lines(), *self.notes()]
        return [*lines, where(self.machine)] if self.machine else lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was counted and measured, as ``json.dumps`` accepts it."""
        return super().to_dict() | {name: list(pair) for name, pair in self.counts().items()}

    def _measured(
        self,
        parts: Mapping[str, Sequence[str]],
        arguments: tuple[Any, ...],
        backward: bool,
        rounds: int,
        least_seconds: float,
    ) -> Self:
        """Time copies of both models, and modules of the same names in both; a new report.

        Args:
            parts: for each record of ``layers`` the names of the modules that are timed together.
            arguments: of the models, which run in eval mode.
            backward, rounds, least_seconds: as in ``profile``.

        Raises:
            ValueError: the model fails on the arguments, or they are one series without a batch.
            NotImplementedError: the model is on a GPU.
        """
        stopwatch = Stopwatch(backward, rounds, least_seconds)
        # Fresh copies: what has been trained in place is not as fast.
        after = merge(self.after) if has_pairs(self.after) else deepcopy_model(self.after)
        models = {"before": deepcopy_model(self.before).eval(), "after": after.eval()}
        names = [name for part in parts.values() for name in part]
        found = {name: self.before.get_submodule(name) for name in names}
        check_on_cpu({m: name for name, m in found.items() if any(True for _ in m.parameters())})
        times: dict[str, dict[str, BeforeAfter]] = {}
        with stopwatch.running():
            runs = {when: _runs(model, names, arguments) for when, model in models.items()}
            for part, inside in parts.items():
                if not any(name in runs["before"] for name in inside):
                    continue  # eval mode does not call them
                passes = {
                    when: in_sequence([run for name in inside for run in runs[when].get(name, [])])
                    for when in models
                }
                times[part] = {INFERENCE: BeforeAfter.of(stopwatch.time(passes), INFERENCE)}
            whole = {when: model_passes(m, arguments, backward) for when, m in models.items()}
            seconds = stopwatch.time(whole)
        return replace(
            self,
            layers=tuple(replace(layer, times=times.get(layer.name, {})) for layer in self.layers),
            times={which: BeforeAfter.of(seconds, which) for which in whole["after"]},
            machine=machine.environment_info(),
        )


def _runs(
    model: nn.Module, names: Sequence[str], arguments: tuple[Any, ...]
) -> dict[str, list[tuple[int, Passes]]]:
    """Return the calls of modules in one run of the model, each with how often it occurs."""
    modules = {model.get_submodule(name): name for name in names}
    found: dict[str, list[tuple[int, Passes]]] = {}
    for module, calls in capture(model, modules, arguments).items():
        shape = tuple(calls[0].input.shape)
        if isinstance(module, nn.Conv1d) and len(shape) != 3:
            raise ValueError(
                f"{modules[module]!r} must be given (N, C, L), a batch of series, but got {shape}"
            )
        found[modules[module]] = [
            (call.count, {INFERENCE: partial(module, call.input)}) for call in calls
        ]
    return found
