"""The CUDA kernels on the CPU: calls of cuda_host.cpp, written and read back; and what their
launches ask for (cuda_shared.cpp).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparseconv.ops import cuda_plans
from sparseconv.testing import Case, Tensors

ROOT = Path(__file__).parents[3]
COMPILER = os.environ.get("CXX", "c++")
ELEMENTS = ("float32", "float64", "bfloat16", "float16")
MODES = ("zeros", "replicate", "reflect", "circular")
SOURCES = ("direct", "tiled", "registers")
COMPUTATIONS = ("fprop", "dgrad", "wgrad")

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# What a block may have, static and dynamic together, unless the driver is asked for more: no launch
# does that, so with a byte more it would fail.
SHARED = 48 * 1024
# Weights of a batch, in the register kernels of fprop and dgrad; the rest is asked for at launch.
STATIC_SHARED = 4 * 33 * 4

Results = dict[str, Tensor]  # name of the kernel's instance -> what it computed


class Shared(NamedTuple):
    """The most dynamic shared memory that launches of one kernel asked for, and where."""

    launches: int
    bytes: int
    shape: str


def build(folder: Path, name: str = "cuda_host") -> Path:
    """Compile a program of this folder under AddressSanitizer and UndefinedBehaviorSanitizer."""
    program = folder / name
    command = [COMPILER, "-std=c++20", "-O1", "-g1", *SANITIZERS, f"-I{ROOT / 'csrc'}", "-pthread",
               "-o", program, Path(__file__).with_name(f"{name}.cpp")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def most_shared(folder: Path) -> dict[str, Shared]:
    """By the name of each kernel, over all launches of tests/kernels/cuda/cuda_shared.cpp."""
    program = build(folder, "cuda_shared")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        numbers, shape = line.split(": ")
        launches, most, name = numbers.split(" ", 2)
        found[name] = Shared(int(launches), int(most), shape)
    return found


def missing() -> str:
    """What this machine lacks; empty if nothing."""
    return "" if shutil.which(COMPILER) else f"{COMPILER} is not installed"


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Calls:
    """Problems for the program; ``run`` answers them in the same order."""

    def __init__(self, patterns: bool = True) -> None:
        self.patterns = patterns  # False: all index tensors hold nonsense
        self.random = torch.Generator().manual_seed(0)
        self.data: list[bytes] = []
        self.outputs: list[tuple[tuple[int, ...], torch.dtype, torch.dtype]] = []

    def add(self, computation: str, case: Case, tensors: Tensors, relu: bool = False) -> None:
        """Set up one call as the binding does (csrc/cuda/conv1d_cuda.cpp)."""
        pattern = case.make_pattern()
        x, values, bias, grad = tensors
        if not case.batched:
            x, grad = x.unsqueeze(0), grad.unsqueeze(0)
        dtype = element = x.dtype
        if computation == "dgrad" and case.padding_mode != "zeros" and any(case.resolved_padding):
            element = accumulator(dtype)  # rounded once, after the gradient of the padding
            grad = grad.to(element)
        self._header(COMPUTATIONS.index(computation), case, element, relu)
        weights = values.to(accumulator(dtype))
        if computation == "dgrad":
            pointers, rows, source = cuda_plans.dgrad_plan(
                pattern, case.stride, case.dilation, case.groups
            )
            self._tensor(grad)
            self._arrays(pointers, rows, weights[source.long()])
            shape = tuple(x.shape)
        else:
            rows = cuda_plans.fprop_rows(pattern, case.dilation)
            if computation == "fprop":
                self._tensor(x)
                init = torch.empty(0) if bias is None else bias.to(weights.dtype)
                self._arrays(pattern.crow_indices, rows, weights, init)
                shape = (x.shape[0], case.out_channels, case.output_length)
            else:
                self._tensor(grad)
                self._tensor(x)
                self._arrays(pattern.crow_indices, rows)
                shape = (pattern.nnz,)
        if computation != "wgrad" and not case.batched:
            shape = shape[1:]
        self.outputs.append((shape, element, dtype))

    def add_choice(self, computation: str, case: Case) -> None:
        """Ask only which instance would be launched on an H200: one result, empty."""
        element = getattr(torch, case.dtype)
        self._header(len(COMPUTATIONS) + COMPUTATIONS.index(computation), case, element)
        self._numbers(case.make_pattern().nnz)
        self.outputs.append(((0,), element, element))

    def _header(
        self, computation: int, case: Case, element: torch.dtype, relu: bool = False
    ) -> None:
        self._numbers(
            computation,
            ELEMENTS.index(str(element).removeprefix("torch.")),
            case.n, case.length, int(relu), int(self.patterns),
            case.out_channels, case.in_channels // case.groups, case.kernel_size,
            case.stride, *case.resolved_padding, case.dilation, case.groups,
            MODES.index(case.padding_mode),
        )  # fmt: skip

    def _numbers(self, *numbers: int) -> None:
        self.data.append(np.array(numbers, dtype=np.int64).tobytes())

    def _tensor(self, x: Tensor) -> None:
        """All memory that the tensor may touch, and not a byte more."""
        if x.numel() == 0:
            self._numbers(0, 0, *x.stride())
            return
        reach = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
        memory = x.as_strided((reach,), (1,), x.storage_offset()).contiguous()
        self._numbers(memory.numel() * memory.element_size(), 0, *x.stride())
        self.data.append(memory.view(torch.uint8).numpy().tobytes())

    def _arrays(self, *arrays: Tensor) -> None:
        for array in arrays:
            if array.dtype == torch.int32 and not self.patterns:
                wild = torch.tensor([-(2**31), -1, 0, 1, 7, 100, 2**31 - 1], dtype=torch.int32)
                array = wild[torch.randint(len(wild), array.shape, generator=self.random)]
            self._numbers(array.numel() * array.element_size())
            self.data.append(array.contiguous().numpy().tobytes())

    def run(self, program: Path, folder: Path) -> list[Results]:
        """Compute all calls, each with every instance that can."""
        (folder / "calls").write_bytes(b"".join(self.data))
        command: Sequence[Any] = [program, folder / "calls", folder / "results"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        memory = bytearray((folder / "results").read_bytes())
        at, answers = 0, []
        for shape, element, dtype in self.outputs:
            count = int(np.frombuffer(memory, np.int64, 1, at)[0])
            variants = np.frombuffer(memory, np.int64, 3 * count, at + 8).reshape(count, 3)
            at += 8 + 24 * count
            size = int(np.prod(shape))
            answer = {}
            for source, reach, outputs in variants.tolist():
                name = f"{SOURCES[source]} {reach} {outputs}"
                if size == 0:
                    answer[name] = torch.empty(shape, dtype=dtype)
                    continue
                found = torch.frombuffer(memory, dtype=element, count=size, offset=at)
                answer[name] = found.view(shape).to(dtype)
                at += size * element.itemsize
            answers.append(answer)
        assert at == len(memory)
        return answers
