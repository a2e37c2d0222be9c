"""Run a function on two processes of one gloo group, and hand back what each returns."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
TIMEOUT = 60  # seconds; a deadlock ends in a failure
# The children of a fork cannot train where a torch with CUDA has differentiated before.
FORKS = torch.version.cuda is None


def on_ranks(function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Call ``function(rank, *args)`` on each rank; a failure of one is an error here."""
    # A new folder: a second group must not meet the first one's store.
    folder = folder / f"ranks{len(list(folder.iterdir()))}"
    folder.mkdir()
    context = mp.get_context("fork" if FORKS else "forkserver")
    ranks = [
        context.Process(target=_rank, args=(rank, folder, function, args)) for rank in range(WORLD)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT)
    hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
        process.join()
    texts = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not hung, f"ranks {hung} hang; {texts}"
    assert not texts, "\n".join(texts)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(rank: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # the parent's OpenMP threads did not come along
    try:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
        torch.save(function(rank, *args), folder / f"{rank}.pt")
        dist.barrier()  # who leaves first would break the others' connections
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
