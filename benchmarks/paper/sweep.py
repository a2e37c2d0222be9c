"""All jobs of a plan: each once, however often the sweep is stopped, here or on a Dask cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.paper.archives import Archive
from benchmarks.paper.job import PROGRESS_NAME, TRAINING, first_model, locked, perform
from benchmarks.paper.networks import multiply_adds
from benchmarks.paper.plan import CONTENT, DEFAULTS, Job

ROWS_NAME, RUNNING_NAME, LOCK_NAME = "rows.jsonl", "running", "lock"
ATTEMPTS = 3  # of a job whose process is killed
Pool = Callable[[], AbstractContextManager[Executor]]


def sweep(jobs: Sequence[Job], archive: Archive, out: Path, pool: Pool) -> dict[str, str]:
    """Perform the jobs that ``out/rows.jsonl`` does not hold; append a row for each.

    Killed at any instant, the same call goes on: finished jobs stay, the others continue from
    their last checkpoint in ``out/running``.

    Args:
        jobs: the plan's.
        archive: where their data sets are.
        out: a folder, made if need be.
        pool: opens the executor that runs ``perform``.

    Returns:
        What went wrong, by job; these are tried again by the next call.

    Raises:
        ValueError: another sweep runs in ``out``, or its rows are of another plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    busy = f"another sweep is running in {out}; wait for it, or choose another folder"
    with locked(out / LOCK_NAME, busy):
        rows = _Rows(out / ROWS_NAME)
        for job in jobs:
            rows.check(job)
            if job.key in rows.found and not job.keep:
                shutil.rmtree(_folder(out, job), ignore_errors=True)
        costs = _costs(jobs, archive)
        todo = {job.key: job for job in jobs if job.key not in rows.found}
        failed: dict[str, str] = {}
        with _Progress(jobs, costs, todo, out) as progress:

            def finish(job: Job, row: Mapping[str, Any]) -> None:
                rows.append(row)
                if not job.keep:
                    shutil.rmtree(_folder(out, job), ignore_errors=True)
                progress.finished(job, row)

            killed: Counter[tuple[str, str, int]] = Counter()
            while todo:
                with pool() as executor:
                    running = _perform_all(todo, archive, out, executor, finish, failed, progress)
                killed.update(running)  # the pool broke under them
                for key in [key for key in todo if killed[key] >= ATTEMPTS]:
                    failed[str(todo.pop(key))] = f"its process was killed {ATTEMPTS} times"
        return failed


