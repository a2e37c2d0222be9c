"""What dilation costs: the time of calls, divided by that of the same pattern at dilation 1.

Both do the same number of multiply-adds. Calls are interleaved, on one thread. Use an idle machine.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.cases import Problem
from benchmarks.bench.run import COMPUTATIONS, kernel_calls
from benchmarks.recording import add_missing, machines, read_lines
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import interleave
from sparseconv.testing import Case

RESULTS = Path(__file__).parents[1] / "results" / "dilation.jsonl"
SHAPES = {"25x25x7": (25, 25, 7), "32x32x41": (32, 32, 41), "64x64x3": (64, 64, 3)}
DILATIONS = (1, 2, 3, 4, 8, 16, 25, 31, 32, 64)
LENGTHS = (64, 100, 256, 1000, 1024, 1040, 4096)
ROUNDS = 15


def measure(path: Path, archive: Path | None = None) -> None:
    jobs = {key: partial(row, *key) for key in product(SHAPES, (1, 16), LENGTHS)}
    add_missing(path, ("shape", "batch", "n_timepoints"), jobs)


def row(shape: str, batch: int, length: int) -> dict[str, Any]:
    """Time each computation at each dilation, and divide by dilation 1."""
    calls, found = {}, {}
    for dilation in DILATIONS:
        case = Case(batch, *SHAPES[shape], length, padding="same", dilation=dilation, density=0.1)
        x, values, _, grad = case.tensors()
        problem = Problem(x, values, grad, case.make_pattern(), case.geometry)
        calls[str(dilation)] = kernel_calls("cpp", problem)
    for name in COMPUTATIONS:
        with threads(1):
            taken = interleave({d: each[name] for d, each in calls.items()}, rounds=ROUNDS)
        found[name] = {d: round(float(np.median(taken[d] / taken["1"])), 3) for d in taken}
    return found


def section(path: Path = RESULTS) -> str:
    """Tabulate the largest ratio of each computation, and where it occurs."""
    rows, lines = read_lines(path), []
    for name in COMPUTATIONS:
        found = [(r[name][d], r, d) for r in rows for d in r[name] if d != "1"]
        worst, r, d = max(found, key=lambda one: one[0])
        where = f"{r['shape']}, N = {r['batch']}, L = {r['n_timepoints']}, dilation {d}"
        lines.append((name, str(len(found)), f"{worst:.2f}", where))
    header = ("computation", "calls", "largest", "where")
    return f"{Table(header, lines).markdown()}\n\n{machines(rows)}.\n"
