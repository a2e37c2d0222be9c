"""Sweeps of `make paper` that are killed, and their workers: the same rows as undisturbed ones."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_plan import PLAN, ROOT, command, facts, write_archive

from benchmarks.paper import sweep as sweeping
from benchmarks.paper.archives import Archive, open_archive
from benchmarks.paper.job import perform
from benchmarks.paper.plan import Job, read_plan
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import dask_pool, local_pool, sweep

PATIENCE = 120  # seconds until there must be a checkpoint


class Undisturbed(NamedTuple):
    """A sweep that nobody killed."""

    words: list[str]
    jobs: tuple[list[Job], Archive]
    facts: list[dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    plan, archive, out = folder / "plan.toml", folder / "archive", folder / "out"
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 60"))
    write_archive(archive)
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    assert sweep(jobs, opened, out, local_pool(2)) == {}
    return Undisturbed(command(plan, archive, out)[:-4], (jobs, opened), facts(out))


def wait_for_a_checkpoint(out: Path, since: int = 0) -> None:
    """Return as soon as one was written after this time, in nanoseconds."""
    deadline = time.monotonic() + PATIENCE
    while not any(path.stat().st_mtime_ns > since for path in out.glob("running/*/checkpoint.pt")):
        assert time.monotonic() < deadline, "nothing was trained"
        time.sleep(0.01)


@pytest.mark.promise("P9")
def test_killed_at_random_instants(tmp_path: Path, undisturbed: Undisturbed, campaign: Any) -> None:
    """By a signal that stops all processes, as a cluster sends it, and without any warning."""
    words = [*undisturbed.words, "--out", str(tmp_path), "--workers", "1"]
    chance = random.Random(0)
    for stop in (signal.SIGTERM, *[signal.SIGKILL] * campaign(1, 10)):
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.paper", *words],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        wait_for_a_checkpoint(tmp_path, time.time_ns())
        time.sleep(chance.uniform(0, 0.1))
        if stop == signal.SIGTERM:
            os.killpg(process.pid, stop)
        else:
            process.kill()  # its workers end by themselves
        _, said = process.communicate(timeout=PATIENCE)
        if stop == signal.SIGTERM:
            assert process.returncode == 130
            assert said.endswith("stopped; the same command goes on\n")
        assert len(facts(tmp_path)) < 5
    with (tmp_path / ROWS_NAME).open("a") as file:
        file.write('{"run": "small", "da')  # as a kill while writing leaves it
    assert sweep(*undisturbed.jobs, tmp_path, local_pool(2)) == {}
    assert facts(tmp_path) == undisturbed.facts


def test_a_killed_worker_costs_nothing(
    tmp_path: Path, undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []

    @contextmanager
    def pool() -> Iterator[Executor]:
        with local_pool(2)() as executor:
            if not killed:
                threading.Thread(target=kill, args=(executor,)).start()
            yield executor

    def kill(executor: Any) -> None:
        wait_for_a_checkpoint(tmp_path)
        killed.append(min(executor._processes))
        os.kill(killed[0], signal.SIGKILL)

    assert sweep(*undisturbed.jobs, tmp_path, pool) == {}
    assert killed
    assert facts(tmp_path) == undisturbed.facts
    assert "stopped, as a process was killed; it goes on" in capsys.readouterr().out


def test_dask(tmp_path: Path, undisturbed: Undisturbed, campaign: Any) -> None:
    """In a campaign one of two workers is killed; else there is one, which is a thread."""
    distributed = pytest.importorskip("distributed")
    kills = campaign(0, 1)
    settings = {"processes": kills > 0, "threads_per_worker": 1, "dashboard_address": None}

    def kill() -> None:
        wait_for_a_checkpoint(tmp_path)
        known = cluster.scheduler.workers
        busy = [w for w in cluster.workers.values() if known[w.worker_address].processing]
        os.kill(busy[0].pid, signal.SIGKILL)

    with distributed.LocalCluster(n_workers=1 + kills, **settings) as cluster:
        threads = [threading.Thread(target=kill) for _ in range(kills)]
        for thread in threads:
            thread.start()
        jobs, opened = undisturbed.jobs
        assert sweep(jobs[-1:], opened, tmp_path, dask_pool(cluster.scheduler_address)) == {}
        for thread in threads:
            thread.join()
    assert facts(tmp_path) == undisturbed.facts[:1], "which is that of the last job"


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
