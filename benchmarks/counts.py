"""``python -m benchmarks.counts``: how many instructions the kernels execute, counted exactly.

The AVX2 kernels, which valgrind can run, are compiled with setup.py's flags into a small program
without torch (counts_driver.cpp) and run under callgrind. The counts depend on nothing but the
sources, the flags and the compiler, so a change of a few per cent is seen on any machine, however
busy. They are stored per compiler; ``--write`` stores those of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseconv.bench.cases import CASES, Problem
from sparseconv.measure.table import Table
from sparseconv.ops import calls as ops
from sparseconv.ops.backends import extension

ROOT = Path(__file__).parent.parent
STORED = ROOT / "benchmarks" / "results" / "instruction_counts.json"
# Several channel blocks and short pieces; one block and full pieces. Callgrind takes a second for
# some 10 million instructions.
COUNTED = ("dsn_evolved_L24", "first_layer_L128")
COMPUTATIONS = ("fprop", "dgrad", "wgrad")
# Nothing is random in a count; this much is left to changes that are not about speed.
ALLOWED = 0.02

Counts = dict[str, dict[str, int]]  # case -> computation -> instructions


class CountingError(RuntimeError):
    """The kernels could not be counted; the text says which step failed and why."""


def missing() -> str:
    """What this machine lacks for counting; empty if nothing."""
    if extension is None or "avx2" not in extension.isas():
        return "the C++ extension is not built, or this CPU has no AVX2"
    for tool in ("valgrind", compiler()):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return ""


def compiler() -> str:
    """The C++ compiler's command: the one that builds the extension."""
    return os.environ.get("CXX", "c++")


def compiler_version() -> str:
    """Name, distribution's build and version: flags that are on by default differ with each."""
    done = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    first = done.stdout.splitlines()[0]
    gcc = "Free Software Foundation" in done.stdout
    # gcc's first word is the command it was called by.
    return f"gcc {first.split(' ', 1)[1]}" if gcc else first


def compile_flags() -> list[str]:
    """What setup.py compiles the kernels with."""
    import setuptools  # noqa: F401  (brings distutils where Python has none)
    from distutils.core import run_setup  # isort: skip

    modules: Any = run_setup(str(ROOT / "setup.py"), stop_after="init").ext_modules
    return list(modules[0].extra_compile_args["cxx"])


