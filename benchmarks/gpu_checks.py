"""What must hold on a GPU before any time means something: right, reproducible, clean.

Each check yields ``{"check": what, "ok": bool, "result": words}``; ``ok`` is None where it could
not be made.
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_layer import KERNELS, on
from benchmarks.gpu_step import BATCH, batches, network
from benchmarks.gpu_target import Target, forced_kernel
from sparseconv import sparse_conv1d
from sparseconv.bench import run
from sparseconv.bench.cases import CASES
from sparseconv.testing import expected_dgrad, expected_fprop, expected_wgrad, random_case
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

SANITIZERS = ("memcheck", "racecheck", "initcheck")
LENGTHS = (128, 1024)  # small and large problems take other kernels
OVER_RUNS = "bits equal over runs"
ON_STREAMS = "bits equal on side streams"
REPLAYED = "bits of replayed graphs are those of eager"
Record = dict[str, Any]


def checked(what: str, check: Callable[[], str]) -> Record:
    """Make a check; words say what was found right, an AssertionError what was wrong."""
    try:
        return {"check": what, "ok": True, "result": check()}
    except AssertionError as error:
        return {"check": what, "ok": False, "result": str(error)}


def right(target: Target, cases: int) -> Iterator[Record]:
    """The judged kernels' results, in three ways."""
    kernel = target.first
    yield checked(f"{kernel}: random cases", lambda: random_cases(target, kernel, cases))
    yield checked(f"{kernel}: cases of the benchmark", lambda: registry(target, kernel))
    if target.is_gpu:
        yield checked(f"{kernel}: every kernel", lambda: every_kernel(target))


def random_cases(target: Target, kernel: str, count: int, **fixed: Any) -> str:
    """All three computations of random cases within their computed bounds of float64."""
    rng = random.Random(0)
    for _ in range(count):
        case = random_case(rng, **fixed)
        tensors = case.tensors()
        x, values = (t.to(target.device).requires_grad_() for t in (tensors.input, tensors.values))
        bias = None if tensors.bias is None else tensors.bias.to(target.device)
        backend, pattern = target.backend(kernel), case.make_pattern()
        y = sparse_conv1d(x, values, pattern, bias, **case.options, backend=backend)
        dx, dw = torch.autograd.grad(y, (x, values), tensors.grad.to(target.device))
        for got, expected in ((y, expected_fprop), (dx, expected_dgrad), (dw, expected_wgrad)):
            exact, bound = expected(case, tensors)
            error = (got.detach().cpu().double() - exact).abs()
            assert (error <= bound).all(), f"{expected.__name__}: {case!r}"
    return f"{count} within the computed bounds of float64"


def registry(target: Target, kernel: str) -> str:
    """Every case of the benchmark, shrunk, on random data and exactly on integers."""
    ops = target.ops(kernel)

    def moved(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: object) -> Tensor:
            there = (a.to(target.device) if isinstance(a, Tensor) else a for a in arguments)
            return function(*there).cpu()

        return call

    kernels = SimpleNamespace(**{name: moved(getattr(ops, name)) for name in run.COMPUTATIONS})
    cases = list(CASES.values())[: target.sizes.registry]
    for case in cases:
        run.check(kernels, case.shrunk(outputs=40 if case.in_channels < 200 else 9).build())
    return f"{len(cases)} within the bounds, and exact on integers"


def every_kernel(target: Target) -> str:
    """Each kernel within the computed bounds; in fprop and dgrad, all with the same bits."""
    problem = target.sizes.layer(128, n=3).build()
    calls = run.sparse_calls(target.ops(target.first), on(target.device, problem))
    first: dict[str, Tensor] = {}
    for name in KERNELS:
        with forced_kernel(name):
            results = {computation: call().cpu() for computation, call in calls.items()}
        run.check_bounds(results, problem)
        first = first or results
        for computation in ("fprop", "dgrad"):
            assert results[computation].equal(first[computation]), (name, computation)
    return f"{', '.join(KERNELS)}: within the bounds; fprop and dgrad with the same bits"


def reproducible(target: Target) -> Iterator[Record]:
    """Bits that are equal."""
    for kernel in target.kernels:
        for length in LENGTHS if target.is_gpu else (24,):
            yield from reproducible_layer(target, kernel, length)
    yield checked("graphed training has the bits of eager", lambda: graphed_training(target))


