"""Compute in forked children what the parent computed on two threads: run by a test.

    python tests/integrations/forked.py

Prints, as JSON, how the child of each case ended and how many threads the parent had.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from ordered import Conv, Pointwise, run_ordered
from torch import Tensor

import sparseconv as sc
from sparseconv.core.geometry import Geometry
from sparseconv.ops.backends import extension

THREADS = 2
LENGTH = 4_000  # large enough for torch's own loops to share the work out as well


def bytes_of(x: Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def gradients(of: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], list[Tensor]]:
    """The output and the gradients of the inputs, by nothing but what is tested."""
    with torch.no_grad():
        y = of(*inputs)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)

    def compute() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        y = of(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    return compute


def cases() -> dict[str, Callable[[], list[Tensor]]]:
    torch.manual_seed(0)
    pattern = sc.KernelCSR.random((16, 8, 9), 300)
    many = sc.KernelCSR.random((64, 64, 20), 60_000)
    x, values, bias = torch.randn(8, 8, LENGTH), torch.randn(300), torch.randn(16)
    geometry = Geometry.of((16, 8, 9), 1, "same", 1, 1, "zeros")
    ones = torch.ones(500, dtype=torch.int32)
    arrays = {
        "length": 9 * ones, "dilation": ones, "padding": 0 * ones, "bias": torch.zeros(500),
        "n_channels": ones, "channels": 0 * ones, "weights": torch.randn(4_500),
    }  # fmt: skip
    bank = extension.RocketPlan(arrays, 8, LENGTH)

    def conv(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sc.sparse_conv1d(x, values, pattern, bias, padding="same", relu=True)

    def half(x: Tensor, values: Tensor) -> Tensor:
        return sc.sparse_conv1d(x, values, many, padding="same")

    def lanes(x: Tensor, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        stages = [Conv(values, None, pattern, geometry, True), Pointwise(weight, bias)]
        return run_ordered(x, stages)

    def features() -> list[Tensor]:
        out = torch.empty(len(x), 1_000)
        bank.features(x, out)
        return [out]

    return {
        "conv": gradients(conv, x, values, bias),
        "half": gradients(half, torch.randn(1, 64, 300).bfloat16(), torch.randn(60_000).bfloat16()),
        "lanes": gradients(lanes, x, values, torch.ones(16, 16, 1).tril(), bias),
        "features": features,
    }


def ended(compute: Callable[[], list[Tensor]], expected: list[Tensor] | None = None) -> int:
    """How a forked child ends that computes the same: 0, or 1 for other bits, or by its alarm."""
    expected = compute() if expected is None else expected
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for threads that it does not have
        # By bytes: torch's own comparison may wait.
        pairs = zip(compute(), expected, strict=True)
        same = all(bytes_of(a) == bytes_of(b) for a, b in pairs)
        os._exit(0 if same else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def bias_gradient(channels: int) -> list[Tensor]:
    pattern = sc.KernelCSR.from_positions(torch.tensor([0]), (channels, 1, 1))
    bias = torch.zeros(channels, requires_grad=True)
    y = sc.sparse_conv1d(torch.ones(1, 1, 1), torch.ones(1), pattern, bias)
    return list(torch.autograd.grad(y.sum(), bias))


def ended_while_plans_are_made() -> int:
    """How the worst of some children ends, forked while another thread makes plans of biases."""
    widths = iter(range(500_000, 600_000))
    expected = bias_gradient(7)
    stop = threading.Event()

    def make_plans() -> None:
        while not stop.is_set():
            bias_gradient(next(widths))

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make_plans)
        worst = 0
        for i in range(20):
            time.sleep(0.003 * i)  # not always at the same place in the other thread's work
            worst = worst or ended(lambda: bias_gradient(7), expected)
        stop.set()
        making.result()
    return worst


def main() -> None:
    torch.set_num_threads(THREADS)
    work = cases()

    def from_five_threads() -> list[Tensor]:
        with ThreadPoolExecutor(5) as pool:
            futures = [pool.submit(work["conv"]) for _ in range(20)]
            return [y for future in futures for y in future.result()]

    found = {name: ended(compute) for name, compute in work.items()}
    found["conv in five threads"] = ended(from_five_threads)
    found["while plans are made"] = ended_while_plans_are_made()
    print(json.dumps({"ended": found, "threads": len(os.listdir("/proc/self/task"))}))


if __name__ == "__main__":
    main()