def build(folder: Path, csrc: Path = ROOT / "csrc") -> Path:
    """Compile the kernels in ``csrc`` with the driver.

    Raises:
        CountingError: with the compiler's words.
    """
    program = folder / "counts"
    sources = [csrc / "cpu" / name for name in ("kernels_avx2.cpp", "layout.cpp", "plan.cpp")]
    driver = Path(__file__).with_name("counts_driver.cpp")
    command = [compiler(), *compile_flags(), f"-I{csrc}", "-o", program, driver, *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CountingError(f"the kernels do not compile for counting:\n{done.stderr}")
    return program


def count(program: Path, names: Sequence[str] = COUNTED) -> Counts:
    """Run the program under callgrind, and compare its results with those of the ops.

    Raises:
        CountingError: valgrind failed, or the driver computes something else than the ops do.
    """
    problems = {name: CASES[name].build() for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (folder / "calls").open("wb") as calls:
            for problem in problems.values():
                for computation in COMPUTATIONS:
                    _write_call(calls, problem, computation)
        command = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/counts",
            "--toggle-collect=counted_correlate", "--toggle-collect=counted_wgrad",
            "--dump-before=counted_all",
            program, folder / "calls", folder / "results",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CountingError(f"valgrind failed with code {done.returncode}:\n{done.stderr}")
        _check_results(folder / "results", problems)
        counts: Counts = {name: {} for name in names}
        keys = [(name, computation) for name in names for computation in COMPUTATIONS]
        for i, (name, computation) in enumerate(keys, 1):
            counts[name][computation] = _total(folder / f"counts.{i}")
    return counts


def _results(problem: Problem) -> dict[str, Tensor]:
    x, values, grad, pattern, geometry = problem
    return {
        "fprop": ops.fprop(x, values, None, pattern, geometry),
        "dgrad": ops.dgrad(grad, values, pattern, geometry, x.shape[2]),
        "wgrad": ops.wgrad(grad, x, pattern, geometry),
    }


def _write_call(file: Any, problem: Problem, computation: str) -> None:
    """One call of a kernel, as counts_driver.cpp reads it."""
    x, values, grad, pattern, geometry = problem
    (left, _), rest = geometry.padding, (geometry.stride, geometry.dilation, geometry.groups)
    if rest != (1, 1, 1) or geometry.padding_mode != "zeros":
        raise ValueError(f"the driver knows stride, dilation, groups 1 and zeros, not {geometry}")
    arrays = {"fprop": (values, x), "dgrad": (values, grad), "wgrad": (grad, x)}[computation]
    arrays = (pattern.crow_indices, pattern.col_indices, *arrays)
    header = [
        COMPUTATIONS.index(computation), *x.shape, *grad.shape[1:], geometry.shape[2], left,
        pattern.nnz, len(arrays[0]),
    ]  # fmt: skip
    np.array(header, dtype=np.int64).tofile(file)
    for array in arrays:
        array.contiguous().numpy().tofile(file)


def _check_results(file: Path, problems: Mapping[str, Problem]) -> None:
    """The ops compute the same bits on every instruction set: whatever differs counts another."""
    found = torch.from_numpy(np.fromfile(file, dtype=np.float32))
    for name, problem in problems.items():
        for computation, expected in _results(problem).items():
            size = expected.numel()
            if not torch.equal(found[:size], expected.reshape(-1)):
                raise CountingError(
                    f"{name} {computation}: the kernels compiled for counting and the op of the "
                    "built extension do not give the same bits; build the extension anew, and if "
                    "that does not help, counts_driver.cpp no longer sets up calls as the op does"
                )
            found = found[size:]


def _total(dump: Path) -> int:
    lines = dump.read_text().splitlines() if dump.exists() else []
    total = sum(int(line.split()[1]) for line in lines if line.startswith("totals:"))
    if total == 0:
        raise CountingError(f"callgrind saw no kernel run: {dump.name} holds no count")
    return total


def stored() -> dict[str, Counts]:
    """Compiler -> its counts."""
    found: dict[str, Counts] = json.loads(STORED.read_text()) if STORED.exists() else {}
    return found


def verdict(before: int | None, now: int) -> str:
    """``"same"``, or what is wrong: more instructions than were stored, or a stale store."""
    if before is None:
        return "not stored"
    if now > before * (1 + ALLOWED):
        return "MORE"
    return "fewer" if now < before * (1 - ALLOWED) else "same"


def compare(before: Counts, now: Counts) -> tuple[Table, set[str]]:
    """The table of all counts, and the verdicts that occur in it."""
    rows, verdicts = [], set()
    for name, computations in now.items():
        for computation, instructions in computations.items():
            old = before.get(name, {}).get(computation)
            found = verdict(old, instructions)
            verdicts.add(found)
            change = "" if old is None else f"{instructions / old - 1:+.2%}"
            rows.append((name, computation, str(old or ""), str(instructions), change, found))
    columns = ("case", "", "stored", "instructions", "change", "verdict")
    return Table(columns, rows, text_columns=2), verdicts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the counts of this compiler")
    arguments = parser.parse_args(argv)
    if reason := missing():
        print(f"nothing was counted: {reason}", file=sys.stderr)
        return 2
    version, everything = compiler_version(), stored()
    if version not in everything and not arguments.write:
        print(
            f"nothing was counted: {STORED.name} knows {', '.join(everything) or 'no compiler'}, "
            f"but this is {version}; run `python -m benchmarks.counts --write` at a commit that "
            "is known to be fast",
            file=sys.stderr,
        )
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            now = count(build(Path(folder)))
    except CountingError as error:
        print(error, file=sys.stderr)
        return 2
    table, verdicts = compare(everything.get(version, {}), now)
    print(f"{version}, AVX2 kernels\n\n{table.markdown()}")
    if arguments.write:
        STORED.parent.mkdir(parents=True, exist_ok=True)
        STORED.write_text(json.dumps(everything | {version: now}, indent=1) + "\n")
        print(f"\nwritten to {STORED}")
        return 0
    if "MORE" in verdicts:
        print(f"\na kernel executes over {ALLOWED:.0%} more instructions than before")
    if verdicts - {"MORE", "same"}:
        print(
            "\nthe store no longer says what the kernels do, and would not see them grow back: "
            "run `python -m benchmarks.counts --write` and commit the file"
        )
    return 0 if verdicts == {"same"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
