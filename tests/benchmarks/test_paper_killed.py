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
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from small_plan import PLAN, ROOT, command, facts, write_archive

from benchmarks.paper import sweep as sweeping
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import Archive, open_archive
from benchmarks.paper.job import perform
from benchmarks.paper.plan import Job, read_plan
from benchmarks.paper.rows import LOCK_NAME, ROWS_NAME, read_rows
from benchmarks.paper.sweep import dask_pool, local_pool, sweep

PATIENCE = 120  # seconds until there must be a checkpoint


class Undisturbed(NamedTuple):
    """A sweep that nobody killed."""

    plan: Path
    archive: Path
    facts: list[dict[str, Any]]
    seconds: float

    def jobs(self) -> tuple[list[Job], Archive]:
        opened = open_archive(self.archive)
        return read_plan(self.plan, opened), opened


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    plan, archive, out = folder / "plan.toml", folder / "archive", folder / "out"
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 60"))
    write_archive(archive)
    begin = time.monotonic()
    assert main(command(plan, archive, out)) == 0
    return Undisturbed(plan, archive, facts(out), time.monotonic() - begin)


@pytest.mark.promise("P9")
def test_killed_at_random_instants(tmp_path: Path, undisturbed: Undisturbed, campaign: Any) -> None:
    words = command(undisturbed.plan, undisturbed.archive, tmp_path)
    chance = random.Random(0)
    for kill in range(campaign(2, 10)):
        (tmp_path / LOCK_NAME).unlink(missing_ok=True)  # which a kill leaves
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.paper", *words], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        if kill == 0:  # for certain while it trains
            wait_for_a_checkpoint(tmp_path)
        else:  # what it imports takes longer than what it trains
            while not (tmp_path / LOCK_NAME).exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5) * undisturbed.seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if kill == 0:
            assert list(tmp_path.glob("running/*/checkpoint.pt"))
            assert len(facts(tmp_path)) < 5
    with (tmp_path / ROWS_NAME).open("a") as file:
        file.write('{"run": "small", "da')  # as a kill while writing leaves it
    assert main(words) == 0
    assert facts(tmp_path) == undisturbed.facts


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_from_outside(
    stop: signal.Signals, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """By Ctrl-C or a cluster, which reach all processes: what it says, and that it goes on."""
    for attempt in range(3):  # on a busy machine all may be trained before the signal comes
        out = tmp_path / str(attempt)
        words = command(undisturbed.plan, undisturbed.archive, out)
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.paper", *words],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        wait_for_a_checkpoint(out)
        os.killpg(process.pid, stop)
        _, said = process.communicate(timeout=PATIENCE)
        if process.returncode != 0:
            break
    assert (process.returncode, said) == (130, "stopped; the same command goes on\n")
    assert main(words) == 0
    assert facts(out) == undisturbed.facts


def test_a_killed_worker_costs_nothing(
    tmp_path: Path, undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    killing = Killer(tmp_path)
    assert sweep(*undisturbed.jobs(), tmp_path, killing.pool) == {}
    assert killing.pids
    assert facts(tmp_path) == undisturbed.facts
    assert "stopped, as a process was killed; it goes on" in capsys.readouterr().out


class Killer:
    """A local pool, the first worker of which is killed while its job runs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.pids: list[int] = []

    @contextmanager
    def pool(self) -> Iterator[Executor]:
        with local_pool(2)() as executor:
            if not self.pids:
                threading.Thread(target=self.kill, args=(executor,)).start()
            yield executor

    def kill(self, executor: Any) -> None:
        wait_for_a_checkpoint(self.out)
        self.pids.append(min(executor._processes))
        os.kill(self.pids[0], signal.SIGKILL)


def wait_for_a_checkpoint(out: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not list(out.glob("running/*/checkpoint.pt")):
        assert time.monotonic() < deadline, "nothing was trained"
        time.sleep(0.01)


def test_dask_with_a_killed_worker(tmp_path: Path, undisturbed: Undisturbed) -> None:
    distributed = pytest.importorskip("distributed")
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    killed = []
    with distributed.LocalCluster(**settings) as cluster:

        def kill() -> None:
            wait_for_a_checkpoint(tmp_path)
            known = cluster.scheduler.workers
            busy = [w for w in cluster.workers.values() if known[w.worker_address].processing]
            killed.append(busy[0].pid)
            os.kill(killed[0], signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        failed = sweep(*undisturbed.jobs(), tmp_path, dask_pool(cluster.scheduler_address))
        killing.join()
    assert killed
    assert failed == {}
    assert facts(tmp_path) == undisturbed.facts


def test_an_address_without_a_scheduler(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    words = ["run", str(plan), "--archive", str(archive), "--out", str(tmp_path)]
    assert main([*words, "--scheduler", "nonsense"]) == 2
    assert "such as tcp://HOST:8786, but 'nonsense' cannot be used" in capsys.readouterr().err


def test_a_scheduler_that_was_started_elsewhere(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot import the jobs; started as the documentation says, it does them."""
    pytest.importorskip("distributed")
    words = ["run", str(plan), "--archive", str(archive), "--out", str(tmp_path / "out")]
    with dask("scheduler", "--port", "0", "--no-dashboard", folder=tmp_path) as address:
        assert main([*words, "--scheduler", address]) == 2
        said = capsys.readouterr().err
        assert "cannot import this sweep (No module named 'benchmarks')" in said
        assert "start both in a copy of the repository, by `python -m dask scheduler`" in said
    options = ["--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    with dask("scheduler", "--port", "0", "--no-dashboard", folder=ROOT) as address:
        with dask_pool(address)():
            assert "has no worker yet: the jobs wait for one" in capsys.readouterr().out
        with dask("worker", address, *options, "--local-directory", str(tmp_path), folder=ROOT):
            assert main([*words, "--scheduler", address]) == 0


@contextmanager
def dask(*arguments: str, folder: Path) -> Iterator[str]:
    """A process of Dask's, as soon as it says its own address or its scheduler's."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments], cwd=folder, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        yield next(
            word for line in process.stderr for word in line.split() if word.startswith("tcp://")
        )
    finally:
        process.kill()
        process.communicate()


def test_a_scheduler_that_goes_away(tmp_path: Path, archive: Path, plan: Path) -> None:
    """Dask cancels the jobs of a client that has lost its scheduler."""

    class Gone(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    opened = open_archive(archive)
    with pytest.raises(ValueError, match=r"scheduler is gone, .* the same command goes on"):
        sweep(read_plan(plan, opened), opened, tmp_path / "out", Gone)


def test_a_job_that_kills_its_process_is_given_up(
    tmp_path: Path, archive: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "perform", deadly)
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)[:1]
    failed = sweep(jobs, opened, tmp_path / "out", local_pool(1))
    assert list(failed.values()) == ["its process was killed 4 times"]
    assert read_rows(tmp_path / "out" / ROWS_NAME) == []


def deadly(*_: Any) -> None:
    time.sleep(1.5)  # longer than the sweep takes to see it running
    os._exit(9)


def test_neighbours_of_a_killer_are_innocent(
    tmp_path: Path, archive: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "perform", killer)
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    failed = sweep(jobs, opened, tmp_path / "out", local_pool(2))
    assert list(failed) == ["masked, Short, seed 0"]
    assert len(read_rows(tmp_path / "out" / ROWS_NAME)) == 4


def killer(job: Job, source: str, folder: Path, device: str) -> Any:
    if job.run == "masked":
        time.sleep(1.2)
        os._exit(9)
    return perform(job, source, folder, device)


@pytest.mark.parametrize("result_first", [True, False])
def test_what_ended_before_the_pool_broke_is_kept(
    tmp_path: Path, archive: Path, plan: Path, result_first: bool
) -> None:
    """A job may end between two looks, of which the second finds the pool broken."""
    opened = open_archive(archive)
    first, second, third = read_plan(plan, opened)[:3]
    futures = [Future[dict[str, Any]]() for _ in range(3)]
    futures[0].set_result({"job": 1})
    waiting = list(futures)
    executor = SimpleNamespace(submit=lambda *_: waiting.pop(0))
    for future in futures[1:]:
        future.set_running_or_notify_cancel()

    def update(_: Any) -> None:
        if not futures[1].done():
            futures[1 if result_first else 2].set_result({"job": 2})
            futures[2 if result_first else 1].set_exception(BrokenProcessPool("killed"))

    ended: list[Any] = []
    killed = sweeping._perform_all(
        {job.key: job for job in (first, second, third)}, opened, tmp_path, "cpu",
        cast("Executor", executor), lambda job, row, error: ended.append((job, row)), update,
    )  # fmt: skip
    kept, lost = (second, third) if result_first else (third, second)
    assert ended == [(first, {"job": 1}), (kept, {"job": 2})]
    assert killed == [lost.key]
