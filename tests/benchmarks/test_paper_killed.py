"""Sweeps of `make paper` that are killed, and their workers: the same rows as undisturbed ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_plan import PLAN, ROOT, command, facts

from benchmarks.paper import sweep as sweeping
from benchmarks.paper.archives import open_archive
from benchmarks.paper.job import perform
from benchmarks.paper.plan import Job, read_plan
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import dask_pool, local_pool, sweep

PATIENCE = 120  # seconds until there must be a checkpoint


def one_thread() -> ThreadPoolExecutor:
    """Let the jobs of a sweep run in this process."""
    return ThreadPoolExecutor(1)


def wait_for_a_checkpoint(out: Path, since: int = 0) -> None:
    """Return as soon as one was written after this time, in nanoseconds."""
    deadline = time.monotonic() + PATIENCE
    while not any(path.stat().st_mtime_ns > since for path in out.glob("running/*/checkpoint.pt")):
        assert time.monotonic() < deadline, "nothing was trained"
        time.sleep(0.01)


@pytest.mark.promise("P9")
def test_a_killed_sweep_goes_on(tmp_path: Path, archive: Path, plan: Path, campaign: Any) -> None:
    """By a signal that stops all processes, as a cluster sends it, or without any warning."""
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 30"))
    opened = open_archive(archive)
    jobs, out = read_plan(plan, opened), tmp_path / "out"
    words = [sys.executable, "-m", "benchmarks.paper", *command(plan, archive, out)]
    for stop in (signal.SIGKILL, *(signal.SIGTERM, signal.SIGKILL) * campaign(0, 5)):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        wait_for_a_checkpoint(out, time.time_ns())
        process.send_signal(stop)  # its workers end by themselves
        assert process.wait(PATIENCE) == (130 if stop == signal.SIGTERM else -stop)
        assert len(facts(out)) < 5
    with (out / ROWS_NAME).open("a") as file:
        file.write('{"run": "small", "da')  # as a kill while writing leaves it
    assert sweep(jobs, opened, out, one_thread) == {}
    assert sweep(jobs, opened, tmp_path / "calm", one_thread) == {}
    assert facts(out) == facts(tmp_path / "calm")


def test_dask(tmp_path: Path, archive: Path, plan: Path, campaign: Any) -> None:
    """In a campaign one of two workers is killed; else there is one, which is a thread."""
    distributed = pytest.importorskip("distributed")
    kills = campaign(0, 1)
    settings = {"processes": kills > 0, "threads_per_worker": 1, "dashboard_address": None}
    opened, out = open_archive(archive), tmp_path / "out"
    jobs = read_plan(plan, opened)[-1:]

    def kill() -> None:
        wait_for_a_checkpoint(out)
        known = cluster.scheduler.workers
        busy = [w for w in cluster.workers.values() if known[w.worker_address].processing]
        os.kill(busy[0].pid, signal.SIGKILL)

    with distributed.LocalCluster(n_workers=1 + kills, **settings) as cluster:
        threads = [threading.Thread(target=kill) for _ in range(kills)]
        for thread in threads:
            thread.start()
        assert sweep(jobs, opened, out, dask_pool(cluster.scheduler_address)) == {}
        for thread in threads:
            thread.join()
    assert sweep(jobs, opened, tmp_path / "calm", one_thread) == {}
    assert facts(out) == facts(tmp_path / "calm")


def test_a_job_that_kills_its_process_is_given_up(
    tmp_path: Path, archive: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "perform", deadly)
    opened = open_archive(archive)
    failed = sweep(read_plan(plan, opened), opened, tmp_path / "out", local_pool(1))
    ((job, said),) = failed.items()
    assert job == "masked, Short, seed 0"
    assert said.startswith("its process or another was killed 3 times; with fewer --workers")
    assert len(read_rows(tmp_path / "out" / ROWS_NAME)) == 4


def deadly(job: Job, source: str, folder: Path, device: str) -> Any:
    if job.run == "masked":
        os._exit(9)
    return perform(job, source, folder, device)
