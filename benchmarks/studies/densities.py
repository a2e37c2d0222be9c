"""Speed of whole networks by density, against the same networks dense.

The convolutions of more than one tap keep one share of their weights, the largest, and run on these
kernels; the rest is torch's own. A training step and inference of one batch are timed interleaved
with the dense network, on one thread: three minutes, on a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.lines import add_missing, read_lines
from benchmarks.studies.blocks import pruned
from benchmarks.studies.published_networks import BATCH, ROUNDS, Data, times
from sparseconv.bench.document import rounded
from sparseconv.conversion import to_dense
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate
from sparseconv.models import DSN, InceptionTime, ResNet
from sparseconv.nn.modules import deepcopy_model

RESULTS = Path(__file__).parents[1] / "results" / "densities.jsonl"
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "DSN": lambda: to_dense(DSN(1, 2, sparsity=0.0)),
    "ResNet": lambda: ResNet(1, 2),
    "InceptionTime": lambda: InceptionTime(1, 2),
}
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
LENGTH = 128
TIMED = {"step": "Training step", "inference": "Inference"}


def measure(path: Path, archive: Path | None = None) -> None:
    """Time what the file does not hold yet."""
    jobs = {key: partial(row, *key) for key in product(NETWORKS, DENSITIES)}
    add_missing(path, ("network", "density"), jobs)


def row(network: str, density: float) -> dict[str, Any]:
    """Time a network at one density."""
    torch.manual_seed(0)
    sparse = pruned(NETWORKS[network](), 1, density)
    models = {"dense": to_dense(sparse), "converted": sparse}
    X, y = torch.randn(BATCH, 1, LENGTH), torch.arange(BATCH) % 2
    with torch.no_grad():  # no time is written down for something else
        outputs = [deepcopy_model(model).eval()(X) for model in models.values()]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    with threads(1):
        found = times(models, Data(X, y, X, y, classes=2))
    return {"batch": BATCH, "n_timepoints": LENGTH, **rounded(found)}


def speeds(path: Path = RESULTS) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return densities and speeds of each network, by what was timed; dense is 1."""
    rows = sorted(read_lines(path), key=lambda row: row["density"])
    return {
        title: {
            name: [
                (row["density"], row[what]["ratio"]["dense"][0])
                for row in rows if row["network"] == name
            ]
            for name in NETWORKS
        }
        for what, title in TIMED.items()
    }  # fmt: skip


def section(path: Path = RESULTS) -> str:
    """Tabulate how many times as fast as dense each network is, in Markdown."""
    rows = read_lines(path)

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [str(Estimate(*row[what]["ratio"]["dense"])) for what in TIMED]

    header = ("network", "density", *(f"{title}: dense / sparse" for title in TIMED.values()))
    lines = [(row["network"], f"{row['density']:.0%}", *cells(row)) for row in rows]
    machines = {
        f"{m['cpu']}, {m['isa']}, 1 thread, torch {m['torch']}, {m['date'][:10]}"
        for m in (row["machine"] for row in rows)
    }
    return (
        f"{Table(header, lines).markdown()}\n\n{'; '.join(sorted(machines))}. {BATCH} series of "
        f"one channel and {LENGTH} samples, float32; medians with 95 % intervals of {ROUNDS} "
        "interleaved pairs.\n"
    )
