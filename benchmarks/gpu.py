"""``python -m benchmarks.gpu``: all that only a GPU can tell of the GPU kernels, in one run.

In parts, the most important first, each in a process of its own with a limit of seconds, so that
none can take the others along: results are right (a wrong kernel is not timed); the layer of a
Dynamic Sparse Network beside dense at every precision, the error against float64 beside each time;
training steps, eager and as CUDA graphs, updates of the patterns included; bits that repeat;
compute-sanitizer; each CUDA kernel forced; dense as torch.compile makes it, which every goal for
graphs needs; the same of Triton's kernels. What was found is saved after each row, and ``python -m
benchmarks.readme`` puts it into the README.

On a machine with a GPU, CUDA's nvcc and PyTorch, from the root of the sources, the kernels built in
place first (five minutes of one core, shared by all)::

    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0   # 9.0: H100 and H200; 8.0: A100
    python3 setup.py -q build_ext --inplace && python3 -m benchmarks.gpu

or, to install the package as well, ``pip install --no-build-isolation .`` instead of the build.
Where commands are limited to ten minutes and only a folder ``$OUT`` comes back::

    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 PYTHONUNBUFFERED=1; \\
    python3 setup.py -q build_ext --inplace && \\
    python3 -m benchmarks.gpu --seconds 440 --out $OUT/gpu.json

and the file goes to ``benchmarks/results/gpu.json``. Where time is short, the last part has none
left. A second call with ``--part NAME --out FILE`` makes one part again, a record per line.

Nobody has run it on a GPU yet. ``--device cpu`` tries it where there is none, on a small network;
with ``TRITON_INTERPRET=1`` Triton's parts too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_checks, gpu_layer, gpu_step, gpu_tables
from benchmarks.gpu_target import PRECISIONS, Target
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.machine import measurement_context

RESULTS = Path(__file__).parent / "results" / "gpu.json"
LENGTHS = (537, 2709, 150)
STEP_LENGTHS = (150, 2709)  # N * L = 2 400, and a long one
LEAST_SECONDS = 10  # with less left, no part is begun
Record = dict[str, Any]


class Options(NamedTuple):
    """What the parts are told."""

    lengths: list[int]
    step_lengths: list[int]
    cases: int
    rounds: int
    seconds: float  # that the part has


class Part(NamedTuple):
    """Some of the measurements; only after those that it needs have not failed."""

    name: str
    seconds: int  # at the most
    needs: tuple[str, ...]
    run: Callable[[Target, Options], Iterator[Record]]


def layers(target: Target, options: Options) -> Iterator[gpu_layer.Layer]:
    for length in options.lengths:
        yield gpu_layer.Layer(target, length, options.rounds)


def triton(target: Target, options: Options) -> Iterator[Record]:
    """Triton compiles each kind of case anew, so few are checked; the interpreter did more."""
    fixed = {"dtype": "float32", "padding_mode": "zeros", "bias": False, "n": 2}
    yield gpu_checks.checked(
        "triton: random cases",
        lambda: gpu_checks.random_cases(target, "triton", max(1, options.cases // 20), **fixed),
    )
    for layer in layers(target, options):
        yield from layer.triton_rows()
    kernels = [target.first, "triton"]
    length = options.step_lengths[0]
    yield gpu_step.step_row(target, length, kernels, ["fp32"], max(2, options.rounds // 3))


def compiled(target: Target, options: Options) -> Iterator[Record]:
    """torch.compile of the dense layer takes seconds for each row: what goals speak of first."""
    made = dict(zip(options.lengths, layers(target, options), strict=True))
    rows = itertools.product(options.lengths, PRECISIONS, COMPUTATIONS)
    for length, *row in sorted(rows, key=lambda row: not gpu_tables.is_goal(*row)):
        yield made[length].compiled_row(*row)


def compiled_steps(target: Target, options: Options) -> Iterator[Record]:
    """Of the dense network it takes up to half a minute: only what goals speak of."""
    rounds, short = max(2, options.rounds // 6), options.step_lengths[0]
    for precision, length in (*(("fp32", n) for n in options.step_lengths), ("TF32", short)):
        yield gpu_step.step_row(target, length, [target.first], [precision], rounds, "compiled")


def of_layers(name: str) -> Callable[[Target, Options], Iterator[Record]]:
    """A part that makes these rows at every length."""

    def run(target: Target, options: Options) -> Iterator[Record]:
        for layer in layers(target, options):
            yield from getattr(layer, name)()

    return run


# Expected of an H200 in seconds, an estimate from turns, calls and computed times: right 40, layer
# 60, step 60, reproducible 30, compute-sanitizer 60, kernels 15, compiled 60, compiled-steps 60,
# triton 60.
PARTS = (
    Part("right", 100, (), lambda t, o: gpu_checks.right(t, o.cases)),
    Part("layer", 120, ("right",), of_layers("rows")),
    Part(
        "step", 120, ("right",),
        lambda t, o: gpu_step.rows(t, o.step_lengths, max(2, o.rounds // 3)),
    ),
    Part("reproducible", 90, ("right",), lambda t, o: gpu_checks.reproducible(t)),
    Part("compute-sanitizer", 120, (), lambda t, o: gpu_checks.sanitized(t, o.seconds - 10)),
    Part("kernels", 40, ("right",), of_layers("kernel_rows")),
    Part("compiled", 100, ("right",), compiled),
    Part("compiled-steps", 90, ("right",), compiled_steps),
    Part("triton", 100, (), triton),
)  # fmt: skip
# What runs on which device: a CPU has neither graphs nor kernels to choose from.
SKIPPED = {"cpu": ("compute-sanitizer", "kernels", "compiled", "compiled-steps"), "cuda": ()}


def records(target: Target, part: Part, options: Options) -> Iterator[Record]:
    if part.name == "triton" and "triton" not in target.kernels:
        why = f"not run: {target.states['triton']}"
        yield {"check": "triton", "ok": None, "result": why}
    else:
        yield from part.run(target, options)


def child(arguments: argparse.Namespace, options: Options) -> int:
    """Run one part and write its records, a line each, as they come."""
    part = next(part for part in PARTS if part.name == arguments.part)
    with arguments.out.open("a") as file:
        for record in records(Target(arguments.device), part, options):
            file.write(json.dumps(record) + "\n")
            file.flush()
    return 0


Keep = Callable[[list[Record]], None]


def spawn(part: Part, arguments: argparse.Namespace, options: Options, keep: Keep) -> str:
    """Run one part in a process of its own, handing its records on; what went wrong, if any."""
    with tempfile.TemporaryDirectory() as folder:
        out, log, seen = Path(folder) / "records", Path(folder) / "log", 0
        out.touch()
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part.name, "--out", str(out)]
        for name, value in (
            ("device", [arguments.device]), ("lengths", options.lengths),
            ("step-lengths", options.step_lengths), ("cases", [options.cases]),
            ("rounds", [options.rounds]), ("seconds", [options.seconds]),
        ):  # fmt: skip
            command += [f"--{name}", *map(str, value)]
        end, code = time.monotonic() + options.seconds, None
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        while code is None and time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=min(2.0, max(0.0, end - time.monotonic())))
            lines = out.read_text().split("\n")[:-1]  # whole ones
            keep([json.loads(line) for line in lines[seen:]])
            seen = len(lines)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started: nothing may time beside
        process.wait()
        if code is None:
            return f"stopped after {options.seconds:.0f} s"
        return f"failed with code {code}: {log.read_text()[-1500:]}" if code else ""


Run = Callable[[Part, argparse.Namespace, Options, Keep], str]


def measure(arguments: argparse.Namespace, options: Options, run: Run) -> dict[str, Any]:
    """Run the parts in turn, as long as there is time; save whatever comes at once."""
    begin = time.monotonic()
    found: dict[str, Any] = {
        "machine": machine(arguments.device), "parts": {}, "checks": [], "rows": [],
    }  # fmt: skip

    def keep(records: list[Record]) -> None:
        found["checks"] += [record for record in records if "check" in record]
        found["rows"] += [record for record in records if "check" not in record]
        if records:
            save(arguments.out, found)

    for part in PARTS:
        left = arguments.seconds - (time.monotonic() - begin)
        failed = [name for name in part.needs if found["parts"][name]["state"] == "failed"]
        state, why, start = "not run", "", time.monotonic()
        before = len(found["checks"])
        if part.name in SKIPPED[arguments.device]:
            why = "there is no GPU"
        elif failed:
            why = f"{failed[0]!r} failed"
        elif left < LEAST_SECONDS:
            why = f"no time was left of {arguments.seconds:.0f} s"
        else:
            told = options._replace(seconds=min(float(part.seconds), left))
            why = run(part, arguments, told, keep)
            wrong = any(check["ok"] is False for check in found["checks"][before:])
            state = "failed" if wrong or why.startswith("failed") else "stopped" if why else "done"
        spent = time.monotonic() - start
        found["parts"][part.name] = {
            "state": state, "why": why, "seconds": round(spent, 1), "limit": part.seconds,
        }  # fmt: skip
        print(f"{part.name}: {state} {why} ({spent:.0f} s)", flush=True)
        save(arguments.out, found)
    return found


def machine(device: str) -> dict[str, str]:
    """What the times are of."""
    facts = measurement_context() | {"device": device}
    if device == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        facts |= {
            "device": f"{name} (sm_{major}{minor})",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "triton": getattr(sys.modules.get("triton"), "__version__", "none"),  # torch's own
        }
    return facts


def save(path: Path, found: dict[str, Any]) -> None:
    """Write what was found; a run that is killed meanwhile leaves the file before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(path)


def main(argv: Sequence[str] | None = None, run: Run = spawn) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--step-lengths", type=int, nargs="+", default=STEP_LENGTHS)
    parser.add_argument("--cases", type=int, default=200, help="random cases to check first")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each candidate")
    parser.add_argument("--out", type=Path, help=f"{RESULTS} by default, if on a GPU")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help="only this one")
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        if arguments.device == "cpu":
            parser.error("a trial on a CPU is no result: name a file with --out")
        arguments.out = RESULTS
    options = Options(
        list(arguments.lengths), list(arguments.step_lengths), arguments.cases, arguments.rounds,
        arguments.seconds,
    )  # fmt: skip
    if arguments.part:
        return child(arguments, options)
    try:
        Target(arguments.device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    found = measure(arguments, options, run)
    print(*gpu_tables.report(found), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
