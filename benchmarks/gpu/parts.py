"""``python -m benchmarks.gpu.parts NAME --out FILE``: one part, in a process of its own."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.gpu import layer, step
from benchmarks.gpu.target import PRECISIONS, Call, Candidate, Make, Target
from sparseconv.bench.document import write_json
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.machine import measurement_context

Results = Iterator[dict[str, Any]]  # rows of times, and texts


def ceilings(target: Target, arguments: argparse.Namespace) -> Results:
    """What the device copies and multiplies at most, and a graph with next to nothing in it."""
    n = target.sizes.matrix
    a, b = (torch.randn(n, n, device=target.device) for _ in range(2))
    found = {f"{4 * n * n / 1e6:.3g} MB read and written": Candidate(partial(b.copy_, a))}
    makes: dict[str, Make] = {"copy": lambda: (found, 0.0)}
    if target.graphs:
        makes["graph"] = lambda: (
            {"graph of one addition": Candidate(target.capture(lambda: a[0].add_(1))[0])}, 0.0
        )  # fmt: skip
    yield target.row("ceilings", n, makes, arguments.rounds)
    products = {
        f"matrix product {name}": Candidate(partial(torch.mm, a.to(dtype), b.to(dtype)), allowed)
        for name, (dtype, allowed) in PRECISIONS.items()
    }
    yield target.row("products", n, {"": lambda: (products, 0.0)}, arguments.rounds, 2 * n**3)


def layers(target: Target, arguments: argparse.Namespace) -> Results:
    for length in arguments.lengths:
        for computation in COMPUTATIONS:
            yield layer.row(target, length, computation, arguments.rounds)


def densities(target: Target, arguments: argparse.Namespace) -> Results:
    """Few weights a kernel, by each backend: from how many on "auto" takes the CUDA kernels."""
    for shape, per_kernel in itertools.product(target.sizes.shapes, target.sizes.per_kernel):
        out_channels, in_channels, taps = shape
        for length in arguments.lengths:
            problem = layer.on(target.device, replace(
                target.layer(length), out_channels=out_channels, in_channels=in_channels,
                kernel_size=taps, pattern="random",
                density=per_kernel / taps,
            ).build())  # fmt: skip
            calls = {name: layer.sparse_calls(name, problem) for name in target.backends}
            for computation in COMPUTATIONS:
                made = {}
                for name in target.backends:
                    call, times = calls[name][computation], 1
                    if target.graphs:
                        times = target.sizes.replays
                        call, _ = target.capture(call, times)
                    made[name] = Candidate(call, times=times)
                what = f"{computation}, {shape}, {per_kernel:g} a kernel"
                yield target.row(
                    what, length, {"": lambda made=made: (made, math.nan)}, arguments.rounds
                )


def training(target: Target, arguments: argparse.Namespace) -> Results:
    for length in arguments.lengths[:2]:
        yield step.row(target, length, arguments.rounds)


def compiled(target: Target, arguments: argparse.Namespace) -> Results:
    for length in arguments.lengths[:2] if target.graphs else ():
        yield step.row(target, length, arguments.rounds, compiled=True)


def profile(target: Target, arguments: argparse.Namespace) -> Results:
    """Which kernels each form of the layer runs, cuDNN's algorithms among them; and a step."""
    length = arguments.lengths[0]
    for form in layer.forms(target, target.layer(length).build()):
        of = f"{form.name}, L = {length}"
        yield text_of(target, of, partial(layer.all_computations, form))
    for name in (*target.backends, "dense"):
        make = partial(step.steps, target, name, length, "fp32", "eager", name != "dense")
        yield text_of(target, f"training step, {name}, L = {length}", make)


def text_of(target: Target, of: str, make: Callable[[], Call]) -> dict[str, Any]:
    """What torch's profiler saw of a call after another one: kernels by their time."""
    kind = target.device.type
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (kind == "cuda")]
    try:
        call = make()
        call()
        with torch.profiler.profile(activities=activities) as seen:
            call()
            target.clock()
    except Exception as reason:
        return {"of": of, "text": f"{type(reason).__name__}: {reason}"}
    by = f"self_{kind}_time_total"
    return {"of": of, "text": str(seen.key_averages().table(
        sort_by=by, row_limit=12, max_name_column_width=90))}  # fmt: skip


def once(target: Target, arguments: argparse.Namespace) -> Results:
    """Each backend's computations, called once behind one call that compiles: for profilers."""
    calls = [
        call
        for backend in target.backends
        for call in layer.sparse_calls(
            backend, layer.on(target.device, target.layer(arguments.lengths[0]).build())
        ).values()
    ]
    for call in calls:
        call()
    target.clock()
    if target.device.type == "cuda":
        torch.cuda.profiler.start()
    for call in calls:
        call()
    target.clock()
    if target.device.type == "cuda":
        torch.cuda.profiler.stop()
    yield {"of": "once", "text": f"{len(calls)} calls"}


PARTS = {
    "ceilings": ceilings, "layer": layers, "step": training, "compiled": compiled,
    "profile": profile, "density": densities, "once": once,
}  # fmt: skip


def machine(device: torch.device) -> dict[str, str]:
    """What the times are of."""
    about = measurement_context() | {"device": device.type}
    if device.type == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        about |= {
            "device": f"{name} (sm_{major}{minor})",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "triton": getattr(sys.modules.get("triton"), "__version__", "none"),
        }
    return about


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.parts", description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=[150])
    parser.add_argument("--without", nargs="+", default=[], metavar="BACKEND")
    arguments = parser.parse_args(argv)
    target = Target(arguments.device, arguments.without)
    texts = [{"of": backend, "text": why} for backend, why in target.missing.items()]
    found: dict[str, Any] = {"machine": machine(target.device), "rows": [], "texts": texts}
    for result in PARTS[arguments.name](target, arguments):
        if "text" in result:
            texts.append(result)
        else:
            found["rows"].append({"part": arguments.name} | result)
        write_json(found, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
