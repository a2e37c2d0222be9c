"""Networks and random kernels made smaller: one training, every way to prune it, and times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_plan import command, made, without_times, write_set
from torch import Tensor, nn

from benchmarks.paper import pruned_filters, rocket, times
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import open_archive, published_accuracy, read
from benchmarks.paper.comparison import frame
from benchmarks.paper.plan import DEFAULTS, read_plan
from benchmarks.paper.pruned_filters import expanded
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import perform
from benchmarks.paper.tables.smaller import silenced
from benchmarks.paper.times import TIMES_NAME, read_times
from sparseconv.estimators.pocket import KS, POCKETClassifier
from sparseconv.nn.conv import SparseConv1d

PLAN = """
epochs = 2
seeds = [0]
[[run]]
name = "LITE"
model = "LITE"
sets = "all"
series = "z-normalised"
network = {nf = 3}
pruning = [
    {name = "unpruned, tuned"},
    {name = "WHC", criterion = "whc", ratio = 0.5},
    {name = "L2", criterion = "l2", ratio = 0.5},
]
[[run]]
name = "DSN"
sets = "all"
network = {nf = 3, depth = 1}
[[run]]
name = "InceptionTime"
model = "InceptionTime"
sets = "all"
network = {nf = 2}
silence = 1e-4
pruning = [
    {name = "equivalent", criterion = "jacobian", ratio = 0.5, steps = 2, equivalent = true},
    {name = "joint SVD", factorize = "left", compression = 1.2},
    {name = "DSP", criterion = "dsp", retrain = true},
    {name = "DSP, sparse", criterion = "dsp", sparsity = 0.8},
]
[[run]]
name = "ROCKET"
model = "ROCKET"
sets = "all"
seeds = [0, 1]
network = {n_kernels = 60}
[[run]]
name = "MiniROCKET"
model = "MiniROCKET"
sets = "all"
network = {n_kernels = 168}
[[run]]
name = "ROCKET, cross-validated"
model = "ROCKET"
sets = "all"
network = {n_kernels = 60, cv = true}
[[run]]
name = "ROCKET, ridge by folds"
model = "ROCKET"
sets = "all"
network = {n_kernels = 60, k = "cv"}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, in_this_process: None) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    write_set(folder / "archive" / "GunPoint.npz")
    (folder / "plan.toml").write_text(PLAN)
    assert main(command(folder / "plan.toml", folder / "archive", folder / "out")) == 0
    return folder / "out"


def networks(out: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(out / ROWS_NAME) if "ROCKET" not in row["run"]]


def test_every_variant_is_a_row(out: Path) -> None:
    rows = {row["run"]: row for row in expanded(networks(out))}
    assert len(rows) == 3 + 3 + 4
    whole = rows["LITE"]
    assert rows["LITE, unpruned, tuned"]["params"] == whole["params"]
    assert max(rows[f"LITE, {name}"]["params"] for name in ("WHC", "L2")) < whole["params"]
    assert rows["InceptionTime, DSP"]["tuning_epochs"] == 2
    assert rows["InceptionTime, joint SVD"]["tuning_epochs"] == 1
    sparse, dense = rows["InceptionTime, DSP, sparse"], rows["InceptionTime, DSP"]
    assert sparse["kept"] == dense["kept"]
    assert sparse["macs"] < dense["macs"] / 2


