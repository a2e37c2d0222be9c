"""Training step speed of whole networks by density, compared with the same networks dense.

Convolutions with more than one tap keep a share of their weights and run on these kernels. Each
sparse network's outputs and gradients are first compared with a dense network with the same
weights. Then its step (zero_grad, forward, loss, backward, Adam; no pattern update) is timed on one
thread, interleaved with dense at PyTorch's settings. Use an idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench.masked import images_of
from benchmarks.bench.networks import TURN, check_layers, check_step
from benchmarks.recording import add_missing, machines, read_lines, rounded
from benchmarks.studies.blocks import pruned
from benchmarks.studies.published_networks import training_step
from sparseconv.conversion import to_dense
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate, interleave, milliseconds, ratio
from sparseconv.models import DSN, InceptionTime, ResNet
from sparseconv.nn.modules import deepcopy_model

RESULTS = Path(__file__).parents[1] / "results" / "densities.jsonl"
NETWORKS: dict[str, Callable[[float], Any]] = {  # by density, which one group keeps exactly
    "DSN": lambda density: DSN(1, 2, sparsity=1 - density, n_groups=1, init="random"),
    "InceptionTime": lambda density: pruned(InceptionTime(1, 2), 1, density),
    "ResNet": lambda density: pruned(ResNet(1, 2), 1, density),
}
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
BATCH, LENGTH, ROUNDS = 16, 128, 24
DENSE: dict[str, Callable[[Any], Any]] = {  # PyTorch's settings
    "plain": deepcopy_model,
    "channels_last": images_of,
    "compiled": lambda model: torch.compile(deepcopy_model(model), dynamic=False),
}


def measure(path: Path, archive: Path | None = None) -> None:
    """Time the networks that the file lacks."""
    add_missing(path, ("network",), {(name,): partial(row, name) for name in NETWORKS})


def row(network: str) -> dict[str, Any]:
    """Check a network at each density, and time all with the dense one."""
    torch.compiler.reset()  # it compiles one forward for a limited number of shapes
    torch.manual_seed(0)
    X, y = torch.randn(BATCH, 1, LENGTH), torch.arange(BATCH) % 2
    with threads(1):
        models = {f"{density:g}": NETWORKS[network](density) for density in DENSITIES}
        for model in models.values():
            check_layers(model, BATCH, LENGTH)
            check_step(model, X, y)
        dense = to_dense(models["1"])
        ways = {name: make(dense) for name, make in DENSE.items()}
        outputs = [way.train()(X).detach() for way in ways.values()]
        for found in outputs[1:]:
            torch.testing.assert_close(found, outputs[0], rtol=1e-4, atol=1e-5)
        steps = {name: training_step(model) for name, model in (ways | models).items()}
        calls = {name: partial(step, X, y) for name, step in steps.items()}
        taken = interleave(calls, rounds=ROUNDS, least_seconds=TURN)
    fastest = min(ways, key=lambda name: float(np.median(taken[name])))
    return rounded({
        "batch": BATCH, "n_timepoints": LENGTH, "rounds": ROUNDS, "fastest": fastest,
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
    header = ("network", "density", *(f"{name} / sparse" for name in DENSE), "ms, sparse")
    lines = [
        (row["network"], f"{float(density):.0%}", *(str(Estimate(*found[way])) for way in DENSE),
         f"{row['ms'][density][0]:.2f}")
        for row in rows for density, found in row["ratio"].items()
    ]  # fmt: skip
    return (
        f"{Table(header, lines).markdown()}\n\n{machines(rows)}. A training step of {BATCH} "
        f"single-channel series of {LENGTH} time steps, float32, on one thread. Dense time divided "
        f"by sparse time: medians with 95 % intervals of {ROUNDS} interleaved rounds.\n"
    )
