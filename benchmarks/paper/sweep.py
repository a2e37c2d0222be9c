"""Run all jobs of a plan once, however often the sweep stops, here or on a Dask cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    ProcessPoolExecutor,
    as_completed,
)
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks.paper import rocket, training
from benchmarks.paper.archives import Archive
from benchmarks.paper.networks import ROCKETS
from benchmarks.paper.plan import Job
from benchmarks.paper.pruned_filters import TUNING
from benchmarks.paper.rows import LOCK_NAME, ROWS_NAME, done_jobs
from benchmarks.recording import add_line
from sparseconv.core.files import locked
from sparseconv.measure.machine import threads


def sweep(
    jobs: Sequence[Job],
    archive: Archive,
    out: Path,
    pool: AbstractContextManager[Executor],
    device: str = "cpu",
) -> dict[str, str]:
    """Perform the jobs that ``out/rows.jsonl`` lacks; append a row for each.

    After a kill, the same call continues: finished jobs are kept, and others resume from their last
    checkpoint in ``out/running``. The executor in ``pool`` runs ``perform``.

    Returns errors by job; the next call retries these.
    """
    out = out.resolve()  # workers may be elsewhere
    out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if device != "cpu" and (job.options["model"] in ROCKETS or job.options["pruning"]):
            raise ValueError(
                f"{job} cannot run on a GPU, because only networks can; use --device cpu"
            )
    busy = f"another sweep is running in {out}; wait for it, or choose another folder"
    with locked(out / LOCK_NAME, busy):
        done = done_jobs(out / ROWS_NAME, jobs, archive)
        finished = [job for job in jobs if job.key in done]
        todo = [job for job in jobs if job.key not in done]
        for job in finished:  # a sweep was killed before it removed the folder
            shutil.rmtree(_folder(out, job), ignore_errors=True)
        failed: dict[str, str] = {}
        points = {job.key: _points(job, archive) for job in jobs}
        progress = tqdm(
            total=sum(points.values()), initial=sum(points[job.key] for job in finished),
            unit="points", unit_scale=True, smoothing=0.05, dynamic_ncols=True,
        )  # fmt: skip
        with progress as bar, pool as executor:
            futures = {
                executor.submit(
                    perform, job, archive.sources[job.dataset], _folder(out, job), device
                ): job
                for job in todo
            }
            for number, future in enumerate(as_completed(futures), 1 + len(finished)):
                job = futures[future]
                try:
                    row = future.result()
                except (BrokenExecutor, CancelledError) as error:
                    raise RuntimeError(
                        "a worker process was killed, perhaps because memory was short; run the "
                        "same command again to continue, if necessary with fewer --workers"
                    ) from error
                except Exception as error:  # whatever training raises is this job's alone
                    failed[str(job)] = said = f"{type(error).__name__}: {error}"
                else:
                    add_line(out / ROWS_NAME, {**row, "data": archive.checksums[job.dataset]})
                    shutil.rmtree(_folder(out, job), ignore_errors=True)
                    said = f"accuracy {row['accuracy']:.4f}"
                bar.update(points[job.key])
                bar.write(f"{number} of {len(jobs)}: {job}: {said}", sys.stdout)
                sys.stdout.flush()
        return failed


def perform(job: Job, source: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and test on one thread, and on the GPU if requested; resume from ``folder``.

    Returns the row: facts that do not depend on kills, and CPU seconds, because the machine is
    shared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Of a GPU: in float32, and the same bits each time.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with locked(folder / "lock"), threads(1), threadpool_limits(1), exact:
        if job.options["model"] in ROCKETS:
            return rocket.perform(job, source)
        return training.perform(job, source, folder, device)


def _folder(out: Path, job: Job) -> Path:
    name = "".join(c if c.isalnum() or c in "-_=.," else "_" for c in "-".join(map(str, job.key)))
    # Other names may look alike once they are a folder's, and a plan may have changed.
    digest = sha256(json.dumps([*job.key, job.options]).encode()).hexdigest()
    return out / "running" / f"{name[:60]}-{digest[:10]}"


def _points(job: Job, archive: Archive) -> int:
    """Count the time points of a job's training, to estimate its time."""
    variants = job.options["pruning"]
    tuned = sum(1 if variant.get("retrain") else TUNING for variant in variants)
    epochs = job.recipe().epochs * (1 + tuned)
    return int(archive.shapes[job.dataset].train_points * epochs * job.options["members"])


@contextmanager
def local_pool(workers: int) -> Iterator[Executor]:
    """Open a pool of local processes, which end with this one."""
    # Forks of one process that has imported everything, and has no threads yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield executor
    except BaseException:  # the workers' jobs go on from their checkpoints next time
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when the one that started it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def dask_pool(address: str) -> Iterator[Executor]:
    """Open a Dask cluster; its workers must see the archive and ``out`` at the same paths.

    Dask repeats the jobs of lost workers.
    """
    from distributed import Client  # pip install distributed

    with Client(address) as client, client.get_executor(pure=False) as executor:
        yield executor
