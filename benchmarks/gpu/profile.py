"""What explains the times: the device's own ceilings, its profilers, and the code that ran."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from benchmarks.gpu import layer, step
from benchmarks.gpu.target import PRECISIONS, Call, Candidate, Make, Row, Target, tf32
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.ops.backends import extension

THIS = (sys.executable, "-m", "benchmarks.gpu", "--cases", "20", "--rounds", "1", "--lengths")
COUNTERS = ("ncu", "--clock-control", "none", "--set", "full", "-k", "regex:correlate|wgrad")
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
# By name: an outside tool with its arguments, and the part that it watches.
WATCHED: dict[str, tuple[tuple[str, ...], str]] = {
    "ncu": ((*COUNTERS, "-c", "30"), "kernels"),
    **{tool: ((*SANITIZER, tool), "right")
       for tool in ("memcheck", "racecheck", "synccheck", "initcheck")},
}  # fmt: skip


def products(target: Target, rounds: int) -> Row:
    """What the device multiplies at most, by its own matrix products."""
    n, found = target.sizes.matrix, {}
    a, b = (torch.randn(n, n, device=target.device) for _ in range(2))
    for precision, (dtype, allowed) in PRECISIONS.items():
        product = partial(torch.mm, a.to(dtype), b.to(dtype))
        found[f"matrix product {precision}"] = Candidate(product, allowed)
    return target.row("products", n, {"": lambda: (found, 0.0)}, rounds, 2 * n**3)


def ceilings(target: Target, rounds: int) -> Row:
    """What it copies at most, and the replay of a graph with next to nothing in it."""
    n = target.sizes.matrix
    a, b = (torch.zeros(n, n, device=target.device) for _ in range(2))
    copy = {f"{4 * n * n / 1e6:.3g} MB read and written": Candidate(partial(b.copy_, a))}
    makes: dict[str, Make] = {"copy": lambda: (copy, 0.0)}
    if target.graphs:
        makes["graph"] = lambda: (
            {"graph of one addition": Candidate(target.capture(lambda: a[0].add_(1))[0])}, 0.0
        )  # fmt: skip
    return target.row("ceilings", n, makes, rounds)


def table_of(target: Target, call: Call) -> str:
    """What torch's profiler saw of a call after another one: kernels by their time."""
    call()
    kind = target.device.type
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (kind == "cuda")]
    with torch.profiler.profile(activities=activities) as seen:
        call()
        target.clock()
    by = f"self_{kind}_time_total"
    return str(seen.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=90))


def layers(target: Target, length: int) -> dict[str, str]:
    """Which kernels each form of the layer runs, cuDNN's algorithms among them."""
    found = {}
    for form in layer.forms(target, target.layer(length).build(), "sparse dense"):
        for computation in COMPUTATIONS:
            name = f"{form.name} {computation} L = {length}"
            try:
                with tf32(form.tf32):
                    found[name] = table_of(target, form.make()[computation])
            except Exception as reason:
                found[name] = f"{type(reason).__name__}: {reason}"
    return found


def training(target: Target, length: int, name: str) -> dict[str, str]:
    """What a training step consists of: so many steps as a call is timed for."""
    model = step.model_of(target, name)
    call = step.steps(target, model, length, "fp32", "eager", updates=name != "dense")
    return {f"training {name} L = {length}": table_of(target, call)}


def watched(name: str, out: Path, length: int) -> str:
    """Let a tool watch a small run; what it prints is beside the results."""
    command, part = WATCHED[name]
    its = out.with_suffix(f".{name}.json")
    return written(out, name, *command, *THIS, str(length), "--only", part, "--out", str(its))


def machine_code(out: Path) -> str:
    """The code that was measured, and its registers and spills."""
    assert extension is not None, "the extension is not built"
    return written(out, "sass", "cuobjdump", "-res-usage", "-sass", str(extension.__file__))


def written(out: Path, name: str, *command: str) -> str:
    log = out.with_suffix(f".{name}.txt")
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=file, timeout=240).returncode
    assert code == 0, f"{command[0]} ended with {code}: see {log.name}"
    return f"see {log.name}"
