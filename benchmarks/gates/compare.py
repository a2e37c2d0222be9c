"""``make bench-check BASE=<git ref>``: did anything become slower than at BASE?

CONTRIBUTING.md, "Guarding speed", describes the check. Only ratios of neighbouring turns count.
What looks slower is measured again with fresh workers, because a process's memory addresses affect
its speed. --cases FILE compares your own layers; FILE contains a JSON list such as ::

    [{"name": "mine", "in_channels": 64, "out_channels": 64, "kernel_size": 15, "length": 500,
      "density": 0.1, "n": 8, "padding": "same"}]

By default, ``n``, the number of series, is 16, and ``dtype`` is "float32"; ``seed`` is the seed of
the pattern. The other keys are as in nn.Conv1d: stride, padding (a number, a pair, "same" or
"valid"), dilation, groups, padding_mode.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.bench.cases import CASES
from benchmarks.bench.run import WrongResultError
from benchmarks.gates.rows import LAYERS, TINY, Row, layer, read_layers, step
from benchmarks.recording import measurement_context, output
from sparseconv.measure import timing
from sparseconv.measure.table import Table

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
LIMIT = 1.10
ROUNDS = 60
TURN_SECONDS = 3e-3  # far longer than a message takes, shorter than other tenants' turns

Key = tuple[str, str]  # row, computation


class Result(NamedTuple):
    """One comparison; times are medians in seconds, and the ratio is present / base."""

    row: str
    computation: str
    base: float
    present: float
    ratio: timing.Estimate

    def verdict(self, limit: float) -> str:
        if self.ratio.low > limit:
            return "slower"
        return "faster" if self.ratio.high < 1 / limit else "unchanged"


def measure(base: Worker, present: Worker, key: Key, *, rounds: int, seed: int) -> Result:
    once = max(side.seconds(*key, 1) for side in (base, present))
    repeats = max(1, round(TURN_SECONDS / once))
    elapsed = 0.0

    def turn(side: Worker) -> Callable[[], None]:
        def call() -> None:
            nonlocal elapsed
            elapsed += side.seconds(*key, repeats)

        return call

    # The sides time themselves: their seconds are the clock, and waiting for them takes none.
    times = timing.interleave(
        {"base": turn(base), "present": turn(present)},
        rounds=rounds,
        least_seconds=0,
        seed=seed,
        clock=lambda: elapsed,
    )
    medians = (float(np.median(times[name])) for name in ("base", "present"))
    return Result(*key, *medians, timing.ratio(times, "present", "base"))


def compare(
    sides: Callable[[], AbstractContextManager[tuple[Worker, Worker]]],
    keys: Sequence[Key],
    *,
    rounds: int = ROUNDS,
    limit: float = LIMIT,
) -> list[Result]:
    """Measure every key; then measure those that look slower again, with fresh workers."""
    found: dict[Key, Result] = {}
    for attempt in range(2):
        with sides() as (base, present):
            for key in keys:
                found[key] = measure(base, present, key, rounds=rounds, seed=attempt)
        keys = [key for key in keys if found[key].verdict(limit) == "slower"]
        if not keys:
            break
    return list(found.values())


class Worker:
    def __init__(self, tree: Path, rows: Path, results: Path, threads: int) -> None:
        self.tree = tree
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")]),
            # As sc.retain_freed_memory(), which old trees lack: glibc keeps what tensors free.
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
            # Idle threads must not spin: it is the other worker's turn.
            "OMP_WAIT_POLICY": "passive",
            "OMP_NUM_THREADS": str(threads),
        }
        cores = sorted(os.sched_getaffinity(0))[-threads:]  # the same ones for every worker
        words = map(str, [tree, rows, results, threads, *cores])
        self._process = subprocess.Popen(
            [sys.executable, "-P", WORKER, *words],  # -P: import nothing from the worker's folder
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> str:
        """Wait for the answer: first which kernels ran, then seconds."""
        if answer := self._process.stdout.readline().strip():
            return answer
        raise RuntimeError(
            f"the worker of {self.tree} ended with code {self._process.wait()}; see the error above"
        )

    def seconds(self, row: str, computation: str, repeats: int) -> float:
        """Run a computation ``repeats`` times; return seconds per call."""
        self._process.stdin.write(json.dumps([row, computation, repeats]) + "\n")
        self._process.stdin.flush()
        return float(self.wait())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def workers(
    base: Path, present: Path, rows: Sequence[Row], *, threads: int = 1
) -> Iterator[tuple[Worker, Worker]]:
    """Start both workers on the same cores, and check their results."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        torch.save([row[:3] for row in rows], folder / "rows")
        started = {}
        for name, tree in (("base", base), ("present", present)):
            started[name] = Worker(tree, folder / "rows", folder / name, threads)
            stack.callback(started[name].close)
        for name, worker in started.items():
            print(f"measuring {name}: cpp {worker.wait()}", flush=True)
            results = torch.load(folder / name)
            for row in rows:
                try:
                    row.check(results[row.name])
                except WrongResultError as error:
                    raise WrongResultError(f"{name}, {row.name}: {error}") from error
        yield started["base"], started["present"]


