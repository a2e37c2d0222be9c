"""The sweep of `make paper`: each job once, however often it is killed, and what it refuses."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_plan import PLAN, ROOT, command, facts

from benchmarks.paper import sweep as sweeping
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import Archive, open_archive
from benchmarks.paper.plan import Job, read_plan
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import dask_pool, local_pool, sweep
from benchmarks.recording import add_line

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_each_job_once(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    plan.write_text(f"{PLAN}post_hoc = true\n")
    (archive / "Broken.npz").write_bytes(b"no archive")
    assert main(command(plan, archive, out)) == 1
    assert "left out: Broken" in capsys.readouterr().err
    rows = facts(out)
    keys = [(row["run"], row["dataset"], row["seed"]) for row in rows]
    small = [("small", name, seed) for name in ("Long", "Short") for seed in (0, 1)]
    assert keys == [("masked", "Short", 0), *small]
    masked, sparse = rows[:2]
    assert masked["flops_paper"] < masked["macs"], "of the active weights; it computes with all"
    assert [sum(counts) for counts in sparse["kernels_by_size"]] == [27, 27]
    for layer in sparse["group_weights"]:
        assert max(map(max, layer)) == 100
        assert not any(layer[0][13:]), "outside of the group's region"
    assert sparse["itop_rate"] > 0.14  # the density
    assert [epoch for epoch, _ in sparse["curve"]] == [9]
    assert not list((out / "running").iterdir())
    assert [row["post_hoc"] for row in rows] == [True, False, False, False, False]
    (archive / "Broken.npz").unlink()
    before = (out / ROWS_NAME).read_bytes()
    assert main(command(plan, archive, out)) == 0
    assert (out / ROWS_NAME).read_bytes() == before, "nothing was left to do"


def test_rows_of_another_plan_or_of_other_data(tmp_path: Path, archive: Path, plan: Path) -> None:
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    row = deadly(jobs[0])
    shorter = {"options": row["options"] | {"recipe": {"epochs": 1}}}
    for change, said in (
        (shorter, "has small with recipe {'epochs': 1}, not {'epochs': 12} as in the"),
        ({"data": "another"}, "rows of Short whose values differ from the archive's"),
    ):
        add_line(tmp_path / ROWS_NAME, row | change)  # in the place of the one before
        with pytest.raises(ValueError, match=re.escape(said)):
            sweep(jobs, opened, tmp_path, local_pool(1))


def sweep_here(jobs: list[Job], archive: Archive, out: Path) -> dict[str, str]:
    """Let the jobs of a sweep run in this process."""
    return sweep(jobs, archive, out, ThreadPoolExecutor(1))


def wait_for_a_checkpoint(out: Path, since: int) -> None:
    """Return as soon as one was written after this time, in nanoseconds."""
    deadline = time.monotonic() + 120
    while not any(p.stat().st_mtime_ns > since for p in out.glob("running/*/checkpoint.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.promise("P9")
def test_a_killed_sweep_goes_on(tmp_path: Path, archive: Path, plan: Path, campaign: Any) -> None:
    opened = open_archive(archive)
    jobs, out = read_plan(plan, opened), tmp_path / "out"
    words = [sys.executable, "-m", "benchmarks.paper", *command(plan, archive, out)]
    fork = multiprocessing.get_context("fork")
    for by_command in (False, *[True] * campaign(0, 10)):
        if by_command:
            process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        else:  # which starts at once
            process = fork.Process(target=sweep_here, args=(jobs, opened, out))
            process.start()
        wait_for_a_checkpoint(out, time.time_ns())
        process.kill()  # its workers end by themselves
        process.wait() if by_command else process.join()
        assert len(facts(out)) < 5
    with (out / ROWS_NAME).open("a") as file:
        file.write('{"run": "small", "da')  # as a kill while writing leaves it
    assert sweep_here(jobs, opened, out) == {}
    assert sweep_here(jobs, opened, tmp_path / "calm") == {}
    assert facts(out) == facts(tmp_path / "calm")


def test_dask(tmp_path: Path, archive: Path, plan: Path) -> None:
    """By a worker that is a thread."""
    distributed = pytest.importorskip("distributed")
    settings = {"processes": False, "threads_per_worker": 1, "dashboard_address": None}
    opened, out = open_archive(archive), tmp_path / "out"
    jobs = read_plan(plan, opened)[-1:]
    with distributed.LocalCluster(n_workers=1, **settings) as cluster:
        assert sweep(jobs, opened, out, dask_pool(cluster.scheduler_address)) == {}
    assert sweep_here(jobs, opened, tmp_path / "calm") == {}
    assert facts(out) == facts(tmp_path / "calm")


def test_a_job_that_kills_its_process_ends_the_sweep(
    tmp_path: Path, archive: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "perform", deadly)
    opened, fork = open_archive(archive), multiprocessing.get_context("fork")
    jobs = read_plan(plan, opened)  # the deadly one last
    with pytest.raises(RuntimeError, match="again to continue, if necessary with fewer --workers"):
        sweep(jobs, opened, tmp_path / "out", ProcessPoolExecutor(1, fork))
    assert len(read_rows(tmp_path / "out" / ROWS_NAME)) == 4


def deadly(job: Job, *_: object) -> dict[str, Any]:
    if job.run == "masked":
        os._exit(9)
    return {"run": job.run, "dataset": job.dataset, "seed": job.seed, "options": job.options,
            "accuracy": 1.0}  # fmt: skip