def test_a_job_that_was_killed_goes_on(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    smaller = pruned_filters.smaller

    def counted(variant: Any, *rest: Any) -> Any:
        done.append(variant.name)
        if len(done) == 3:
            raise KeyboardInterrupt
        return smaller(variant, *rest)

    monkeypatch.setattr(pruned_filters, "smaller", counted)
    opened = open_archive(out.parent / "archive")
    (lite, *_) = read_plan(out.parent / "plan.toml", opened)
    source = opened.sources["GunPoint"]
    with pytest.raises(KeyboardInterrupt):
        perform(lite, source, tmp_path / "job")
    row = perform(lite, source, tmp_path / "job")
    assert done == ["unpruned, tuned", "WHC", "L2", "L2"]
    (expected,) = (row for row in read_rows(out / ROWS_NAME) if row["run"] == "LITE")
    del expected["data"]  # the sweep adds it
    assert json.loads(json.dumps(without_times(row))) == without_times(expected)


def test_times_and_tables(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "ROUNDS", 2)
    copied = tmp_path / "out"
    shutil.copytree(out, copied)
    assert main(["time", str(copied)]) == 0
    (line,) = read_times(copied / TIMES_NAME)
    assert len(line["times"]) == 3 + 3 + 4
    assert all(found["forward_ms"] > 0 and found["step_ms"] > 0 for found in line["times"].values())
    rows = list(expanded(networks(copied), read_times(copied / TIMES_NAME)))
    assert (copied / "report" / "smaller-networks.png").exists()
    (silent,) = silenced(frame(rows)).rows
    assert silent[:4] == ("InceptionTime", "GunPoint", "14", "14")  # 2 epochs, pairs
    assert 0 <= float(silent[4]) < 100


def test_rows_are_those_of_the_classifier(out: Path) -> None:
    data = read(str(out.parent / "archive" / "GunPoint.npz"))
    kernels = [row for row in read_rows(out / ROWS_NAME) if "ROCKET" in row["run"]]
    rows = {(row["run"], row["seed"]): row for row in rocket.expanded(kernels)}

    def accuracy(**options: Any) -> float:
        classifier = POCKETClassifier(n_kernels=60, random_state=1, **options)
        guess = classifier.fit(data.X_train, data.y_train).predict(data.X_test)
        return float((guess == data.y_test).mean())

    published_count = round(published_accuracy("POCKET kernels")["GunPoint"] / 10_000 * 60)
    for name, keep in {"as published": published_count, "35 %": 21, "10 %": 6}.items():
        row = rows[f"ROCKET, {name}, POCKET", 1]
        assert row["keep"] == keep
        assert row["accuracy"] == accuracy(keep=keep / 60)
        assert rows[f"ROCKET, {name}, POCKET, stage 1", 1]["accuracy"] == accuracy(
            keep=keep / 60, refit=False
        )
        assert rows[f"ROCKET, {name}, magnitude", 1]["accuracy"] == accuracy(
            keep=keep / 60, n_iter=1
        )
        assert rows[f"ROCKET, {name}, random", 1]["keep"] == keep
    assert rows["ROCKET", 1]["accuracy"] == accuracy(keep=1.0)
    assert rows["MiniROCKET, 35 %, POCKET", 0]["keep"] == round(0.35 * 168)
    assert rows["ROCKET, cross-validated, cv, POCKET", 0]["keep"] in (3, 6, 12, 21, 30, 60)
    folds = rows["ROCKET, ridge by folds, as published, POCKET", 0]
    assert folds["keep"] == published_count
    assert folds["k"] in KS
    assert len({name for name, _ in rows}) == 1 + 12 + 1 + 8 + 2 * 3


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


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def timed(
        models: Mapping[str, nn.Module], x: Tensor, half: set[str]
    ) -> dict[str, dict[str, float]]:
        assert half == {name for name in models if name.endswith('"bfloat16"]')}
        assert tuple(x.shape) == (times.BATCH, 2, 30)
        for name, model in models.items():
            sparse = any(type(m) is SparseConv1d for m in model.modules())
            assert sparse == ("masked dense" not in name)
        return {name: {"forward_ms": 1.0, "step_ms": 1.0 + i} for i, name in enumerate(models)}

    monkeypatch.setattr(times, "_timed", timed)
    return tmp_path / times.TIMES_NAME


def test_equal_networks_are_measured_once(path: Path) -> None:
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


def test_what_changed_is_measured_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, five = row("DSN"), row("wide", network={"nf": 5})
    several = row("wide", network={"nf": 5}, members=5)
    for wide in (several, five):
        assert times.measure([one, wide], path) == 1
    timed = [r["run"] for r in expanded([one, several], read_times(path)) if "step_ms" in r]
    assert timed == ["DSN"], "a time of another network is not the row's"
    here = times.measurement_context()
    monkeypatch.setattr(times, "measurement_context", lambda: here | {"cpu": "another"})
    assert times.measure([one, five], path) == 1
    assert [line["machine"]["cpu"] for line in times.read_times(path)] == ["another"]
