"""``python -m benchmarks.gpu --out FILE``: measure and check the GPU kernels.

Compares a DSN's layer and training step with dense ones at every precision, eager and as CUDA
graphs, in single weights and in blocks. Then the kernels' tests run, and compute sanitizers watch
one call to each kernel. Each row is printed and saved at once. After an error that broke the
device, run the other parts with ``--parts``, and write them to another file.

On a machine with a GPU, nvcc, PyTorch and pytest, from the root of the source tree (15 minutes)::

    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0   # 9.0: H100 and H200; 8.0: A100
    python3 setup.py -q build_ext --inplace 2>&1 | tail -n 20
    python3 -m benchmarks.gpu --out gpu.json

Copy the file to ``benchmarks/results/gpu.json``. ``--device cpu`` is a trial run without a GPU, on
a small network. ``--parts once`` calls each kernel once, for a profiler such as::

    ncu --set full --profile-from-start off python3 -m benchmarks.gpu --parts once --out once.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import layer, step, tables
from benchmarks.gpu.target import Row, Target
from benchmarks.recording import measurement_context, write_json
from sparseconv.core.files import check_writable


def once(target: Target, lengths: Sequence[int]) -> Iterator[Row]:
    """Compile each kernel, then call it once, for profilers and sanitizers."""
    calls = layer.all_calls(target, lengths[0])
    for call in calls:
        call()
    with torch.cuda.profiler.profile() if target.device.type == "cuda" else nullcontext():
        for call in calls:
            call()
        target.clock()
    yield from ()


Part = Callable[[Target, Sequence[int]], Iterator[Row]]
PARTS: dict[str, Part] = {
    "layer": layer.rows,
    "step": step.rows,
    "blocks": partial(layer.rows, blocks=True),
    "blocks, step": partial(step.rows, blocks=True),
    "density": layer.density_rows,
    "update": step.update_rows,
    "networks": step.network_rows,
    "norm": step.norm_rows,
    "once": once,
}
_PYTEST = (sys.executable, "-m", "pytest", "-v")
_TESTS = (*_PYTEST, "tests/kernels/test_kernels.py", "-k")
# Each tensor gets its own memory: a wrong access could hit a neighbour in torch's cache.
_SANITIZER = (
    "env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode", "9",
)  # fmt: skip
_ONCE = (sys.executable, "-m", "benchmarks.gpu", "--parts", "once", "--out", "/dev/null")
CHECKS = {
    "tests of cuda": (*_TESTS, "cuda"),
    "tests of triton": (*_TESTS, "triton"),
    "tests of blocks": (*_PYTEST, "tests/kernels/triton/test_triton_blocks.py"),
    "tests of updates": (*_PYTEST, "tests/dst/test_dst_on_gpu.py"),
    "tests of graphs": (*_PYTEST, "tests/training/test_graphed.py"),
    "memcheck": (*_SANITIZER, "--tool", "memcheck", *_ONCE),
    "racecheck": (*_SANITIZER, "--tool", "racecheck", *_ONCE),
}


def check(name: str) -> dict[str, Any]:
    """Run a command and print its output; return whether it succeeded, and the output's end."""
    try:
        running = subprocess.Popen(
            CHECKS[name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        return {"check": name, "ok": False, "result": str(error)}
    lines = []
    with running:
        for line in running.stdout or ():  # a run that is cut off has named its failures
            print(line, end="", flush=True)
            lines.append(line)
    return {"check": name, "ok": running.returncode == 0, "result": "".join(lines)[-8000:]}


def machine(device: torch.device) -> dict[str, str]:
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
    names = [name for name in (*PARTS, *CHECKS) if name != "once"]
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", choices=(*PARTS, *CHECKS), nargs="+", default=names)
    parser.add_argument("--lengths", type=int, nargs="+", default=[150, 2709, 512])
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds of each candidate")
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.out)
        target = Target(arguments.device, arguments.rounds)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    found: dict[str, Any] = {
        "machine": machine(target.device), "missing": target.missing, "checks": [], "rows": []
    }  # fmt: skip
    for name in arguments.parts:
        if name in CHECKS:
            found["checks"].append(check(name))
            print(tables.checks(found["checks"][-1:]).markdown(), flush=True)
        else:
            for row in PARTS[name](target, arguments.lengths):
                found["rows"].append({"part": name} | row)
                write_json(found, arguments.out)
                print(tables.times(row).markdown(), flush=True)
        write_json(found, arguments.out)
    return int(not all(check["ok"] for check in found["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