@contextmanager
def worktree(repo: Path, ref: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sparseconv-base-")).resolve()
    try:
        commit = output(repo, "git", "rev-parse", "--verify", "--end-of-options", ref + "^{commit}")
        output(repo, "git", "worktree", "add", "--quiet", "--detach", folder / "tree", commit)
        yield folder / "tree"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Makes git forget every tree whose folder is gone, also one that it had only begun.
        output(repo, "git", "worktree", "prune")


def build(tree: Path, into: Path) -> Path:
    """Build a tree's package into another folder; return the folder to import it from."""
    folders = "--build-base", into / "temp", "--build-lib", into / "lib"
    said = output(tree, sys.executable, "setup.py", "-q", "build", *folders)
    # setup.py leaves the extension out if it cannot be compiled, and succeeds.
    if not list((into / "lib" / "sparseconv").glob("_C*.so")):
        raise RuntimeError(f"{tree} does not build a package with kernels:\n{said[-3000:]}")
    return into / "lib"


def table(results: Sequence[Result], limit: float) -> Table:
    lines = [
        (result.row, result.computation, f"{result.base * 1e3:.4g}", f"{result.present * 1e3:.4g}",
         str(result.ratio), result.verdict(limit))
        for result in results
    ]  # fmt: skip
    header = ("row", "", "base ms", "present ms", "present / base", "verdict")
    return Table(header, lines, text_columns=2)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gates.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="git ref to compare with")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest ratio that passes")
    parser.add_argument("--cases", type=Path, metavar="FILE", help="your own layers (JSON)")
    parser.add_argument(
        "--steps", type=int, nargs="*", metavar="L",
        help="lengths of the training steps (default: 24 128; none with --cases)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="pairs of timings per comparison"
    )
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except (RuntimeError, WrongResultError) as error:
        print(error, file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    if arguments.cases is None:
        layers, steps = [*(CASES[name] for name in LAYERS), TINY], [24, 128]
    else:
        layers, steps = read_layers(arguments.cases), []
    steps = steps if arguments.steps is None else arguments.steps
    rows = [*map(layer, layers), *map(step, steps)]
    keys = [(row.name, computation) for row in rows for computation in row.computations]
    changed = output(ROOT, "git", "status", "--porcelain") and ", with uncommitted changes"
    limit, threads = arguments.limit, arguments.threads
    with worktree(ROOT, arguments.base) as tree:
        heads = [output(where, "git", "rev-parse", "--short", "HEAD") for where in (tree, ROOT)]
        print(f"base: {heads[0]} ({arguments.base}); present: {heads[1]}{changed}")
        print("building both trees", flush=True)
        base, present = build(tree, tree.parent / "base"), build(ROOT, tree.parent / "present")
        sides = partial(workers, base, present, rows, threads=threads)
        results = compare(sides, keys, rounds=arguments.rounds, limit=limit)
    about = measurement_context()
    print(f"{about['cpu']}, {threads} thread(s), torch {about['torch']}, {about['date']}\n")
    print(table(results, limit).markdown())
    slower = sum(result.verdict(limit) == "slower" for result in results)
    if slower:
        print(f"\n{slower} of {len(results)} became slower by more than {limit - 1:.0%}")
    if unclear := sum(result.ratio.high > limit for result in results) - slower:
        print(
            f"\n{unclear} intervals extend beyond {limit:.2f}; increase --rounds, or use a quieter "
            "machine"
        )
    return 1 if slower else 0


if __name__ == "__main__":
    # As after Ctrl-C: the worktree and the workers are cleaned up on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
