"""What explains the times: the device's own ceilings, its profilers, and the code that ran."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import layer, step
from benchmarks.gpu.target import PRECISIONS, Candidate, Row, Target, tf32

THIS = (sys.executable, "-m", "benchmarks.gpu", "--cases", "20", "--rounds", "1", "--lengths")
SANITIZE = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
# Name: the tool, its arguments, and what it watches.
WATCHED: dict[str, tuple[tuple[str, ...], str]] = {
    "ncu": (("ncu", "--clock-control", "none", "--set", "full", "-k",
             "regex:correlate|wgrad", "-c", "30"), "kernels"),
    **{tool: ((*SANITIZE, tool), "right")
       for tool in ("memcheck", "racecheck", "synccheck", "initcheck")},
}  # fmt: skip


def ceilings(target: Target, rounds: int) -> Row:
    """A copy, matrix products, and the replay of an empty graph."""
    n, device = target.sizes.matrix, target.device
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    candidates = {f"copy of {8 * n * n / 1e9:.3g} GB": Candidate(partial(b.copy_, a))}
    for precision, (dtype, allowed) in PRECISIONS.items():
        x, y = a.to(dtype), b.to(dtype)
        candidates[f"matrix product {precision}"] = Candidate(partial(torch.mm, x, y), allowed)
    if target.graphs:
        small = torch.zeros(1, device=device)
        replay, _ = target.capture(lambda: small.add_(1))
        candidates["graph of one small kernel"] = Candidate(replay)
    before = target.state()
    return {
        "computation": "ceilings", "length": n, "batch": 1, "flop": 2 * n**3,
        "samples_ms": target.milliseconds(candidates, rounds=rounds),
        "error": dict.fromkeys(candidates, 0.0), "absent": {},
        "clocks": [before, target.state()],
    }  # fmt: skip


def table_of(target: Target, call: Callable[[], Any]) -> str:
    """What torch's profiler saw of a call after another one: kernels by their time."""
    call()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (target.device.type == "cuda")]
    with profile(activities=activities) as seen:
        call()
        target.synchronize()
    by = f"self_{target.device.type}_time_total"
    return str(seen.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=90))


def kernels(target: Target, length: int) -> dict[str, str]:
    """Which kernels each form of the layer runs, cuDNN's algorithms among them."""
    problem = layer.on(target.device, target.layer(length).build())
    found = {}
    for form in layer.forms(target, problem, "sparse dense"):
        for computation in ("fprop", "dgrad", "wgrad"):
            name = f"{form.name} {computation} L = {length}"
            try:
                with tf32(form.tf32):
                    found[name] = table_of(target, form.make()[computation])
            except Exception as reason:
                found[name] = f"{type(reason).__name__}: {reason}"
    return found


def training(target: Target, length: int) -> dict[str, str]:
    """What a training step consists of: so many steps as a call is timed for."""
    found = {}
    for name in (*target.backends, "dense"):
        model = step.model_of(target, name)
        call = step.steps(target, model, length, "fp32", "eager", updates=name != "dense")
        found[f"training {name} L = {length}"] = table_of(target, call)
    return found


def watched(name: str, out: Path, lengths: Sequence[int]) -> str:
    """Let a tool watch a small run; what it prints is beside the results."""
    command, part = WATCHED[name]
    log = out.with_suffix(f".{name}.txt")
    mine = (*THIS, *map(str, lengths), "--only", part, "--out", str(out.with_suffix(f".{name}")))
    with log.open("w") as file:
        code = subprocess.run((*command, *mine), stdout=file, stderr=file, timeout=240).returncode
    assert code == 0, f"{name} ended with {code}: see {log.name}"
    return f"see {log.name}"


def machine_code(out: Path) -> str:
    """The code that was measured, and its registers and spills."""
    from sparseconv.ops.backends import extension

    assert extension is not None, "the extension is not built"
    log = out.with_suffix(".sass.txt")
    with log.open("w") as file:
        command = ("cuobjdump", "-res-usage", "-sass", str(extension.__file__))
        subprocess.run(command, stdout=file, check=True)
    return f"see {log.name}"
