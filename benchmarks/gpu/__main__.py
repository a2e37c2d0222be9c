"""``python -m benchmarks.gpu --out FILE``: everything that only a GPU can say of the GPU kernels.

Results are checked against float64; the layer of a Dynamic Sparse Network is timed beside dense at
every precision, and a training step too; eager and as CUDA graphs. Each job is saved as soon as it
is done, and one that fails takes no other along: what it said is in the file. What a part needs
and does not find is said, too; dense and Triton's kernels need no extension.

On a machine with a GPU, nvcc and PyTorch, from the root of the sources, in ten minutes::

    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0   # 9.0: H100 and H200; 8.0: A100
    python3 setup.py -q build_ext --inplace > build.log 2>&1 &
    python3 -m benchmarks.gpu --only ceilings kernels --seconds 80 --out before.json; wait
    python3 -m benchmarks.gpu --seconds 480 --out gpu.json

and the last file goes to ``benchmarks/results/gpu.json``. It has never been run on a GPU;
``--device cpu`` tries it where there is none, on a small network.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import checks, layer, profile, step, tables
from benchmarks.gpu.target import Target
from sparseconv.bench.document import write_json
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.machine import measurement_context

PARTS = ("ceilings", "kernels", "profile", "step", "right", "layer", "bits", "watched")


class Job(NamedTuple):
    """What is done at once: a row of times, the words of a check, or texts by name."""

    part: str
    name: str
    do: Callable[[], Any]
    needs: str = ""  # a tool


def jobs(target: Target, arguments: argparse.Namespace) -> Iterator[Job]:
    """All of them; the first lengths first."""
    few = max(2, arguments.rounds // 3)
    yield Job("ceilings", "copy and launch", partial(profile.ceilings, target, few))
    yield Job("ceilings", "matrix products", partial(profile.products, target, few))
    for length in arguments.lengths:
        for computation in COMPUTATIONS:
            for part, kinds, rounds in (
                ("kernels", "sparse", few), ("layer", "sparse dense", arguments.rounds)
            ):  # fmt: skip
                do = partial(layer.row, target, length, computation, rounds, kinds)
                yield Job(part, f"{computation}, L = {length}", do)
        if length in arguments.lengths[:2]:
            yield Job("profile", f"kernels, L = {length}", partial(profile.layers, target, length))
        for backend in target.backends:
            do = partial(checks.same_bits, target, backend, length)
            yield Job("bits", f"{backend}, L = {length}: the same bits", do)
    yield Job("profile", "machine code", partial(profile.machine_code, arguments.out), "cuobjdump")
    yield Job("step", "planning", partial(step.planning, target, few))
    for length in arguments.step_lengths:
        yield Job("step", f"training step, L = {length}", partial(step.row, target, length, few))
        for name in (*target.backends, "dense"):
            do = partial(profile.training, target, length, name)
            yield Job("profile", f"training step, L = {length}, {name}", do)
    for backend in target.backends:
        cases = partial(checks.random_cases, target, backend, arguments.cases)
        yield Job("right", f"{backend}: random cases", cases)
    for name, (command, _) in profile.WATCHED.items():
        part = "profile" if name == "ncu" else "watched"
        do = partial(profile.watched, name, arguments.out, arguments.lengths[0])
        yield Job(part, name, do, command[0])


def measure(target: Target, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do all jobs, part by part, saving after each."""
    absent = [{"part": "", "job": name, "why": why} for name, why in target.missing.items()]
    found: dict[str, Any] = {
        "machine": machine(target.device), "checks": [], "rows": [], "profiles": [],
        "failed": [], "left_out": absent,
    }  # fmt: skip
    begin = time.monotonic()
    for job in sorted(jobs(target, arguments), key=lambda job: PARTS.index(job.part)):
        spent = time.monotonic() - begin
        if job.part not in arguments.only:
            continue
        try:
            if job.needs and not shutil.which(job.needs):
                result: Any = {"job": job.name, "why": f"needs {job.needs}, which is not here"}
            elif spent > arguments.seconds:
                result = {"job": job.name, "why": f"{arguments.seconds:.0f} seconds were over"}
            else:
                result = job.do()
        except AssertionError as error:
            found["checks"].append({"check": job.name, "ok": False, "result": str(error)})
        except Exception:
            found["failed"].append({"job": job.name, "why": traceback.format_exc()[-3000:]})
        else:
            if isinstance(result, str):
                found["checks"].append({"check": job.name, "ok": True, "result": result})
            elif "why" in result:
                found["left_out"].append({"part": job.part} | result)
            elif "samples_ms" in result:
                found["rows"].append({"part": job.part} | result)
            else:
                found["profiles"] += [{"of": of, "text": text} for of, text in result.items()]
        write_json(found, arguments.out)
        print(f"{spent:.0f} s, {job.part}: {job.name}", flush=True)
    return found


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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--seconds", type=float, default=3600, help="begin nothing after these")
    parser.add_argument("--lengths", type=int, nargs="+", default=[150, 2709, 512])
    parser.add_argument("--step-lengths", type=int, nargs="+", default=[150, 2709])
    parser.add_argument("--cases", type=int, default=200, help="random cases to check")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each candidate")
    arguments = parser.parse_args(argv)
    try:
        target = Target(arguments.device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    found = measure(target, arguments)
    print(
        "", tables.times(found, tables.read()).markdown(), tables.checks(found).markdown(), sep="\n"
    )
    for failure in found["failed"]:
        print(f"\n{failure['job']} FAILED:\n{failure['why']}", file=sys.stderr)
    return int(bool(found["failed"]) or not all(check["ok"] for check in found["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
