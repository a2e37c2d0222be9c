"""One job of a sweep, whatever it is, and the lock that lets one process at a time work on it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from benchmarks.paper import pruned_filters, rocket, training
from benchmarks.paper.networks import ROCKETS
from benchmarks.paper.plan import Job
from sparseconv.measure.machine import threads


def perform(job: Job, source: str, folder: Path) -> dict[str, Any]:
    """Train and test; continue from what ``folder`` holds. One thread.

    Returns the row: facts that are the same however often the job was killed, and times. These are
    CPU seconds of the one thread, since a sweep shares its machine with other work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"), threads(1), threadpool_limits(1):
        if job.options["model"] in ROCKETS:
            return rocket.perform(job, source)
        kind = pruned_filters if job.options["pruning"] else training
        return kind.perform(job, source, folder)


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it ends.

    If another process holds it: wait, or raise ValueError with ``busy``.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise ValueError(busy) from None
        yield
