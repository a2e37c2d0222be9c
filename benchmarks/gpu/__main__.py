"""``python -m benchmarks.gpu --out FILE``: everything that only a GPU can say of the GPU kernels.

The layer of a Dynamic Sparse Network is timed beside dense at every precision, and a training step
too; eager and as CUDA graphs. The test suite, sanitizers and profilers run on the kernels. Each
part is a process of its own with a limit, which saves what it has after each row: one that fails,
hangs or breaks the device takes no other along, and what it said is in the file. Dense and Triton's
kernels need no extension; a part in which CUDA C++ broke is run again without it.

On a machine with a GPU, nvcc, PyTorch and pytest, from the root of the sources, in ten minutes::

    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0   # 9.0: H100 and H200; 8.0: A100
    python3 setup.py -q build_ext --inplace 2>&1 | tail -n 20
    python3 -m benchmarks.gpu --seconds 450 --out gpu.json

and the file goes to ``benchmarks/results/gpu.json``. ``--device cpu`` tries it where there is no
GPU, on a small network.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import tables
from sparseconv.bench.document import write_json
from sparseconv.core.checks import count
from sparseconv.core.files import check_writable
from sparseconv.measure.timing import LEAST_ROUNDS

WORK = (sys.executable, "-m", "benchmarks.gpu.parts")
TESTS = (sys.executable, "-m", "pytest", "-q", "-x", "tests/kernels/test_kernels.py", "-k")
# Each tensor in memory of its own, or what lies beside it would hide a wrong access.
SANITIZER = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode",
             "9", "--tool")  # fmt: skip
NCU = ("ncu", "--clock-control", "none", "--set", "full", "--profile-from-start", "off")


class Part(NamedTuple):
    """What is done in one process, in at most so many seconds."""

    seconds: float
    runs: str = ""  # of benchmarks.gpu.parts
    tool: tuple[str, ...] = ()  # before that, or alone


# Most wanted first.
PARTS = {
    "ceilings": Part(40, "ceilings"),
    "layer": Part(200, "layer"),
    "step": Part(150, "step"),
    "tests of cuda": Part(60, "", (*TESTS, "cuda")),
    "ncu": Part(60, "once", NCU),
    "memcheck": Part(40, "once", (*SANITIZER, "memcheck")),
    "racecheck": Part(40, "once", (*SANITIZER, "racecheck")),
    "registers": Part(20, "", ("cuobjdump", "-res-usage")),
    "profile": Part(60, "profile"),
    "tests of triton": Part(300, "", (*TESTS, "triton")),
    "compiled": Part(300, "compiled"),
    "density": Part(120, "density"),
}


def ended(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run a process and whatever it starts; its exit status, and the end of what it said."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
            log.write(f"\nstopped after {seconds:.0f} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(0)
        return code, log.read()[-8000:]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do all parts, saving after each."""
    found: dict[str, Any] = {"machine": {}, "checks": [], "rows": [], "texts": [], "left_out": []}
    begin = time.monotonic()
    words = ("--device", arguments.device, "--rounds", str(arguments.rounds), "--lengths",
             *map(str, arguments.lengths))  # fmt: skip
    for name in arguments.parts:
        part = PARTS[name]
        missing = [word for word in ("compute-sanitizer", "ncu", "cuobjdump")
                   if word in part.tool and not shutil.which(word)]  # fmt: skip
        for without in ((), ("--without", "cuda")):
            left = min(part.seconds, arguments.seconds - (time.monotonic() - begin))
            if missing or left <= 0:
                why = f"needs {missing[0]}" if missing else f"{arguments.seconds:.0f} s were over"
                found["left_out"].append({"part": name, "why": why})
                break
            with tempfile.TemporaryDirectory() as folder:
                own = Path(folder) / "part.json"
                command = part.tool
                if part.runs:
                    command += (*WORK, part.runs, "--out", str(own), *words, *without)
                elif name == "registers":
                    command += (*map(str, Path("sparseconv").glob("_C*.so")),)
                code, said = ended(command, left)
                done = json.loads(own.read_text()) if own.exists() else {}
            found["machine"] |= done.get("machine", {})
            known = {tables.what(row) for row in found["rows"]}
            found["rows"] += [r for r in done.get("rows", []) if tables.what(r) not in known]
            found["texts"] += done.get("texts", [])
            if part.tool or code:
                label = " ".join((name, *without))
                found["checks"].append({"check": label, "ok": not code, "result": said})
            write_json(found, arguments.out)
            how = "failed" if code else "done"
            print(f"{time.monotonic() - begin:.0f} s: {name} {how}", flush=True)
            if part.tool or not code:
                break
    write_json(found, arguments.out)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=3600, help="for all of it")
    parser.add_argument("--lengths", type=int, nargs="+", default=[150, 2709, 512])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each candidate")
    arguments = parser.parse_args(argv)
    try:
        count("--rounds", arguments.rounds, LEAST_ROUNDS)  # with fewer no interval of 95 % exists
        for length in arguments.lengths:
            count("--lengths", length)
        if not 0 <= arguments.seconds < math.inf:
            raise ValueError(
                f"--seconds must be a number of at least 0, but got {arguments.seconds}"
            )
        check_writable(arguments.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = measure(arguments)
    print("", tables.times(found).markdown(), tables.checks(found).markdown(),
          sep="\n")  # fmt: skip
    return int(not all(check["ok"] for check in found["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
