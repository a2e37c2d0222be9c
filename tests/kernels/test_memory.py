"""Training memory follows the active weights: nothing of a dense weight's size is ever held."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench.peaks import allocations
from sparseconv import DSTScheduler, available_backends
from sparseconv.models import DSN

DENSE_BYTES = 141 * 47 * 39 * 4  # one layer's weight in float32


def set_up(model: DSN) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    # Two short series: no activation, padded or not, comes near the size of a dense weight.
    x, y = torch.randn(2, model.in_channels, 64), torch.tensor([0, 1])

    def step() -> None:
        optimizer.zero_grad()
        F.nll_loss(model(x), y).backward()
        optimizer.step()

    step()  # makes the moments, and the plans that are kept with a pattern
    return step, optimizer


@pytest.mark.parametrize("in_channels", [1, 9])
def test_parameters_gradients_and_moments(in_channels: int) -> None:
    """A fifth of those of the dense network, the pattern's indices included."""

    def held(model: DSN) -> int:
        _, optimizer = set_up(model)
        tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
        tensors += [entry for state in optimizer.state.values() for entry in state.values()]
        tensors += [
            index for x in model.sparse_layers() for index in (x.crow_indices, x.col_indices)
        ]
        return sum(tensor.nbytes for tensor in tensors)

    sparse, dense = (DSN(in_channels, 2, sparsity=sparsity) for sparsity in (0.8, 0.0))
    plain = sum(parameter.numel() for parameter in dense.parameters()) * 4 * 4
    # The dense network, as one would build it, has no indices: they count for the sparse one only.
    assert held(sparse) < 0.25 * plain


def test_no_dense_sized_buffer_in_a_training_step() -> None:
    if not available_backends()["cpp"].startswith("available"):
        pytest.skip(available_backends()["cpp"])
    model = DSN(1, 2, backend="cpp")
    step, optimizer = set_up(model)
    scheduler = DSTScheduler(model, optimizer, update_every=1, end_step=10)
    for work in (step, scheduler.step, step):  # the last one makes the new pattern's plans
        sizes = allocations(work)
        assert len(sizes) > 50, "the profiler saw no allocations: the test shows nothing"
        assert max(sizes) < DENSE_BYTES
    step, _ = set_up(DSN(1, 2, backend="reference"))
    assert max(allocations(step)) >= DENSE_BYTES, "a dense buffer is seen"


FAULTS = """
import resource, torch
from sparseconv.measure.machine import retain_freed_memory
retain_freed_memory()
def step():
    blocks = [torch.zeros(300_000) for _ in range(8)]  # 1.2 MB each, as activations are
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes the GNU C library only")
def test_freed_memory_is_kept() -> None:
    # No control: without the call it depends on what the imports happened to free before.
    command = [sys.executable, "-c", FAULTS]
    faults = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    pages = 10 * 8 * 1_200_000 // mmap.PAGESIZE  # what ten steps touch
    assert faults < pages / 100
