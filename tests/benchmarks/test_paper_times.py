"""``python -m benchmarks.paper time``: which networks are measured, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from paper_rows import row as made
from torch import Tensor, nn

from benchmarks.paper import times
from benchmarks.paper.plan import DEFAULTS
from benchmarks.paper.pruned_filters import expanded
from sparseconv.nn.conv import SparseConv1d


def row(run: str, dataset: str = "x", seed: int = 0, **options: Any) -> dict[str, Any]:
    options = {**DEFAULTS, "network": {"nf": 4}, **options}
    return made(run, dataset, seed, options=options, n_channels=2, n_timepoints=30, n_classes=3)


TIMED = [
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
    def timed(
        models: Mapping[str, nn.Module], x: Tensor, half: set[str]
    ) -> dict[str, dict[str, float]]:
        assert [name in half for name in models] == [
            name.endswith('"bfloat16"]') for name in models
        ]
        assert tuple(x.shape) == (times.BATCH, 2, 30)
        sparse = [any(type(m) is SparseConv1d for m in one.modules()) for one in models.values()]
        assert sparse[:3] == [True, False, True]
        return {name: {"forward_ms": 1.0, "step_ms": 1.0 + i} for i, name in enumerate(models)}

    monkeypatch.setattr(times, "_timed", timed)
    path = tmp_path / times.TIMES_NAME
    assert times.measure(TIMED[5:6], path) == 0, "random kernels are not timed"
    assert times.measure(TIMED, path) == 1, "of one set all networks are equal"
    (line,) = times.read_times(path)
    assert (line["dataset"], line["seed"], line["batch"]) == ("x", 0, times.BATCH)
    assert {run: found["step_ms"] for run, found in line["times"].items()} == {
        "DSN": 1, "moments: mean": 1, "masked dense": 2, "S = 90 %": 3,
    }  # fmt: skip
    assert times.measure(TIMED, path) == 0, "nothing is measured twice"
    assert times.measure([*TIMED, row("new", network={"nf": 5})], path) == 1
    half = row("half", recipe={"precision": "bfloat16"})
    assert times.measure([*TIMED, row("new", network={"nf": 5}), half], path) == 1
    assert [len(line["times"]) for line in times.read_times(path)] == [6]
    assert line["networks"]["DSN"] == '["DSN", "sparse", {"nf": 4}]'


def test_what_changed_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"forward_ms": 1.0, "step_ms": 2.0}
    monkeypatch.setattr(times, "_timed", lambda models, x, half: dict.fromkeys(models, found))
    path = tmp_path / times.TIMES_NAME
    one, five = row("DSN"), row("wide", network={"nf": 5})
    several = row("wide", network={"nf": 5}, members=5)
    for wide in (row("wide", network={"nf": 40}), several, five):
        assert times.measure([one, wide], path) == 1
        assert times.measure([one, wide], path) == 0
    changed = [one, row("wide", network={"nf": 6})]
    timed = [row["run"] for row in expanded(changed, times.read_times(path)) if "step_ms" in row]
    assert timed == ["DSN"], "a time of another network is not the row's"
    here = times.measurement_context()
    monkeypatch.setattr(times, "measurement_context", lambda: here | {"cpu": "another"})
    assert times.measure([one, five], path) == 1
    assert [line["machine"]["cpu"] for line in times.read_times(path)] == ["another"]
