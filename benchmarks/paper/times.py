"""Time networks on an otherwise idle machine.

The jobs of a sweep share a machine, so their rows contain no such times. This module times
predictions and training steps of a data set's networks, interleaved.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.paper.pruned_filters import expanded, like, network_of
from benchmarks.paper.rocket import is_pruned_kernels
from benchmarks.paper.rows import LOCK_NAME
from benchmarks.recording import add_line, measurement_context, read_lines
from sparseconv.core.files import locked
from sparseconv.core.modules import deepcopy_model
from sparseconv.measure.machine import threads
from sparseconv.measure.timing import interleave, milliseconds
from sparseconv.profiling.stopwatch import model_passes

TIMES_NAME = "times.jsonl"
BATCH, ROUNDS = 16, 9


def measure(rows: Sequence[Mapping[str, Any]], path: Path) -> int:
    """Add a line for each data set with at least two networks and no line for exactly these.

    Only the first seed's networks are timed, since the sizes for other seeds are nearly equal. On
    another processor, everything is measured again, since ratios differ. A line has ``forward_ms``
    and ``step_ms`` of a batch of ``BATCH`` on one thread, by network, and describes each network.
    Equal networks share their times; random kernels are left out.

    Returns how many lines were added.
    """
    if not rows:
        raise ValueError(f"there are no rows to measure in {path.parent}; run a plan first")
    here, added = measurement_context(), 0
    networks: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in expanded(row for row in rows if not is_pruned_kernels(row)):
        networks.setdefault((row["dataset"], row["seed"]), []).append(row)
    with locked(path.with_name(LOCK_NAME), f"a sweep is running in {path.parent}; wait for it"):
        done = {
            line["dataset"]: (line["seed"], line["networks"])
            for line in read_times(path)
            if all(line["machine"][key] == here[key] for key in ("cpu", "isa"))
        }
        # The last of each data set in this order is its first seed.
        first = dict(sorted(networks, reverse=True))
        for dataset, seed in sorted(first.items()):
            shown = networks[dataset, seed]
            timed_as = {row["run"]: network_of(row) for row in shown}
            if len(set(timed_as.values())) < 2 or done.get(dataset) == (seed, timed_as):
                continue
            models = {network_of(row): like(row) for row in shown}
            recipes = {timed_as[row["run"]]: row["options"]["recipe"] for row in shown}
            half = {name for name, its in recipes.items() if its.get("precision") == "bfloat16"}
            x = torch.randn(BATCH, shown[0]["n_channels"], shown[0]["n_timepoints"])
            with threads(1):
                found = _timed(models, x, half)
            line = {
                "dataset": dataset, "seed": seed, "networks": timed_as,
                "times": {run: found[name] for run, name in timed_as.items()},
            }  # fmt: skip
            add_line(path, {**line, "batch": BATCH, "machine": measurement_context()})
            added += 1
    return added


def read_times(path: Path) -> list[dict[str, Any]]:
    """Read the last line that ``measure`` wrote for each data set and seed."""
    lines = {(line["dataset"], line["seed"]): line for line in read_lines(path)}
    return list(lines.values())


def _timed(
    models: Mapping[str, nn.Module], x: torch.Tensor, half: Container[str]
) -> dict[str, dict[str, float]]:
    """Time every network; those in ``half`` run under autocast to bfloat16."""
    calls: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        # A copy each: changing the mode of one would take microseconds of every call.
        calls[f"{name} forward"] = torch.no_grad()(partial(deepcopy_model(model).eval(), x))
        calls[f"{name} step"] = model_passes(model.train(), (x,), True)["training"]

    def precision(key: str) -> torch.autocast:
        enabled = key.rpartition(" ")[0] in half
        return torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False)

    times = interleave(calls, rounds=ROUNDS, context=precision)
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for key, seconds in times.items():
        name, _, which = key.rpartition(" ")
        found[name][f"{which}_ms"] = round(milliseconds(seconds).median, 4)
    return found
