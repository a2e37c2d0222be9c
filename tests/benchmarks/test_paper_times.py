"""``python -m benchmarks.paper time``: which networks are measured, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

pytest.importorskip("aeon", reason="aeon is not installed")

from benchmarks.paper import times
from benchmarks.paper.plan import DEFAULTS
from sparseconv.bench.network.masked import PremaskedConv1d
from sparseconv.nn.conv import SparseConv1d


def row(run: str, dataset: str = "x", seed: int = 0, **options: Any) -> dict[str, Any]:
    options = {**DEFAULTS, "network": {"nf": 4}, **options}
    shape = {"n_train": 20, "n_test": 9, "n_channels": 2, "n_timepoints": 30, "n_classes": 3}
    return {"run": run, "dataset": dataset, "seed": seed, "options": options, **shape}


ROWS = [
    row("DSN"),
    row("DSN", seed=1),
    row("moments: mean", moments="mean"),
    row("masked dense", weights="masked dense"),
    row("S = 90 %", network={"nf": 4, "sparsity": 0.9}),
    row("ROCKET", model="ROCKET", network={}),
    row("DSN", "alone"),
    row("z-normalised", "alone", series="z-normalised"),
]


def test_equal_networks_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[list[type]] = []

    def timed(models: Mapping[str, nn.Module], x: Tensor) -> dict[str, dict[str, float]]:
        assert tuple(x.shape) == (times.BATCH, 2, 30)
        kinds = SparseConv1d, PremaskedConv1d
        measured.append(
            [type(m) for model in models.values() for m in model.modules() if type(m) in kinds]
        )
        return {name: {"step_ms": float(i)} for i, name in enumerate(models)}

    monkeypatch.setattr(times, "_timed", timed)
    path = tmp_path / times.TIMES_NAME
    assert times.measure(ROWS, path) == 1, "of one set all networks are equal"
    layers = 4
    assert measured == [
        [SparseConv1d] * layers + [PremaskedConv1d] * layers + [SparseConv1d] * layers
    ]
    (line,) = times.read_times(path)
    assert (line["dataset"], line["seed"], line["batch"]) == ("x", 0, times.BATCH)
    assert {run: found["step_ms"] for run, found in line["times"].items()} == {
        "DSN": 0, "moments: mean": 0, "masked dense": 1, "S = 90 %": 2,
    }  # fmt: skip
    assert times.measure(ROWS, path) == 0, "nothing is measured twice"
    assert times.measure([*ROWS, row("new", network={"nf": 5})], path) == 1
    assert [len(line["times"]) for line in times.read_times(path)] == [5]


def test_nothing_to_measure(tmp_path: Path) -> None:
    path = tmp_path / times.TIMES_NAME
    assert times.measure([row("ROCKET", model="ROCKET", network={})], path) == 0
    assert not path.exists()
    with pytest.raises(ValueError, match=r"no rows to measure in .*; run a plan first"):
        times.measure([], path)