def reproducible_layer(target: Target, kernel: str, length: int) -> Iterator[Record]:
    runs, replays = target.sizes.runs, target.sizes.replays
    problem = on(target.device, target.sizes.layer(length).build())
    calls = run.sparse_calls(target.ops(kernel), problem)
    what = f"{kernel}, L = {length}: "

    def again() -> str:
        for computation, call in calls.items():
            first = call()
            assert all(call().equal(first) for _ in range(runs)), computation
        return f"{runs} runs of {len(calls)} computations"

    def on_streams() -> str:
        for computation, call in calls.items():
            first, results = call(), []
            for i in range(runs):
                with target.aside(i):
                    results.append(call())
            target.wait()
            assert all(result.equal(first) for result in results), computation
        return f"{runs} runs of {len(calls)} computations, each on a stream of its own"

    def replayed() -> str:
        for computation, call in calls.items():
            replay, captured = target.capture(call)
            for _ in range(replays):
                for tensor in problem[:3]:
                    tensor.normal_()
                replay()
                assert captured.equal(call()), computation
        return f"{replays} replays of {len(calls)} graphs, each time other inputs and values"

    yield checked(what + OVER_RUNS, again)
    if target.is_gpu:
        yield checked(what + ON_STREAMS, on_streams)
        yield checked(what + REPLAYED, replayed)


def graphed_training(target: Target, length: int = 150) -> str:
    """A run of ``train`` from graphs ends with the weights and patterns of one without."""
    cudnn, epochs = torch.backends.cudnn, target.sizes.epochs
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        X, y = batches(length, 10, target.device)
        recipe, states = Recipe(epochs=epochs, batch_size=BATCH), []
        model = network(target, target.first)
        for graphed in (False, True) if target.is_gpu else (False, False):
            twin = copy.deepcopy(model)
            history = train(twin, X, y, recipe, progress=False, cuda_graphs=graphed).history
            states.append(twin.state_dict())
    finally:
        cudnn.deterministic, cudnn.benchmark = before
    updates = sum(bool(row["updated"]) for row in history)
    for name, tensor in states[0].items():
        assert tensor.equal(states[1][name]), f"{name} differs"
    assert not states[0]["blocks.1.conv.values"].equal(model.state_dict()["blocks.1.conv.values"])
    return f"{epochs * 10} steps with {updates} updates of the patterns"


def sanitizer() -> str:
    """Where compute-sanitizer lies; empty if it is not installed."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = [None, home / "bin", home / "compute-sanitizer", home / "extras" / "compute-sanitizer"]
    found = (shutil.which("compute-sanitizer", path=place and str(place)) for place in places)
    return next(filter(None, found), "")


def sanitized(target: Target, seconds: float) -> Iterator[Record]:
    """What compute-sanitizer says of some cases, PyTorch's caching allocator off; all at once."""
    names = [f"{tool}, {kernel}" for tool in SANITIZERS for kernel in target.kernels]
    program = sanitizer()
    if not program or not target.is_gpu:
        why = "compute-sanitizer is not installed" if target.is_gpu else "there is no GPU"
        for name in names:
            yield {"check": name, "ok": None, "result": f"not run: {why}"}
        return
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running = []
    for name in names:
        tool, _, kernel = name.partition(", ")
        command = [program, "--tool", tool, "--error-exitcode", "9"]
        command += ["--target-processes", "application-only"]
        if (
            tool == "memcheck"
        ):  # torch asks for what a driver may not have; ops check their own calls
            command += ["--report-api-errors", "no"]
        command += [sys.executable, "-c"]
        code = f"from benchmarks import gpu_checks; gpu_checks.small_driver({kernel!r})"
        running.append(
            subprocess.Popen(
                [*command, code], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    end = time.monotonic() + seconds
    for name, process in zip(names, running, strict=True):
        try:
            output = process.communicate(timeout=max(0.1, end - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            yield {"check": name, "ok": None, "result": f"not finished after {seconds:.0f} s"}
        else:
            yield {"check": name} | verdict(process.returncode, output)


def verdict(code: int, output: str) -> Record:
    """Read compute-sanitizer's output."""
    if "Device not supported" in output:
        return {"ok": None, "result": "not run: compute-sanitizer does not support this device"}
    summary = re.findall(r"=+ (\w+ SUMMARY: .*)", output)
    if code == 0 and summary:
        return {"ok": True, "result": f"clean ({summary[-1]})"}
    return {"ok": False, "result": output[-2000:]}


def small_driver(kernel: str) -> None:
    """What runs under compute-sanitizer: every kernel, and random cases."""
    target = Target("cuda")
    if kernel == "triton":  # each kind of case is compiled anew
        random_cases(target, kernel, 3, dtype="float32", padding_mode="replicate")
    else:
        every_kernel(target)
        random_cases(target, kernel, 20)
