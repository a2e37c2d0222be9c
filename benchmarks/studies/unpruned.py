"""Unpruned networks, with layers on these kernels where that is faster.

Times ``sc.convert(unpruned=True)`` for training and for inference, interleaved with the original
network. Use an idle machine; it takes ten minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparseconv as sc
from benchmarks.recording import add_missing, machines, read_lines
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import LEAST_SECONDS, Estimate
from sparseconv.profiling.stopwatch import Stopwatch, model_passes
from sparseconv.pruning import WHC, prune_filters

RESULTS = Path(__file__).parents[1] / "results" / "unpruned.jsonl"
BATCH, LENGTHS, THREADS, ROUNDS = 16, (150, 500), (1, 2), 15


def half(model: nn.Module) -> nn.Module:
    """Return the network with half of its filters."""
    return prune_filters(model, torch.zeros(1, 1, LENGTHS[0]), WHC(), fraction=0.5).model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LITE": lambda: sc.models.LITE(1, 2),
    "InceptionTime": lambda: sc.models.InceptionTime(1, 2),
    "InceptionTime, half of its filters": lambda: half(sc.models.InceptionTime(1, 2)),
    "ResNet": lambda: sc.models.ResNet(1, 2),
}


def measure(path: Path, archive: Path | None = None) -> None:
    jobs = {key: partial(row, *key) for key in product(NETWORKS, LENGTHS, THREADS)}
    add_missing(path, ("network", "n_timepoints", "threads"), jobs)


def row(name: str, length: int, count: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, x = NETWORKS[name](), torch.randn(BATCH, 1, length)
    with threads(count):
        training = _compared(model.train(), x, "training")
        inference = _compared(model.eval(), x, "inference")
    return {"batch": BATCH, "training": training, "inference": inference}


def _compared(model: nn.Module, x: torch.Tensor, which: str) -> dict[str, Any]:
    """Count the converted layers, and time a pass."""
    converted, report = sc.convert(
        model, example_input=x, unpruned=True, training=which == "training"
    )
    with torch.no_grad():  # no time is written down for something else
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
    chosen = sum(layer.sparse for layer in report.layers)
    found: dict[str, Any] = {"chosen": chosen, "layers": len(report.layers)}
    if chosen:
        stopwatch = Stopwatch(which == "training", ROUNDS, LEAST_SECONDS)
        models = {"torch": model, "converted": converted}
        with stopwatch.running({}):
            passes = {name: model_passes(m, (x,), stopwatch.training) for name, m in models.items()}
            times = stopwatch.compare(**passes)
        found["ratio"] = [round(value, 3) for value in times[which].speedup]
    return found


def section(path: Path = RESULTS) -> str:
    """Tabulate each network's speedup, with the machine, in Markdown."""
    rows = sorted(read_lines(path), key=lambda row: list(NETWORKS).index(row["network"]))

    def cells(found: Mapping[str, Any]) -> tuple[str, str]:
        ratio = str(Estimate(*found["ratio"])) if "ratio" in found else "-"
        return f"{found['chosen']} of {found['layers']}", ratio

    header = (
        "network", "length", "threads", "layers, training", "step: torch / converted",
        "layers, inference", "prediction: torch / converted",
    )  # fmt: skip
    lines = [
        (row["network"], str(row["n_timepoints"]), str(row["threads"]), *cells(row["training"]),
         *cells(row["inference"]))
        for row in rows
    ]  # fmt: skip
    return f"{Table(header, lines).markdown()}\n\n{machines(rows)}.\n"
