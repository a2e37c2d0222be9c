"""Rows of trainings, as `benchmarks.paper` records them, made by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.archives import members
from benchmarks.paper.plan import DEFAULTS

SETS = members("ucr85")[:6]


def row(
    run: str, dataset: str, seed: int = 0, accuracy: float = 0.9, **more: Any
) -> dict[str, Any]:
    return {
        "run": run, "dataset": dataset, "seed": seed, "accuracy": accuracy, "options": DEFAULTS,
        "post_hoc": False,
        "params": 1000, "macs": 5_000_000, "epochs": 10, "train_seconds": 20.0, "n_test": 50,
        "predict_seconds": 0.1, "n_train": 20, "n_channels": 1, "n_timepoints": 10,
        "curve": [[5, accuracy / 2], [10, accuracy]],
        "curve_seconds": [10.0, 20.0],
        "machine": {"cpu": "a processor", "torch": "2.13", "commit": "abc", "date": "today"},
        **more,
    }  # fmt: skip