def _perform_all(
    todo: dict[tuple[str, str, int], Job],
    archive: Archive,
    out: Path,
    executor: Executor,
    finish: Callable[[Job, Mapping[str, Any]], None],
    failed: dict[str, str],
    progress: _Progress,
) -> list[tuple[str, str, int]]:
    """Perform jobs, and take those that end out of ``todo``.

    Returns those that were running when the pool broke; else an empty list.
    """
    futures: dict[Future[dict[str, Any]], Job] = {
        executor.submit(perform, job, archive.sources[job.dataset], _folder(out, job)): job
        for job in todo.values()
    }
    running: list[tuple[str, str, int]] = []
    while futures:
        done, _ = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
        for future in done:
            job, error = futures.pop(future), future.exception()
            if isinstance(error, BrokenExecutor):
                return running
            del todo[job.key]
            if error is None:
                finish(job, future.result())
            else:  # whatever training raises is this job's alone
                failed[str(job)] = f"{type(error).__name__}: {error}"
                progress.failed(job, failed[str(job)])
        running = [job.key for future, job in futures.items() if future.running()]
        progress.update()
    return []


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of finished jobs, also while the sweep runs.

    Raises:
        ValueError: a line that is no row.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(True), 1):
        if not line.endswith("\n"):  # being written, or torn by a kill
            break
        try:
            row = json.loads(line)
            row["run"], row["dataset"], row["seed"], row["options"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is not a row of a sweep: {error}") from error
        found.append(row)
    return found


class _Rows:
    """The results file: one JSON line a job, written whole or dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = read_rows(path)
        self.found = {(row["run"], row["dataset"], row["seed"]): row for row in rows}
        if len(self.found) < len(rows):
            raise ValueError(f"{path} holds a job twice; remove one of its lines")
        if path.exists():  # a torn last line goes
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def check(self, job: Job) -> None:
        """Refuse a row of the same name and other options: it would be taken for this job's."""
        row = self.found.get(job.key)
        if row is None:
            return
        for name in CONTENT:
            there, here = row["options"].get(name, DEFAULTS[name]), job.options[name]
            if there != here:
                raise ValueError(
                    f"{self.path} has {job} with {name} {there!r}, but the plan says {here!r}; "
                    "give the run another name, or choose another folder"
                )

    def append(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.found[row["run"], row["dataset"], row["seed"]] = dict(row)


def _folder(out: Path, job: Job) -> Path:
    name = "-".join(map(str, job.key))
    return out / RUNNING_NAME / "".join(c if c.isalnum() or c in "-_=.," else "_" for c in name)


def _costs(jobs: Sequence[Job], archive: Archive) -> dict[tuple[str, str, int], int]:
    """Multiply-adds of whole jobs: the measure of their time before they have run."""
    counted: dict[str, int] = {}
    costs = {}
    for job in jobs:
        shape, options = archive.shapes[job.dataset], job.options
        alike = repr((job.dataset, options["model"], options["weights"], options["network"]))
        if alike not in counted:
            try:
                counted[alike] = multiply_adds(first_model(job, shape), shape)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"the network of {job} cannot be built: {error}") from error
        passes = TRAINING * shape.n_train * job.recipe().epochs + shape.n_test
        costs[job.key] = counted[alike] * passes
    return costs


class _Progress:
    """A bar over all multiply-adds, and a line for each job that ends."""

    def __init__(
        self,
        jobs: Sequence[Job],
        costs: Mapping[tuple[str, str, int], int],
        todo: Mapping[tuple[str, str, int], Job],
        out: Path,
    ) -> None:
        self.costs, self.todo, self.out = costs, todo, out
        self.total = sum(costs.values())
        self.ended, self.jobs = len(jobs) - len(todo), len(jobs)
        self.begin, self.before = time.monotonic(), self._done()

    def __enter__(self) -> _Progress:
        self.bar = tqdm(
            total=self.total, initial=self.before, unit="MAC", unit_scale=True, smoothing=0.05,
            disable=not sys.stderr.isatty(), dynamic_ncols=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def _share(self, job: Job) -> float:
        try:
            return float((_folder(self.out, job) / PROGRESS_NAME).read_text())
        except (OSError, ValueError):
            return 0.0

    def _done(self) -> int:
        left = sum((1 - self._share(job)) * self.costs[key] for key, job in self.todo.items())
        return self.total - int(left)

    def update(self) -> None:
        shares = [(self._share(job), job) for job in self.todo.values()]
        shown = [f"{job.dataset} {share:.0%}" for share, job in shares if 0 < share < 1]
        self.bar.set_postfix_str(", ".join(shown[:4]), refresh=False)
        self.bar.update(self._done() - self.bar.n)

    def finished(self, job: Job, row: Mapping[str, Any]) -> None:
        self._line(
            f"{job}: accuracy {row['accuracy']:.4f}, {row['train_seconds']:.0f} s of training"
        )

    def failed(self, job: Job, message: str) -> None:
        self._line(f"{job}: FAILED, {message}")

    def _line(self, text: str) -> None:
        self.ended += 1
        done = self._done()
        left = ""
        if done > self.before and done < self.total:
            seconds = (time.monotonic() - self.begin) * (self.total - done) / (done - self.before)
            left = f"; about {tqdm.format_interval(seconds)} left"
        self.bar.write(f"{self.ended} of {self.jobs}: {text}{left}", file=sys.stdout)
        sys.stdout.flush()


def local_pool(workers: int) -> Pool:
    """Processes of this machine, which end with the one that started them."""

    @contextmanager
    def opened() -> Iterator[Executor]:
        context = multiprocessing.get_context("spawn")
        watched, held = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_end_with, initargs=(watched,)
        )
        try:
            yield executor
        except BaseException:
            held.close()  # the workers' jobs go on from their checkpoints next time
            raise
        finally:
            executor.shutdown(cancel_futures=True)
            held.close()

    return opened


def _end_with(watched: Connection) -> None:
    """End this process as soon as the other end of the pipe is closed, by whatever cause."""

    def watch() -> None:
        watched.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def dask_pool(address: str) -> Pool:
    """The workers of a Dask cluster; they see the archive and ``out`` at the same paths.

    Dask itself repeats the jobs of workers that are gone.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError(
            f"--scheduler needs Dask, but {error}; install it with `pip install distributed`"
        ) from error

    @contextmanager
    def opened() -> Iterator[Executor]:
        with Client(address) as client, client.get_executor(pure=False) as executor:
            yield executor

    return opened
