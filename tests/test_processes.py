"""Worker processes.

Shared memory, Hogwild training, data loaders and plain forks: the same outputs, and no deadlock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparseconv import SparseConv1d
from sparseconv.machine import threads

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
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    seen.put((rank, bool(before.detach().equal(y)) or rank > 0, float(model(x).square().mean())))


@pytest.mark.tool("share_memory and torch.multiprocessing (Hogwild)", "works")
@pytest.mark.parametrize(("method", "n"), [("fork", 2), ("spawn", 1)])
def test_hogwild(method: str, n: int) -> None:
    model, x = make().share_memory(), torch.randn(3, 2, 30).share_memory_()
    assert all(t.is_shared() for t in (*model.parameters(), *model.buffers()))
    with torch.no_grad():
        y = model(x).clone()
    context = mp.get_context(method)
    seen = context.Queue()
    processes = [context.Process(target=worker, args=(i, model, seen, x, y)) for i in range(n)]
    losses = []
    for process in processes:
        process.start()
    for _ in processes:
        rank, equal, loss = seen.get(timeout=TIMEOUT)
        assert equal, rank
        losses.append(loss)
    for process in processes:
        process.join(TIMEOUT)
        assert process.exitcode == 0
    with torch.no_grad():
        final = float(model(x).square().mean())
    assert final < float(y.square().mean())  # the parent sees what its children have trained
    assert n > 1 or final == pytest.approx(losses[0])


class Filtered(Dataset[Tensor]):
    """Runs a sparse layer in the worker, and again in the collate function."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x

    def __len__(self) -> int:
        return len(self.x)

    @torch.no_grad()
    def __getitem__(self, i: int) -> Tensor:
        return self.model(self.x[i])


class Collate:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, items: list[Tensor]) -> Tensor:
        return self.model[0](torch.stack(items))


@pytest.mark.tool("DataLoader workers (fork, spawn)", "works", "the layer in dataset and collate")
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_data_loader(method: str, workers: int) -> None:
    model, x = make(), torch.randn(12, 2, 40)
    with threads(2), torch.no_grad():
        expected = model[0](model(x))  # the kernels have run here before the workers start
    dataset, collate = Filtered(model, x), Collate(model)
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=method,
        timeout=TIMEOUT,
    )
    assert torch.cat(list(loader)).equal(expected)


def ends(child: Callable[[], Any], seconds: float = 20) -> bool:
    """Whether ``child`` comes to its end in a fork of this process, which is what is at stake."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


FORK = """
import sys
import torch
from test_processes import ends, gradients
from torch import nn
from sparseconv import SparseConv1d

torch.set_num_threads(2)
torch.manual_seed(0)
# Large enough for the kernels to share the work out, too small for torch's own loops to do it.
layer = SparseConv1d(16, 16, 39, padding="same", padding_mode="replicate", density=0.3)
x, grad = torch.randn(2, 1, 16, 1500)
expected = gradients(layer, x, grad)

def child():
    for got, want in zip(gradients(layer, x, grad), expected, strict=True):
        assert got.equal(want)

assert ends(child), "a forked child waits for threads that it does not have"
# The yardstick: what does hang there, or this test could not fail.
dense = nn.Conv1d(16, 16, 39, padding="same")
big = torch.randn(16, 16, 1500)
dense(big), big.exp()
print("torch's own operations", "end" if ends(lambda: (dense(big), big.exp()), 3) else "hang")
"""


def gradients(layer: SparseConv1d, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of input and weights."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return (y.detach(), *torch.autograd.grad(y, (x, layer.values), grad))


@pytest.mark.promise("P8")
@pytest.mark.tool("os.fork after use", "works", "a forked child computes on one thread")
def test_a_fork_after_the_kernels_ran_on_two_threads(capfd: pytest.CaptureFixture[str]) -> None:
    """In a fresh process, because this one may have to fork and go on."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    environment.pop("OMP_NUM_THREADS", None)
    run = subprocess.run(
        [sys.executable, "-c", FORK], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("torch's own operations")
