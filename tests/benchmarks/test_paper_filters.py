"""Networks made smaller: one training, every way to prune it, tables and times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_plan import without_times

from benchmarks.paper import pruned_filters, times
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import open_archive
from benchmarks.paper.comparison import frame
from benchmarks.paper.plan import read_plan
from benchmarks.paper.pruned_filters import expanded
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import perform
from benchmarks.paper.tables.smaller_networks import silenced
from benchmarks.paper.times import TIMES_NAME, read_times

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
model = "DSN"
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
"""


@pytest.fixture(scope="module")
def out(swept: Callable[[str], Path]) -> Path:
    return swept(PLAN)


def test_every_variant_is_a_row(out: Path) -> None:
    rows = {row["run"]: row for row in expanded(read_rows(out / ROWS_NAME))}
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
    rows = list(expanded(read_rows(copied / ROWS_NAME), read_times(copied / TIMES_NAME)))
    assert (copied / "report" / "smaller-networks.png").exists()
    (silent,) = silenced(frame(rows)).rows
    assert silent[:4] == ("InceptionTime", "GunPoint", "14", "14")  # 2 epochs, pairs
    assert 0 <= float(silent[4]) < 100
