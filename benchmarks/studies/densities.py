"""Training step speed of whole networks by density, compared with the same networks dense.

Convolutions with more than one tap keep a share of their weights and run on these kernels; the
networks, except DSN, are compiled with ``backend="sparseconv"``. Each sparse network's outputs and
gradients are first compared with a dense network with the same weights. Then its step (zero_grad,
forward, loss, backward, Adam; no pattern update) is timed on one thread, interleaved with dense at
PyTorch's settings. Use an idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench.networks import TURN
from benchmarks.recording import add_missing, machines, read_lines, rounded
from benchmarks.studies import networks
from benchmarks.studies.networks import DENSE
from benchmarks.studies.published_networks import training_step
from sparseconv.conversion import to_dense
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate, interleave, milliseconds, ratio
from sparseconv.models import DSN

RESULTS = Path(__file__).parents[1] / "results" / "densities.jsonl"


def dsn(density: float) -> DSN:
    return DSN(1, 2, sparsity=1 - density, n_groups=1, init="random")  # one keeps it exactly


# Networks by density, and the shapes of their batches.
NETWORKS: dict[str, tuple[Callable[[float], Any], tuple[int, int, int]]] = {
    "DSN": (dsn, (16, 1, 128)),
    **{
        name: (networks.NETWORKS[name].sparse, networks.NETWORKS[name].shape)
        for name in ("InceptionTime", "ResNet", "FCN", "ECG ResNet", "U-Sleep")
    },
}
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
ROUNDS = 24
SIZES = ("batch", "in_channels", "n_timepoints")


def measure(path: Path, archive: Path | None = None) -> None:
    add_missing(path, ("network",), {(name,): partial(row, name) for name in NETWORKS})


def row(network: str) -> dict[str, Any]:
    """Check a network at each density, and time all with the dense one."""
    torch.manual_seed(0)
    build, (batch, channels, length) = NETWORKS[network]
    X, y = torch.randn(batch, channels, length), torch.arange(batch) % 2
    with threads(1):
        models = {f"{density:g}": build(density) for density in DENSITIES}
        for model in models.values():
            networks.check(model, X, y)
        networks.check_dense(models["1"], X)
        dense = to_dense(models["1"])
        torch.compiler.reset()  # one forward is compiled only a few times; the rest would be eager
        ways = {name: make(dense) for name, make in DENSE.items()}
        if network != "DSN":
            models = {name: networks.compiled(model) for name, model in models.items()}
        steps = {name: training_step(model) for name, model in (ways | models).items()}
        calls = {name: partial(step, X, y) for name, step in steps.items()}
        taken = interleave(calls, rounds=ROUNDS, least_seconds=TURN)
    fastest = min(ways, key=lambda name: float(np.median(taken[name])))
    return rounded({
        "batch": batch, "in_channels": channels, "n_timepoints": length, "rounds": ROUNDS,
        "fastest": fastest,
        "ms": {name: list(milliseconds(times)) for name, times in taken.items()},
        "ratio": {
            density: {name: list(ratio(taken, name, density)) for name in ways}
            for density in models
        },
    })  # fmt: skip


def speeds(path: Path = RESULTS) -> dict[str, list[tuple[float, float]]]:
    """Return each network's densities and speeds relative to its fastest dense setting."""
    return {
        row["network"]: [
            (float(density), ratios[row["fastest"]][0]) for density, ratios in row["ratio"].items()
        ]
        for row in read_lines(path)
    }


def section(path: Path = RESULTS) -> str:
    """Tabulate each network's speedup over dense in Markdown."""
    rows = read_lines(path)
    header = ("network", "batch", "density", *(f"{name} / sparse" for name in DENSE), "ms, sparse")
    lines = [
        (row["network"], " x ".join(str(row[size]) for size in SIZES), f"{float(density):.0%}",
         *(str(Estimate(*found[way])) for way in DENSE), f"{row['ms'][density][0]:.2f}")
        for row in rows for density, found in row["ratio"].items()
    ]  # fmt: skip
    return f"{Table(header, lines, text_columns=2).markdown()}\n\n{machines(rows)}.\n"
