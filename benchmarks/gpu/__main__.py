"""``python -m benchmarks.gpu --out FILE``: everything that only a GPU can say of the GPU kernels.

Results are checked against float64; the layer of a Dynamic Sparse Network is timed beside dense at
every precision, and a training step too; eager, as CUDA graphs and by torch.compile. Each job is
saved as soon as it is done, and one that fails takes no other along: what it said is in the file.

On a machine with a GPU, nvcc and PyTorch, from the root of the sources::

    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0   # 9.0: H100 and H200; 8.0: A100
    python3 setup.py -q build_ext --inplace && python3 -m benchmarks.gpu --out gpu.json

and the file goes to ``benchmarks/results/gpu.json``. It has never been run on a GPU; ``--device
cpu`` tries it where there is none, on a small network.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import checks, layer, step, tables
from benchmarks.gpu.target import Target
from sparseconv.bench.document import write_json
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.machine import measurement_context


def jobs(target: Target, arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is done, by name; the most important first."""
    for backend in target.backends:
        cases = partial(checks.random_cases, target, backend, arguments.cases)
        yield f"{backend}: random cases", cases
    for length in arguments.lengths:
        for computation in COMPUTATIONS:
            row = partial(layer.row, target, length, computation, arguments.rounds)
            yield f"{computation}, L = {length}", row
    for length in arguments.step_lengths:
        rounds = max(2, arguments.rounds // 3)
        yield f"training step, L = {length}", partial(step.row, target, length, rounds)
    for backend in target.backends:
        for length in arguments.lengths:
            name = f"{backend}, L = {length}: the same bits"
            yield name, partial(checks.same_bits, target, backend, length)


def measure(target: Target, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do all jobs, saving after each."""
    found: dict[str, Any] = {
        "machine": machine(target.device), "checks": [], "rows": [], "failed": [],
    }  # fmt: skip
    for name, job in jobs(target, arguments):
        try:
            result = job()
        except AssertionError as error:
            found["checks"].append({"check": name, "ok": False, "result": str(error)})
        except Exception:
            found["failed"].append({"job": name, "why": traceback.format_exc()[-3000:]})
        else:
            if isinstance(result, str):
                found["checks"].append({"check": name, "ok": True, "result": result})
            else:
                found["rows"].append(result)
        write_json(found, arguments.out)
        print(f"{name}: done", flush=True)
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
    parser.add_argument("--lengths", type=int, nargs="+", default=[537, 2709, 150])
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
    print("", tables.times(found).markdown(), tables.checks(found).markdown(), sep="\n")
    for failure in found["failed"]:
        print(f"\n{failure['job']} FAILED:\n{failure['why']}", file=sys.stderr)
    return int(bool(found["failed"]) or not all(check["ok"] for check in found["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
