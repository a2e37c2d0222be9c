"""A small data set and a plan; rows of trainings."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.plan import DEFAULTS, Job
from benchmarks.paper.report import RECORDED
from benchmarks.paper.rows import ROWS_NAME, read_rows

ROOT = Path(__file__).parents[2]


PLAN = """
epochs = 12
seeds = [0]
[[run]]
name = "small"
sets = "all"
seeds = [0, 1]
network = {nf = 3, depth = 2}
[[run]]
name = "masked"
sets = {of = "all", cheapest = 1}
weights = "masked dense"
network = {nf = 3, depth = 2}
"""


def write_set(path: Path, length: int = 20, channels: int = 1) -> None:
    generator = np.random.default_rng(length)
    y = np.arange(24) % 2
    X = generator.normal(size=(24, channels, length)) + np.sin(np.arange(length)) * y[:, None, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, X_train=X[:14], y_train=y[:14], X_test=X[14:], y_test=y[14:])


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row's facts, and those of its variants."""
    kept = {k: v for k, v in row.items() if not k.endswith("seconds") and k != "machine"}
    if "variants" in row:
        kept["variants"] = [without_times(variant) for variant in row["variants"]]
    return kept


def facts(out: Path) -> list[dict[str, Any]]:
    rows = [without_times(row) for row in read_rows(out / ROWS_NAME)]
    return sorted(rows, key=lambda row: (row["run"], row["dataset"], row["seed"]))


@cache
def recorded() -> dict[str, Any]:
    return next(row for row in read_rows(RECORDED["full"]) if row["run"] == "DSN")


def made(run: str, dataset: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A recorded row of DSN, as if it were of this run."""
    return {**recorded(), "run": run, "dataset": dataset, "seed": seed, **more}


def command(plan: Path, archive: Path, out: Path) -> list[str]:
    return ["run", str(plan), "--archive", str(archive), "--out", str(out), "--workers", "2"]


def job_with(**options: Any) -> Job:
    small = {"network": {"nf": 4}, "recipe": {"epochs": 1}}
    return Job("x", "y", 0, {**DEFAULTS, **small, **options})
