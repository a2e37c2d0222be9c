"""The device to measure, and how to time calls on it: a GPU, or a CPU for a trial."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.bench.cases import CASES, Case
from sparseconv import available_backends
from sparseconv.measure import timing

# Dense precisions: the tensors' type, and whether float32 may be rounded to TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
}
Call = Callable[[], Any]
Row = dict[str, Any]


class Timed(NamedTuple):
    call: Call
    tf32: bool = False  # whether it may round float32 products to TF32
    times: int = 1  # how often it does what the row counts
    error: float = math.nan  # relative to float64; NaN where it was not compared


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 for float32 products inside the block."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Sizes(NamedTuple):
    """The paper's network, and how often to measure."""

    nf: int = 47  # channels between modules; a module has 3 * nf
    nf_blocks: int = 48  # the same where blocks are to divide them
    kernel_size: int = 39
    depth: int = 4
    steps: int = 50  # in a timed call; the last may update the patterns
    replays: int = 20  # of a call in one graph: a launch costs as much as a small one
    shapes: tuple[tuple[int, int, int], ...] = ((141, 47, 39), (64, 64, 9), (128, 128, 3))
    per_kernel: tuple[float, ...] = (0.25, 0.5, 1, 1.5, 2)  # active weights, of these shapes


class Target:
    """A device with the backends that run on it."""

    def __init__(self, device: str, rounds: int) -> None:
        self.device, self.rounds, states = torch.device(device), rounds, available_backends()
        names = ("triton", "cuda") if device == "cuda" else ("cpp",)
        self.backends = [name for name in names if states[name].startswith("available")]
        self.missing = {name: states[name] for name in names if name not in self.backends}
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"there is nothing to measure: {self.missing}")
        self.sizes = Sizes() if device == "cuda" else Sizes(3, 16, 9, 2, 4, 2, ((4, 3, 5),), (1,))
        self.graphs = device == "cuda"  # whether calls are captured
        # cuDNN tries some algorithms at the first call of each shape and keeps the fastest.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 5

    def layer(self, length: int, blocks: bool = False) -> Case:
        nf, wide, kernel_size, *_ = self.sizes
        nf = wide if blocks else nf
        changes = {"in_channels": nf, "out_channels": 3 * nf, "kernel_size": kernel_size}
        changes |= {"pattern": "blocks"} if blocks else {}
        return Case(**(vars(CASES["dsn_evolved_L128"]) | changes | {"length": length}))

    def sparse(self, blocks: bool) -> list[str]:
        """Return the backends to compare; only Triton's kernels multiply blocks."""
        return [name for name in self.backends if not (blocks and name == "cuda")]

    def clock(self) -> float:
        """Wait for the device; return seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def graphed(self, timed: Timed) -> Timed:
        """Capture repeated calls into a CUDA graph, to time the graph instead."""
        times = self.sizes.replays
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):  # also where a capture that fails leaves another one
            for _ in range(3):
                timed.call()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(times):
                    timed.call()
        return timed._replace(call=graph.replay, times=times)

    def row(self, computation: str, length: int, makes: Mapping[str, Callable[[], Timed]]) -> Row:
        """Time candidates interleaved, in ms; record the reason for those that fail."""
        made: dict[str, Timed] = {}
        absent = {}
        for name, make in makes.items():
            try:
                timed = make()
                with tf32(timed.tf32):
                    timed.call()
                self.clock()
            except Exception as reason:
                absent[name] = f"{type(reason).__name__}: {reason}"
            else:
                made[name] = timed
        times = timing.interleave(
            {name: timed.call for name, timed in made.items()},
            rounds=self.rounds,
            clock=self.clock,
            context=lambda name: tf32(made[name].tf32),
        )
        samples = {
            name: [float(f"{1e3 * seconds / made[name].times:.5g}") for seconds in taken]
            for name, taken in times.items()
        }
        errors = {
            name: timed.error if math.isfinite(timed.error) else None
            for name, timed in made.items()
        }
        return {
            "computation": computation, "length": length, "samples_ms": samples, "error": errors,
            "absent": absent,
        }  # fmt: skip
