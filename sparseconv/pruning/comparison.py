"""A model and what became of it, timed in turns, and shown beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from sparseconv.measure.table import Table, threads_text, with_thousands
from sparseconv.profiling.result import PASSES, Compared
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
        parts: by name, a forward pass of some modules together, if eval mode calls them.
        whole: ``"forward"`` and ``"step"`` of the model.
        threads, machine: of the measurement.
    """

    parts: Mapping[str, Compared]
    whole: Mapping[str, Compared]
    threads: int
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
    with stopwatch.running(before, after):
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
                    (call.count, {"forward": partial(module, call.input)}) for call in calls
                ]
        times = {}
        for part, inside in parts.items():
            if not any(name in runs["before"] for name in inside):
                continue  # eval mode does not call them
            passes = {
                when: in_sequence([run for name in inside for run in runs[when].get(name, [])])
                for when in models
            }
            times[part] = Compared.of(stopwatch.time(passes), "forward")
        whole = {when: model_passes(model, arguments, backward) for when, model in models.items()}
        seconds = stopwatch.time(whole)
    facts = stopwatch.conditions()
    return Comparison(
        times,
        {which: Compared.of(seconds, which) for which in whole["after"]},
        facts["threads"],
        facts["machine"],
    )


def summary(counts: Mapping[str, tuple[int, int]], times: Mapping[str, Compared]) -> Iterator[str]:
    """Of the whole model, a line each: what is counted, and what was measured."""
    for name, (before, after) in counts.items():
        change = 1 - after / max(before, 1)
        less = f"{change:.1%} fewer" if change >= 0 else f"{-change:.1%} more"
        yield f"{name}: {with_thousands(before)} -> {with_thousands(after)}, {less}"
    for which, found in times.items():
        yield (
            f"{PASSES[which]}: {found.before_ms.median:.3f} -> {found.after_ms.median:.3f} ms, "
            f"ratio {found.ratio}"
        )


def table(counts: Mapping[str, tuple[int, int]], times: Mapping[str, Compared]) -> Table:
    """The same as a table."""
    rows = [
        (name, *map(with_thousands, pair), f"{pair[0] / max(pair[1], 1):.2f}")
        for name, pair in counts.items()
    ]
    for which, found in times.items():
        pair = found.before_ms, found.after_ms
        cells = [f"{time.median:.3f}" for time in pair]
        rows.append((f"ms of {PASSES[which]}", *cells, str(found.ratio)))
    return Table(("", "before", "after", "before / after"), rows)


def conditions(threads: int, machine: Mapping[str, str]) -> str:
    """Where it was measured."""
    return f"machine: {machine['cpu']}, {threads_text(threads)}, torch {machine['torch']}"
