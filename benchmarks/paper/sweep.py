"""All jobs of a plan: each once, however often the sweep is stopped, here or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.paper.archives import Archive, read
from benchmarks.paper.criteria import NO_DATA
from benchmarks.paper.job import perform
from benchmarks.paper.networks import ROCKETS, multiply_adds
from benchmarks.paper.plan import Job, n_members
from benchmarks.paper.pruned_filters import smaller, trainings
from benchmarks.paper.rocket import multiply_adds as rocket_multiply_adds
from benchmarks.paper.rows import LOCK_NAME, ROWS_NAME, Key, Rows
from benchmarks.paper.training import PROGRESS_NAME, TRAINING, first_network, is_kept
from sparseconv.core.folders import locked
from sparseconv.training.run_folder import POCKET

RUNNING_NAME = "running"
ATTEMPTS = 3  # of a job whose process is killed
SILENCE = 300  # seconds, after which a line is due where no bar shows what runs
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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out must name a folder, but {out} cannot be one: {error}") from error
    busy = f"another sweep is running in {out}; wait for it, or choose another folder"
    with locked(out / LOCK_NAME, busy):
        rows = Rows(out / ROWS_NAME)
        rows.check(jobs, archive)
        for job in jobs:
            folder = _folder(out, job)
            if job.key in rows.found and not job.keep and not is_kept(folder):
                shutil.rmtree(folder, ignore_errors=True)
        costs = _costs(jobs, archive)
        todo = {job.key: job for job in jobs if job.key not in rows.found}
        if device != "cpu":
            _check_gpu(todo.values())
        failed: dict[str, str] = {}
        with _Progress(jobs, costs, todo, out) as progress:

            def ended(job: Job, row: dict[str, Any] | None, error: str) -> None:
                del todo[job.key]
                if row is not None:
                    try:
                        rows.append({**row, "data": archive.checksums[job.dataset]})
                    except ValueError as refused:
                        row, error = None, f"its row is of no use: {refused}"
                if row is None:
                    failed[str(job)] = error
                    progress.line(f"{job}: FAILED, {error}")
                    return
                if not job.keep:
                    shutil.rmtree(_folder(out, job), ignore_errors=True)
                seconds = row["train_seconds"]
                spent = "" if seconds is None else f", {seconds:.0f} s of training"
                progress.line(f"{job}: accuracy {row['accuracy']:.4f}{spent}")

            for job in jobs:
                if job.keep and job.key in rows.found and not _folder(out, job).exists():
                    progress.say(
                        f"{job}: its folder was not kept when it was trained; for one, remove its "
                        f"line from {ROWS_NAME}"
                    )
            killed: Counter[Key] = Counter()
            while todo:
                # A pool breaks under all jobs that are running, and most of them are innocent: the
                # suspects come last, one by one.
                suspects = [key for key in todo if killed[key] >= ATTEMPTS]
                now = [key for key in todo if key not in suspects] or suspects[:1]
                with pool() as executor:
                    running = _perform_all(
                        {key: todo[key] for key in now}, archive, out, device, executor, ended,
                        progress.update,
                    )  # fmt: skip
                killed.update(running)
                for key in running:
                    progress.say(
                        f"{todo[key]}: stopped, as a process was killed; it goes on from its "
                        "last checkpoint"
                    )
                if running and now == suspects[:1]:
                    error = f"its process was killed {killed[now[0]]} times"
                    ended(todo[now[0]], None, error)
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

    Returns those that were running when the pool broke; else an empty list.
    """
    futures: dict[Future[dict[str, Any]], Job] = {
        executor.submit(perform, job, archive.sources[job.dataset], _folder(out, job), device): job
        for job in jobs.values()
    }
    running: list[Key] = []
    while futures:
        done, _ = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=_broken):  # others may have ended before the pool broke
            job = futures.pop(future)
            if future.cancelled():
                raise ValueError(
                    "the Dask scheduler is gone, or has cancelled the jobs; the same command goes "
                    "on with another one, from the last checkpoints"
                )
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                unfinished = {job.key, *(other.key for other in futures.values())}
                return [key for key in running if key in unfinished] or [job.key]
            if error is None:
                ended(job, future.result(), "")
            else:  # whatever training raises is this job's alone
                ended(job, None, f"{type(error).__name__}: {error}")
        running = [job.key for future, job in futures.items() if future.running()]
        update(running)
    return []


def _check_gpu(jobs: Iterable[Job]) -> None:
    """Refuse what would run on the CPU after all."""
    for job in jobs:
        if job.options["model"] in ROCKETS or job.options["pruning"]:
            raise ValueError(f"{job} cannot run on a GPU, only networks can; take --device cpu")


def _broken(future: Future[Any]) -> bool:
    return not future.cancelled() and isinstance(future.exception(), BrokenExecutor)


