"""Where benchmarks.gpu runs its calls and how it times them: a GPU, or a CPU to try it on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseconv import available_backends
from sparseconv.bench.cases import CASES, Case
from sparseconv.measure import timing
from sparseconv.ops import calls

# Dense precisions: the tensors' type, and whether float32 may be rounded to TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
}
Call = Callable[[], Any]
Row = dict[str, Any]


class Candidate(NamedTuple):
    """A call to be timed, and whether float32 may be rounded to TF32 in it."""

    call: Call
    tf32: bool = False


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
    steps: int = 50  # in a timed call, the last with an update of the patterns
    repeats: int = 100  # of calls whose bits must agree


class Target:
    """A device with the backends that run on it.

    Raises:
        RuntimeError: none does, or there is no such device; with the reason.
    """

    def __init__(self, device: str) -> None:
        self.device, states = torch.device(device), available_backends()
        names = ("cuda", "triton") if device == "cuda" else ("cpp",)
        self.backends = [name for name in names if states[name].startswith("available")]
        self.missing = {name: states[name] for name in names if name not in self.backends}
        if not self.backends or (device == "cuda" and not torch.cuda.is_available()):
            raise RuntimeError(f"there is nothing to measure: {self.missing or states}")
        # For a trial, small enough for any machine.
        self.sizes = Sizes() if device == "cuda" else Sizes(3, 9, 2, 4, 3)
        self.graphs = device == "cuda"  # whether calls are captured, and compiled
        # cuDNN tries its algorithms at the first call of each shape and keeps the fastest.
        torch.backends.cudnn.benchmark = True

    def layer(self, length: int) -> Case:
        """The network's later layer on 16 series, S = 80 %."""
        nf, kernel_size = self.sizes[:2]
        changes = {"in_channels": nf, "out_channels": 3 * nf, "kernel_size": kernel_size}
        return Case(**(vars(CASES["dsn_evolved_L128"]) | changes | {"length": length}))

    def ops(self, backend: str) -> ModuleType:
        """fprop, dgrad and wgrad of a backend."""
        if backend != "triton":
            return calls
        from sparseconv.ops import triton

        return triton

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def capture(self, call: Callable[[], Tensor]) -> tuple[Call, Tensor]:
        """Capture a call into a CUDA graph; its replay, and the tensor that it fills."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        return graph.replay, result

    def graphed_step(self, model: nn.Module, step: Any, optimizer: torch.optim.Optimizer) -> Any:
        """A training step that is replayed from CUDA graphs."""
        from sparseconv.training.graphed import GraphedStep

        return GraphedStep(model, step, optimizer)

    def milliseconds(
        self, candidates: Mapping[str, Candidate], *, rounds: int, steps: int = 1
    ) -> dict[str, list[float]]:
        """Let candidates take turns; milliseconds of each, for one of the ``steps`` of a call."""
        times = timing.interleave(
            {name: candidate.call for name, candidate in candidates.items()},
            rounds=rounds,
            least_seconds=2e-3 if steps == 1 else 0,
            clock=self.clock,
            context=lambda name: tf32(candidates[name].tf32),
        )
        return {
            name: [float(f"{1e3 * seconds / steps:.5g}") for seconds in turns]
            for name, turns in times.items()
        }
