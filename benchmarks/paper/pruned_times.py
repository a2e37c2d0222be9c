"""Times of networks and of what pruning made of them, measured on a machine that does nothing else.

A sweep shares its machine, so its rows say how a network is shaped, and this how fast that is: all
networks of one data set in turns, a prediction and a training step of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.lines import add_line, read_lines
from benchmarks.paper.pruned_filters import is_pruned_filters, like
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.measure.timing import milliseconds, ratio
from sparseconv.profiling.stopwatch import Passes, Stopwatch, model_passes

TIMES_NAME = "times.jsonl"
BATCH, ROUNDS = 16, 15


def measure(
    rows: Sequence[dict[str, Any]], path: Path, reference: str = "InceptionTime"
) -> tuple[int, list[str]]:
    """Add a line for each data set that has none yet.

    Returns how many were added, and the data sets that have no reference.

    Of the networks of its first seed: those of others are as large, or nearly (two minutes a line).
    Each line has milliseconds of a batch of 16 on one thread by network, ``forward_ms`` and
    ``step_ms``, and how many times faster than the reference, pair by pair.

    Raises:
        ValueError: no rows, or none of the reference.
    """
    if not rows:
        raise ValueError(f"there are no rows to measure in {path.parent}; run a plan first")
    if not any(row["run"] == reference for row in rows):
        raise ValueError(
            f"nothing to measure in {path.parent}: times are beside those of a run named "
            f"{reference!r}, and the runs are {', '.join(sorted({row['run'] for row in rows}))}"
        )
    done = {(line["dataset"], line["seed"], len(line["times"])) for line in read_times(path)}
    added, without = 0, list[str]()
    first: dict[str, int] = {}
    for row in rows:
        first[row["dataset"]] = min(row["seed"], first.get(row["dataset"], row["seed"]))
    for dataset, seed in sorted(first.items()):
        held = [row for row in rows if (row["dataset"], row["seed"]) == (dataset, seed)]
        models: dict[str, nn.Module] = {}
        for row in held:
            models[row["run"]] = like(row, None)
            for variant in row["variants"] if is_pruned_filters(row) else ():
                models[f"{row['run']}, {variant['name']}"] = like(row, variant)
        if reference not in models:
            without.append(dataset)
        if reference not in models or (dataset, seed, len(models)) in done:
            continue
        x = torch.randn(BATCH, held[0]["n_channels"], held[0]["n_timepoints"])
        with threads(1):
            line = {"dataset": dataset, "seed": seed, "times": _timed(models, x, reference)}
        add_line(path, {**line, "batch": BATCH, "machine": measurement_context()})
        added += 1
    return added, without


def read_times(path: Path) -> list[dict[str, Any]]:
    """The lines that ``measure`` wrote, of each data set and seed the last."""
    lines = read_lines(path)
    return list({(line["dataset"], line["seed"]): line for line in lines}.values())


def _timed(
    models: dict[str, nn.Module], x: torch.Tensor, reference: str
) -> dict[str, dict[str, Any]]:
    candidates: dict[str, Passes] = {}
    for name, model in models.items():
        with torch.enable_grad():
            step = model_passes(model.train(), (x,), True)["step"]
        candidates[name] = {"forward": _Prediction(model, x), "step": _Step(model, step)}
    times = Stopwatch(True, ROUNDS, 2e-3, 0).time(candidates)
    found: dict[str, dict[str, Any]] = {}
    for name in models:
        found[name] = {}
        for which in ("forward", "step"):
            key = f"{name} {which}"
            found[name][f"{which}_ms"] = round(milliseconds(times[key]).median, 4)
            speedup = ratio(times, f"{reference} {which}", key)
            found[name][f"{which}_faster"] = [round(value, 3) for value in speedup]
    return found


class _Prediction:
    """A call in eval mode; the mode is set each time, which costs microseconds."""

    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.model, self.x = model, x

    def __call__(self) -> object:
        if self.model.training:
            self.model.eval()
        return self.model(self.x)


class _Step:
    def __init__(self, model: nn.Module, step: Any) -> None:
        self.model, self.step = model, step

    def __call__(self) -> object:
        if not self.model.training:
            self.model.train()
        return self.step()
