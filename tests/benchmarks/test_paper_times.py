"""``python -m benchmarks.paper time``: which networks are measured, and as what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
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
    one, other = row("DSN"), row("wide", network={"nf": 5})
    wider = row("wide", network={"nf": 40})
    five = row("wide", network={"nf": 5}, members=5)
    for rows in ([one, five], [one, other], [one, wider], [one, {**wider, "run": "wider"}]):
        assert times.measure(rows, path) == 1
        assert times.measure(rows, path) == 0
    timed = [
        row["run"] for row in expanded([one, other], times.read_times(path)) if "step_ms" in row
    ]
    assert timed == ["DSN"], "a time of another network is not the row's"
    here = {"cpu": "EPYC", "isa": "avx2", "commit": "abc", "date": "today"}
    for change in ({}, {"isa": "avx512"}, {"cpu": "Xeon"}):
        monkeypatch.setattr(times, "measurement_context", lambda there=here | change: there)
        assert times.measure([one, other], path) == 1, "on another processor"
        assert times.measure([one, other], path) == 0
    assert [line["machine"]["cpu"] for line in times.read_times(path)] == ["Xeon"]


def test_predictions_are_timed_in_eval_mode_and_steps_with_gradients() -> None:
    seen: dict[tuple[bool, bool, torch.dtype], int] = Counter()

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen[self.training, torch.is_grad_enabled(), y.dtype] += 1
            return y

    models = {"a": Counted(3, 2), "b": Counted(3, 2)}
    found = times._timed(models, torch.ones(5, 3), {"b"})
    assert found.keys() == {"a", "b"}
    assert all(took["forward_ms"] > 0 and took["step_ms"] > 0 for took in found.values())
    ways = [(False, False), (True, True)]
    assert seen.keys() == {(*way, t) for way in ways for t in (torch.float32, torch.bfloat16)}
    assert min(seen.values()) >= times.ROUNDS
