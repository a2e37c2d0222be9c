"""Where benchmarks.gpu runs its calls and how it times them: a GPU, or a CPU to try it on."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseconv import available_backends
from sparseconv.bench.cases import CASES, Case
from sparseconv.measure import timing

# Dense precisions: the tensors' type, and whether float32 may be rounded to TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
}
Call = Callable[[], Any]
Row = dict[str, Any]


class Candidate(NamedTuple):
    """A call to be timed, whether TF32 is allowed in it, and how often it does what is timed."""

    call: Call
    tf32: bool = False
    times: int = 1


Make = Callable[[], tuple[dict[str, Candidate], float]]  # candidates, and the error of them all


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products be rounded to TF32 inside the block, or not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Sizes(NamedTuple):
    """What is measured: the paper's network, and how often."""

    nf: int = 47  # channels between modules; three times as many behind each
    kernel_size: int = 39
    depth: int = 4
    steps: int = 50  # in a timed call; an update of the patterns is after as many
    matrix: int = 8192  # rows of the ceilings' matrices
    replays: int = 20  # of a call in one graph: a launch costs as much as a small one
    shapes: tuple[tuple[int, int, int], ...] = ((141, 47, 39), (64, 64, 9), (128, 128, 3))
    per_kernel: tuple[float, ...] = (0.25, 0.5, 1, 1.5, 2)  # active weights, of these shapes


class Target:
    """A device with the backends that run on it.

    Raises:
        RuntimeError: there is no such device; with the reason.
    """

    def __init__(self, device: str, without: Collection[str] = ()) -> None:
        self.device, states = torch.device(device), available_backends()
        names = ("triton", "cuda") if device == "cuda" else ("cpp",)
        states |= dict.fromkeys(without, "left out")
        self.backends = [name for name in names if states[name].startswith("available")]
        self.missing = {name: states[name] for name in names if name not in self.backends}
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"there is nothing to measure: {self.missing}")
        # For a trial, small enough for any machine.
        self.sizes = Sizes() if device == "cuda" else Sizes(3, 9, 2, 4, 64, 2, ((4, 3, 5),), (1,))
        self.graphs = device == "cuda"  # whether calls are captured, and compiled
        # cuDNN tries some algorithms at the first call of each shape and keeps the fastest.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 5

    def layer(self, length: int) -> Case:
        """The network's later layer on 16 series, S = 80 %."""
        nf, kernel_size = self.sizes[:2]
        changes = {"in_channels": nf, "out_channels": 3 * nf, "kernel_size": kernel_size}
        return Case(**(vars(CASES["dsn_evolved_L128"]) | changes | {"length": length}))

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def state(self) -> str:
        """The GPU's clock, power and temperature now."""
        if not shutil.which("nvidia-smi"):
            return ""
        query = "--query-gpu=clocks.sm,power.draw,temperature.gpu"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def capture(self, call: Callable[[], Tensor], times: int = 1) -> tuple[Call, Tensor]:
        """Capture so many calls into a CUDA graph; its replay, and the tensor that it fills."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):  # also where a capture that fails leaves another one
            for _ in range(3):
                call()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(times):
                    result = call()
        return graph.replay, result

    def row(
        self, computation: str, length: int, makes: Mapping[str, Make], rounds: int, flop: int = 0
    ) -> Row:
        """Let candidates take turns: milliseconds of each; what cannot be made says why."""
        candidates: dict[str, Candidate] = {}
        errors: dict[str, float | None] = {}
        absent = {}
        for name, make in makes.items():
            try:
                made, error = make()
                for candidate in made.values():
                    with tf32(candidate.tf32):
                        candidate.call()
                self.clock()
            except Exception as reason:
                absent[name] = f"{type(reason).__name__}: {reason}"
                continue
            candidates |= made
            errors |= dict.fromkeys(made, error if math.isfinite(error) else None)
        before = self.state()
        times = timing.interleave(
            {name: candidate.call for name, candidate in candidates.items()},
            rounds=rounds,
            clock=self.clock,
            context=lambda name: tf32(candidates[name].tf32),
        )
        samples = {
            name: [float(f"{1e3 * seconds / candidates[name].times:.5g}") for seconds in turns]
            for name, turns in times.items()
        }
        return {
            "computation": computation, "length": length, "flop": flop, "samples_ms": samples,
            "error": errors, "absent": absent, "clocks": [before, self.state()],
        }  # fmt: skip