def _folder(out: Path, job: Job) -> Path:
    name = "".join(c if c.isalnum() or c in "-_=.," else "_" for c in "-".join(map(str, job.key)))
    # Other names may look alike once they are a folder's.
    return out / RUNNING_NAME / f"{name[:60]}-{sha256(repr(job.key).encode()).hexdigest()[:10]}"


def _costs(jobs: Sequence[Job], archive: Archive) -> dict[Key, int]:
    """Multiply-adds of whole jobs: the measure of their time before they have run.

    Their networks are built for it, and refused here if they cannot be: ValueError.
    """
    counted: dict[str, int] = {}
    costs = {}
    for job in jobs:
        shape, options = archive.shapes[job.dataset], job.options
        if options["model"] in ROCKETS:
            each = rocket_multiply_adds(
                options["model"], options["network"].get("n_kernels", POCKET["n_kernels"]),
                shape.n_channels, shape.n_timepoints,
            )  # fmt: skip
            costs[job.key] = each * (shape.n_train + shape.n_test)
            continue
        alike = repr(
            (
                job.dataset,
                options["model"],
                options["weights"],
                options["network"],
                options["split"],
                options["pruning"],
            )
        )
        if alike not in counted:
            try:
                model = first_network(job.options, job.seed, shape)
                counted[alike] = multiply_adds(model, shape)
                if options["split"] != "own":
                    read(archive.sources[job.dataset], split=options["split"])
                with torch.no_grad():  # a backend that cannot run here says so
                    model.eval()(torch.zeros(1, shape.n_channels, min(shape.n_timepoints, 32)))
                for variant in options["pruning"]:
                    if "factorize" in variant:  # not each network has layers that are alike
                        smaller(variant, model, NO_DATA, job.seed)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{job} cannot be run: {error}") from error
        epochs = job.recipe().epochs * sum(trainings(options["pruning"]))
        passes = int(TRAINING * shape.n_train * epochs) + shape.n_test
        costs[job.key] = counted[alike] * passes * n_members(options)
    return costs


class _Progress:
    """A bar over all multiply-adds, and a line for each job that ends.

    Without a terminal there is no bar: a line instead, whenever nothing was said for a while.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        costs: Mapping[Key, int],
        todo: Mapping[Key, Job],
        out: Path,
    ) -> None:
        self.costs, self.todo, self.out = costs, todo, out
        self.total = sum(costs.values())
        self.ended, self.jobs = len(jobs) - len(todo), len(jobs)
        self.begin, self.before = time.monotonic(), self._done()
        self.said = self.begin

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
            share = float((_folder(self.out, job) / PROGRESS_NAME).read_text())
        except (OSError, ValueError):
            return 0.0
        return share if 0 <= share <= 1 else 0.0

    def _done(self) -> int:
        left = sum((1 - self._share(job)) * self.costs[key] for key, job in self.todo.items())
        return self.total - int(left)

    def update(self, running: Sequence[Key]) -> None:
        """Show how far all is, and these jobs, which run or will be next."""
        shares = [(self._share(self.todo[key]), self.todo[key]) for key in running]
        shown = [f"{job.dataset} {share:.0%}" for share, job in shares[:4]]
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update(self._done() - self.bar.n)
        if self.bar.disable and running and time.monotonic() > self.said + SILENCE:
            now = "; ".join(f"{job}: {share:.0%}" for share, job in shares)
            self.say(f"{self.ended} of {self.jobs} done{self._left()}; now {now}")

    def say(self, text: str) -> None:
        """A line of its own above the bar."""
        self.said = time.monotonic()
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Say that a job has ended."""
        self.ended += 1
        self.say(f"{self.ended} of {self.jobs}: {text}{self._left()}")

    def _left(self) -> str:
        done = self._done()
        # What the first few small jobs take says nothing about the whole.
        if done - self.before <= (self.total - self.before) / 50 or done == self.total:
            return ""
        seconds = (time.monotonic() - self.begin) * (self.total - done) / (done - self.before)
        return f"; about {tqdm.format_interval(seconds)} left"


def local_pool(workers: int) -> Pool:
    """Processes of this machine, which end with the one that started them."""

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
        try:
            client = Client(address)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"--scheduler must be the address of a Dask scheduler that runs, such as "
                f"tcp://HOST:8786, but {address!r} cannot be used: {error}"
            ) from error
        with client:
            try:  # the scheduler unpickles jobs as well
                client.run_on_scheduler(find_spec, "benchmarks.paper.job")
                client.run(find_spec, "benchmarks.paper.job")
            except ImportError as error:
                raise ValueError(
                    f"the Dask scheduler {address}, or a worker of it, cannot import this sweep "
                    f"({error}); start both in a copy of the repository, by `python -m dask "
                    "scheduler` and `python -m dask worker`"
                ) from error
            if not client.scheduler_info()["workers"]:
                print(
                    f"the Dask scheduler {address} has no worker yet: the jobs wait for one "
                    f"(`python -m dask worker {address}`, in a copy of the repository)",
                    flush=True,
                )
            with client.get_executor(pure=False) as executor:
                yield executor

    return opened
