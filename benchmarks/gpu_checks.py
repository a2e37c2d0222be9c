"""What must hold on a GPU before any time means something: right, reproducible, clean."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

from sparseconv import _ops, sparse_conv1d
from sparseconv.bench import run
from sparseconv.bench.cases import CASES, Problem
from sparseconv.testing import expected_dgrad, expected_fprop, expected_wgrad, random_case

KERNELS = ("direct", "tiled", "narrow", "wide")
SANITIZERS = ("memcheck", "racecheck", "initcheck")
Call = Callable[[], Tensor]


@contextmanager
def kernel(name: str):
    """Force the CUDA kernel ``name``; all of this run's own choices if it is empty."""
    os.environ["SPARSECONV_CUDA_KERNEL"] = name
    try:
        yield
    finally:
        del os.environ["SPARSECONV_CUDA_KERNEL"]


def on(device: torch.device, problem: Problem) -> Problem:
    x, values, grad = (tensor.to(device) for tensor in problem[:3])
    return problem._replace(x=x, values=values, grad=grad)


def random_cases(device: torch.device, backend: str, count: int, seed: int = 0) -> int:
    """All three computations of random cases within their computed bounds; how many there were.

    Raises:
        AssertionError: naming the case.
    """
    rng = random.Random(seed)
    for _ in range(count):
        case = random_case(rng)
        tensors = case.tensors()
        x, values = (t.to(device).requires_grad_() for t in (tensors.input, tensors.values))
        bias = None if tensors.bias is None else tensors.bias.to(device)
        y = sparse_conv1d(x, values, case.make_pattern(), bias, **case.options, backend=backend)
        dx, dw = torch.autograd.grad(y, (x, values), tensors.grad.to(device))
        for got, expected in ((y, expected_fprop), (dx, expected_dgrad), (dw, expected_wgrad)):
            exact, bound = expected(case, tensors)
            error = (got.detach().cpu().double() - exact).abs()
            assert (error <= bound).all(), f"{expected.__name__}: {case!r}"
    return count


def registry(device: torch.device) -> int:
    """Every case of the benchmark, shrunk, on random data and exactly on integers."""

    def moved(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: object) -> Tensor:
            there = (a.to(device) if isinstance(a, Tensor) else a for a in arguments)
            return function(*there).cpu()

        return call

    names = ("fprop", "dgrad", "wgrad")
    kernels = SimpleNamespace(**{name: moved(getattr(_ops, name)) for name in names})
    for case in CASES.values():
        run.check(kernels, case.shrunk(outputs=40 if case.in_channels < 200 else 9).build())
    return len(CASES)


def every_kernel(device: torch.device) -> int:
    """Each kernel within the computed bounds; in fprop and dgrad, all with the same bits."""
    problem = replace(CASES["dsn_evolved_L128"], n=3).build()
    calls, first = run.sparse_calls(_ops, on(device, problem)), {}
    for instance in KERNELS:
        with kernel(instance):
            results = {name: call().cpu() for name, call in calls.items()}
        run.check_bounds(results, problem)
        first = first or results
        for name in ("fprop", "dgrad"):
            assert results[name].equal(first[name]), (name, instance)
    return len(KERNELS)


def reproducible(device: torch.device, runs: int = 100, replays: int = 1000) -> int:
    """Bits equal over runs, on side streams, and in graph replays with changed data."""
    problem = on(device, CASES["dsn_evolved_L128"].build())
    counted = 0
    for name, call in run.sparse_calls(_ops, problem).items():
        first = call()
        assert all(call().equal(first) for _ in range(runs)), name
        streams = [torch.cuda.Stream() for _ in range(4)]
        results = []
        for i in range(runs):
            streams[i % 4].wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(streams[i % 4]):
                results.append(call())
        torch.cuda.synchronize()
        assert all(result.equal(first) for result in results), f"{name} on side streams"
        replay, captured = graphed(call)
        for _ in range(replays):
            for tensor in problem[:3]:
                tensor.normal_()
            replay()
            assert captured.equal(call()), f"{name} replayed"
        counted += 2 * runs + replays
    return counted


def graphed(call: Call) -> tuple[Callable[[], None], Tensor]:
    """Capture a call into a CUDA graph; its replay, and the tensor that it fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


def sanitized(seconds: int = 90) -> dict[str, str]:
    """What compute-sanitizer says of ten random cases, the caching allocator off."""
    if shutil.which("compute-sanitizer") is None:
        return dict.fromkeys(SANITIZERS, "not run: compute-sanitizer is not installed")
    code = (
        "import torch; from benchmarks import gpu_checks; "
        "gpu_checks.random_cases(torch.device('cuda'), 'cuda', 10)"
    )
    found = {}
    for tool in SANITIZERS:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            done = subprocess.run(
                [*command, "-c", code], env=environment, capture_output=True, text=True,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            found[tool] = f"not finished after {seconds} s"
        else:
            clean = done.returncode == 0
            found[tool] = "clean" if clean else (done.stdout + done.stderr)[-2000:]
    return found
