"""All jobs of a plan: each once, however often the sweep is stopped, here or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.lines import add_line
from benchmarks.paper.archives import Archive
from benchmarks.paper.job import perform
from benchmarks.paper.networks import ROCKETS
from benchmarks.paper.plan import Job
from benchmarks.paper.pruned_filters import trainings
from benchmarks.paper.rows import LOCK_NAME, ROWS_NAME, Key, done_jobs
from benchmarks.paper.training import PROGRESS_NAME
from sparseconv.core.files import locked

RUNNING_NAME = "running"
ATTEMPTS = 3  # of a job that runs when a process is killed
LOG_SECONDS = 300  # between two lines where no terminal shows a bar
Pool = Callable[[], AbstractContextManager[Executor]]


def sweep(
    jobs: Sequence[Job], archive: Archive, out: Path, pool: Pool, device: str = "cpu"
) -> dict[str, str]:
    """Perform the jobs that ``out/rows.jsonl`` does not hold; append a row for each.

    Killed at any instant, the same call goes on: finished jobs stay, the others continue from
    their last checkpoint in ``out/running``.

    Args:
        jobs: the plan's.
        archive: where their data sets are.
        out: a folder, made if need be.
        pool: opens the executor that runs ``perform``.
        device: ``"cpu"``, or ``"cuda"`` for the GPU of whoever runs a job.

    Returns:
        What went wrong, by job; these are tried again by the next call.

    Raises:
        ValueError: another sweep runs in ``out``, or its rows are of another plan; a job that only
            a CPU can run.
    """
    out = out.resolve()  # workers may be elsewhere
    out.mkdir(parents=True, exist_ok=True)
    busy = f"another sweep is running in {out}; wait for it, or choose another folder"
    with locked(out / LOCK_NAME, busy):
        done = done_jobs(out / ROWS_NAME, jobs, archive)
        todo = {job.key: job for job in jobs if job.key not in done}
        for job in jobs:
            if job.key in done:  # a sweep was killed before it removed the folder
                shutil.rmtree(_folder(out, job), ignore_errors=True)
        for job in todo.values():
            if device != "cpu" and (job.options["model"] in ROCKETS or job.options["pruning"]):
                raise ValueError(f"{job} cannot run on a GPU, only networks can; take --device cpu")
        failed: dict[str, str] = {}
        with _Progress(todo, archive, out) as progress:

            def ended(job: Job, row: dict[str, Any] | None, error: str = "") -> None:
                del todo[job.key]
                if row is None:
                    failed[str(job)] = error
                    said = f"FAILED, {error}"
                else:
                    add_line(out / ROWS_NAME, {**row, "data": archive.checksums[job.dataset]})
                    shutil.rmtree(_folder(out, job), ignore_errors=True)
                    said = f"accuracy {row['accuracy']:.4f}"
                progress.say(f"{len(jobs) - len(todo)} of {len(jobs)}: {job}: {said}")

            killed: Counter[Key] = Counter()
            while todo:
                with pool() as executor:
                    running = _perform_all(
                        todo, archive, out, device, executor, ended, progress.update
                    )
                for key in running:
                    killed[key] += 1
                    progress.say(f"{todo[key]}: stopped, as a process was killed; it goes on from "
                                 "its last checkpoint")  # fmt: skip
                    if killed[key] == ATTEMPTS:
                        ended(todo[key], None, f"its process or another was killed {ATTEMPTS} times"
                              "; with fewer --workers there is more memory for each")  # fmt: skip
        return failed


def _perform_all(
    jobs: Mapping[Key, Job],
    archive: Archive,
    out: Path,
    device: str,
    executor: Executor,
    ended: Callable[[Job, dict[str, Any] | None, str], None],
    update: Callable[[Sequence[Key]], None],
) -> list[Key]:
    """Perform jobs; ``ended(job, row, error)`` for each, with a row or an error.

    Returns those that were running when a process was killed; else an empty list.
    """
    futures: dict[Future[dict[str, Any]], Job] = {
        executor.submit(perform, job, archive.sources[job.dataset], _folder(out, job), device): job
        for job in jobs.values()
    }
    running: list[Key] = []
    while futures:
        done, _ = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
        broken = False
        for future in done:
            try:
                row = future.result()
            except (BrokenExecutor, CancelledError):  # Dask cancels where its scheduler is gone
                broken = True
                continue
            except Exception as error:  # whatever training raises is this job's alone
                ended(futures.pop(future), None, f"{type(error).__name__}: {error}")
            else:
                ended(futures.pop(future), row, "")
        left = [job.key for job in futures.values()]
        if broken:
            return [key for key in running if key in left] or left[:1]
        running = [job.key for future, job in futures.items() if future.running()]
        update(running)
    return []


def _folder(out: Path, job: Job) -> Path:
    name = "".join(c if c.isalnum() or c in "-_=.," else "_" for c in "-".join(map(str, job.key)))
    # Other names may look alike once they are a folder's.
    return out / RUNNING_NAME / f"{name[:60]}-{sha256(repr(job.key).encode()).hexdigest()[:10]}"


class _Progress:
    """A bar over the time points of all jobs' trainings; without a terminal a line now and then."""

    def __init__(self, todo: Mapping[Key, Job], archive: Archive, out: Path) -> None:
        self.todo, self.out = todo, out
        self.points = {key: _points(job, archive) for key, job in todo.items()}
        self.total = sum(self.points.values())

    def __enter__(self) -> _Progress:
        self.bar = tqdm(
            total=self.total, initial=self._done(), unit="points", unit_scale=True, smoothing=0.05,
            mininterval=0.1 if sys.stderr.isatty() else LOG_SECONDS, miniters=1, dynamic_ncols=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def _share(self, job: Job) -> float:
        path = _folder(self.out, job) / PROGRESS_NAME
        return float(path.read_text()) if path.exists() else 0.0

    def _done(self) -> int:
        left = sum((1 - self._share(job)) * self.points[key] for key, job in self.todo.items())
        return self.total - int(left)

    def update(self, running: Sequence[Key]) -> None:
        """Show how far all is, and these jobs, which run or will be next."""
        jobs = [self.todo[key] for key in running]
        shown = [f"{job.dataset} {self._share(job):.0%}" for job in jobs[:4]]
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update(self._done() - self.bar.n)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()


def _points(job: Job, archive: Archive) -> int:
    """Count the time points that a job trains on: the measure of its time before it has run."""
    epochs = job.recipe().epochs * sum(trainings(job.options["pruning"]))
    return int(archive.shapes[job.dataset].train_points * epochs * job.options["members"])


def local_pool(workers: int) -> Pool:
    """Make a pool of processes of this machine, which end with the one that started them."""

    @contextmanager
    def opened() -> Iterator[Executor]:
        # Forks of one process that has imported everything, and has no threads yet.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.paper.job", "torch._dynamo"])
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that holds it

    def watch() -> None:
        watched.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def dask_pool(address: str) -> Pool:
    """Make a pool of a Dask cluster, whose workers see the archive and ``out`` at the same paths.

    Dask itself repeats the jobs of workers that are gone.
    """

    @contextmanager
    def opened() -> Iterator[Executor]:
        try:
            from distributed import Client

            client = Client(address)
        except ImportError as error:
            raise ValueError(
                f"--scheduler needs Dask, but {error}; install it with `pip install distributed`"
            ) from error
        except (ValueError, OSError) as error:
            raise ValueError(
                f"--scheduler must be the address of a Dask scheduler that runs, such as "
                f"tcp://HOST:8786, but {address!r} cannot be used: {error}"
            ) from error
        with client, client.get_executor(pure=False) as executor:
            yield executor

    return opened
