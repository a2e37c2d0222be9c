"""A GPU that is none: the CPU kernels, and graphs that run their call again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_target import TRIAL, Target

MACHINE = {
    "device": "Fake (sm_90)", "torch": "2", "cuda": "13.0", "cudnn": "9", "triton": "3",
    "date": "today", "commit": "abc",
}  # fmt: skip


class FakeGpu(Target):
    def __init__(self, kernels: tuple[str, ...] = ("cuda",)) -> None:
        self.device, self.is_gpu, self.sizes = torch.device("cpu"), True, TRIAL
        self.first, self.kernels = kernels[0], list(kernels)
        self.states = {"triton": "no GPU: torch sees no CUDA device"}
        self.captures = 0

    def backend(self, kernel: str) -> str:
        return "cpp" if kernel == "cuda" else kernel

    def wait(self) -> None:
        pass

    def clock(self) -> float:
        return time.perf_counter()

    def aside(self, number: int) -> AbstractContextManager[Any]:
        return nullcontext()

    def capture(self, call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.captures += 1
        result = call().clone()
        return lambda: result.copy_(call()), result
