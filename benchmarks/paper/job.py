"""One job of a sweep, whatever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.paper import rocket, training
from benchmarks.paper.networks import ROCKETS
from benchmarks.paper.plan import Job
from sparseconv.core.files import locked
from sparseconv.measure.machine import threads


def perform(job: Job, source: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and test; continue from what ``folder`` holds. One thread, and the GPU if so asked.

    Returns the row: facts that are the same however often the job was killed, and times. These are
    CPU seconds of the one thread, since a sweep shares its machine with other work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Of a GPU: in float32, and the same bits each time.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with locked(folder / "lock"), threads(1), threadpool_limits(1), exact:
        if job.options["model"] in ROCKETS:
            return rocket.perform(job, source)
        return training.perform(job, source, folder, device)
