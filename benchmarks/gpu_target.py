"""Where benchmarks/gpu.py runs its calls, and how it times them: a GPU, or a CPU to try it on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseconv import available_backends
from sparseconv.bench.cases import CASES, Case
from sparseconv.measure import timing
from sparseconv.ops import calls as ops

# Dense precisions: the tensors' type, and whether float32 may be rounded to TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
}
Call = Callable[[], Any]


class Candidate(NamedTuple):
    """A call to be timed, and the setting of torch that it runs under."""

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


@contextmanager
def forced_kernel(name: str) -> Iterator[None]:
    """Force the CUDA kernel ``name``."""
    os.environ["SPARSECONV_CUDA_KERNEL"] = name
    try:
        yield
    finally:
        del os.environ["SPARSECONV_CUDA_KERNEL"]


def compiled(call: FunctionType | nn.Module) -> Callable[..., Any]:
    """What torch.compile makes of a call for its own shapes, with CUDA graphs.

    It keeps what it made by code, searches that at each call, and beyond eight of the same code it
    warns and calls the function itself: so each function gets code of its own, and each row of a
    table calls ``torch.compiler.reset()`` first.
    """
    if isinstance(call, FunctionType):
        code = call.__code__.replace()
        call = FunctionType(code, call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(call, mode="reduce-overhead", dynamic=False)


def stay(*tensors: Tensor) -> None:
    """Tell torch.compile that these lie where they are: its graphs shall not copy them first."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor)


class Sizes(NamedTuple):
    """What is measured: the paper's network, and how often."""

    nf: int = 47  # channels between modules; three times as many behind each
    kernel_size: int = 39
    depth: int = 4
    steps: int = 50  # in a call: 5 epochs of 10 batches, after which the recipe updates patterns
    epochs: int = 12
    runs: int = 100
    replays: int = 1000
    registry: int | None = None  # cases of it; None: all

    def layer(self, length: int, n: int = 16) -> Case:
        """The network's later layer, S = 80 %."""
        return replace(
            CASES["dsn_evolved_L128"],
            n=n,
            in_channels=self.nf,
            out_channels=3 * self.nf,
            kernel_size=self.kernel_size,
            length=length,
        )


TRIAL = Sizes(3, 9, 2, 4, 6, 5, 5, 3)  # small enough for an interpreter


class Target:
    """A device with the kernels that run on it; the first of ``kernels`` is what is judged.

    Raises:
        RuntimeError: those kernels cannot run; with the reason.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_gpu = device == "cuda"
        self.sizes = Sizes() if self.is_gpu else TRIAL
        self.states = available_backends()
        first, *others = ("cuda" if self.is_gpu else "cpp"), "triton"
        if not self.states[first].startswith("available"):
            raise RuntimeError(f"there is nothing to measure: {self.states[first]}")
        self.first = first
        self.kernels = [first, *(n for n in others if self._runs(n))]
        # cuDNN tries its algorithms at the first call of each shape and keeps the fastest.
        torch.backends.cudnn.benchmark = True

    def _runs(self, name: str) -> bool:
        on_cpu = "interpreted" in self.states[name]
        return self.states[name].startswith("available") and on_cpu != self.is_gpu

    def ops(self, kernel: str) -> ModuleType:
        """The three computations by kernels of this name."""
        if kernel != "triton":
            return ops
        from sparseconv.ops import triton

        return triton

    def backend(self, kernel: str) -> str:
        """The name by which ``sparse_conv1d`` and layers take them."""
        return kernel

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def clock(self) -> float:
        self.wait()
        return time.perf_counter()

    def aside(self, number: int) -> AbstractContextManager[Any]:
        """A side stream, behind what was asked for so far."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(stream)

    def capture(self, call: Callable[[], Tensor]) -> tuple[Call, Tensor]:
        """Capture a call into a CUDA graph; its replay, and the tensor that it fills."""
        with self.aside(0):
            for _ in range(3):
                call()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        return graph.replay, result

    def modes(self, call: Callable[[], Tensor]) -> dict[str, Call]:
        """The call as it is, and as a CUDA graph."""
        return {"eager": call} | ({"graph": self.capture(call)[0]} if self.is_gpu else {})

    def samples(
        self,
        candidates: Mapping[str, Candidate],
        *,
        rounds: int,
        least_seconds: float = 2e-3,
        steps: int = 1,
    ) -> dict[str, list[float]]:
        """Let candidates take turns; milliseconds of each, for one of the ``steps`` of a call."""
        times = timing.interleave(
            {name: candidate.call for name, candidate in candidates.items()},
            rounds=rounds,
            least_seconds=least_seconds,
            clock=self.clock,
            context=lambda name: tf32(candidates[name].tf32),
        )
        return {
            name: [float(f"{1e3 * seconds / steps:.5g}") for seconds in turns]
            for name, turns in times.items()
        }


def relative(found: Tensor, exact: Tensor) -> float:
    """``‖found - exact‖ / ‖exact‖``; NaN for NaN."""
    return float((found.double() - exact).norm() / exact.norm())
