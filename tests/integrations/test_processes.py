"""Worker processes.

Shared memory, Hogwild training, data loaders and plain forks: the same outputs, and no deadlock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from child import run_child
from dst_runs import train_step
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparseconv import SparseConv1d
from sparseconv.measure.machine import threads

TIMEOUT = 60.0  # seconds; a deadlock ends in a failure


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseConv1d(2, 8, 9, padding="same"), nn.ReLU(), SparseConv1d(8, 2, 5, density=0.5)
    )


def worker(rank: int, model: nn.Module, seen: Any, x: Tensor, y: Tensor) -> None:
    """Compute what the parent computed, then train its very parameters."""
    torch.set_num_threads(1)
    before = model(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(5):
        train_step(model, optimizer, x)
    seen.put(rank > 0 or bool(before.detach().equal(y)))


@pytest.mark.tool(
    "share_memory and torch.multiprocessing (Hogwild), with spawn in CUDA builds of torch", "works"
)
def test_hogwild() -> None:
    model, x = make().share_memory(), torch.randn(3, 2, 30).share_memory_()
    assert all(t.is_shared() for t in (*model.parameters(), *model.buffers()))
    with torch.no_grad():
        y = model(x).clone()
    # The children of a fork cannot train where a torch with CUDA has differentiated before.
    context = mp.get_context("fork" if torch.version.cuda is None else "spawn")
    seen = context.Queue()
    processes = [context.Process(target=worker, args=(i, model, seen, x, y)) for i in range(2)]
    for process in processes:
        process.start()
    assert all(seen.get(timeout=TIMEOUT) for _ in processes)
    for process in processes:
        process.join(TIMEOUT)
        assert process.exitcode == 0
    with torch.no_grad():  # the parent sees what its children have trained
        assert float(model(x).square().mean()) < float(y.square().mean())


class Filtered(Dataset[Tensor]):
    """Runs a sparse layer in the worker."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x

    def __len__(self) -> int:
        return len(self.x)

    @torch.no_grad()
    def __getitem__(self, i: int) -> Tensor:
        return self.model(self.x[i])

    @torch.no_grad()
    def collate(self, items: list[Tensor]) -> Tensor:
        return self.model[0](torch.stack(items))


@pytest.mark.tool("DataLoader workers (fork, spawn)", "works", "the layer in dataset and collate")
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_data_loader(method: str, workers: int) -> None:
    model, x = make(), torch.randn(12, 2, 40)
    with threads(2), torch.no_grad():
        expected = model[0](model(x))  # the kernels have run here before the workers start
    dataset = Filtered(model, x)
    loader = DataLoader(
        dataset, batch_size=4, num_workers=workers, collate_fn=dataset.collate,
        multiprocessing_context=method, timeout=TIMEOUT,
    )  # fmt: skip
    assert torch.cat(list(loader)).equal(expected)


@pytest.mark.promise("P8")
@pytest.mark.tool(
    "os.fork after use", "works", "convolutions, blocks and features are computed on one thread "
    "(torch's own operations around them may wait: call `torch.set_num_threads(1)` in the child)",
)  # fmt: skip
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_forked_child_computes() -> None:
    # Threads that the runner of the tests restricts itself to are not this test's.
    found = run_child("forked", environment={"OMP_NUM_THREADS": "2"})
    assert found["threads"] > 1, "the kernels have not used a second thread"
    bad = {name: code for name, code in found["ended"].items() if code}
    assert not bad, "ended by alarm (-14), or computed something else (1)"
