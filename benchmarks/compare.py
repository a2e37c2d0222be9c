"""``make bench-check BASE=<git ref>``: did a kernel become slower than at BASE?

Both trees, BASE and the present one with its uncommitted changes, are built in folders of their
own. Two extensions that register the same ops cannot share a process, so each tree gets a worker;
the two take turns on the same cores, in random order, time themselves, and only the ratios of
neighbouring turns count. The check fails where the 95 % interval of the median ratio lies above
1.10, and again in a second measurement with fresh workers: where a process happens to lie in
memory can cost some per cent, and among a dozen comparisons one in a while is unlucky.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import torch

from sparseconv.bench.cases import CASES, Problem
from sparseconv.bench.run import COMPUTATIONS, WrongResultError, check_bounds
from sparseconv.measure import timing
from sparseconv.measure.machine import measurement_context
from sparseconv.measure.table import Table

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("compare_worker.py")
# Short and long series, many channels and one, a scattered pattern and a dense run.
COMPARED = ("dsn_evolved_L24", "dsn_evolved_L128", "dsn_prefix_L512", "first_layer_L128")
SLOWDOWN = 1.10
ROUNDS = 60
# A turn lasts about so long: far longer than a message takes, shorter than other tenants' turns.
TURN_SECONDS = 3e-3

Key = tuple[str, str]  # case, computation


class CompareError(RuntimeError):
    """The two trees could not be compared; the text says why and what to do."""


class Side(Protocol):
    """One of the two trees, ready to run."""

    def seconds(self, case: str, computation: str, repeats: int, /) -> float:
        """Seconds per call, over ``repeats`` calls."""


class Row(NamedTuple):
    """One comparison; times are medians in seconds, the ratio is present / base."""

    case: str
    computation: str
    base: float
    present: float
    ratio: timing.Estimate

    @property
    def verdict(self) -> str:
        if self.ratio.low > SLOWDOWN:
            return "slower"
        return "faster" if self.ratio.high < 1 / SLOWDOWN else "unchanged"


def measure(base: Side, present: Side, key: Key, *, rounds: int, seed: int) -> Row:
    """Let the two sides take turns with one computation."""
    once = max(side.seconds(*key, 1) for side in (base, present))
    repeats = max(1, round(TURN_SECONDS / once))
    elapsed = 0.0

    def turn(side: Side) -> Callable[[], None]:
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
    return Row(*key, *medians, timing.ratio(times, "present", "base"))


def compare(
    sides: Callable[[], AbstractContextManager[tuple[Side, Side]]],
    keys: Sequence[Key],
    *,
    rounds: int = ROUNDS,
) -> list[Row]:
    """Measure every key; those that look slower are measured once more, and that counts.

    Args:
        sides: starts base and present afresh.
        keys: cases and computations.
        rounds: pairs per key and measurement.
    """
    rows: dict[Key, Row] = {}
    for attempt in range(2):
        with sides() as (base, present):
            for key in keys:
                rows[key] = measure(base, present, key, rounds=rounds, seed=attempt)
        keys = [key for key in keys if rows[key].verdict == "slower"]
        if not keys:
            break
    return list(rows.values())


class Worker:
    """A process that runs one tree's kernels; started here, ready after ``wait``.

    Raises:
        CompareError: from any method, if the process ended.
    """

    def __init__(
        self, tree: Path, problems: Path, results: Path, threads: int, script: Path = WORKER
    ) -> None:
        self.tree = tree
        paths = [str(tree), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # Idle threads must not spin: it is the other worker's turn.
            "OMP_WAIT_POLICY": "passive",
            "OMP_NUM_THREADS": str(threads),
        }
        # The same cores for every worker; some systems do not let a process choose.
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        # -P: a script's folder is no place to import from.
        command = [
            sys.executable, "-P", script, "--tree", tree, "--problems", problems,
            "--results", results, "--threads", str(threads), "--cpus",
            *map(str, allowed[-threads:]),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self) -> str:
        """Wait until the results are written; returns the instruction set that computed them."""
        return self._answer()

    def seconds(self, case: str, computation: str, repeats: int, /) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{case} {computation} {repeats}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return float(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip() or self._fail()

    def _fail(self) -> NoReturn:
        raise CompareError(f"the worker of {self.tree} ended with code {self._process.wait()}")


@contextmanager
def workers(
    base: Path,
    present: Path,
    problems: Mapping[str, Problem],
    *,
    threads: int = 1,
    scripts: tuple[Path, Path] = (WORKER, WORKER),
) -> Iterator[tuple[Worker, Worker]]:
    """Start both trees' workers on the same cores, and check their results.

    Raises:
        WrongResultError: a tree computes something wrong, so its speed means nothing.
        CompareError: a worker does not start.
    """
    if threads < 1:
        raise CompareError(f"threads must be 1 or more, but got {threads}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.save({name: _plain(problem) for name, problem in problems.items()}, folder / "in")
        started: dict[str, Worker] = {}
        try:
            for name, tree, script in zip(
                ("base", "present"), (base, present), scripts, strict=True
            ):
                out = folder / name
                started[name] = Worker(tree, folder / "in", out, threads, script)
            isas = {name: worker.wait() for name, worker in started.items()}
            print(f"measuring: base on {isas['base']}, present on {isas['present']}", flush=True)
            for name in started:
                _check(name, torch.load(folder / name), problems)
            yield started["base"], started["present"]
        finally:
            for worker in started.values():
                worker.close()


def _plain(problem: Problem) -> dict[str, Any]:
    x, values, grad, pattern, geometry = problem
    options = geometry._asdict()
    del options["shape"]
    mask = pattern.to_mask()
    return {"x": x, "values": values, "grad": grad, "mask": mask, "options": options}


def _check(side: str, results: dict[str, Any], problems: Mapping[str, Problem]) -> None:
    for name, problem in problems.items():
        try:
            check_bounds(results[name], problem)
        except WrongResultError as error:
            raise WrongResultError(f"{side}, {name}: {error}") from error


def git(repo: Path, *words: str) -> str:
    """Raises CompareError, with what git says."""
    try:
        done = subprocess.run(["git", *words], cwd=repo, capture_output=True, text=True, check=True)
    except OSError as error:
        raise CompareError(f"bench-check needs git: {error}") from error
    except subprocess.CalledProcessError as error:
        raise CompareError(f"git {words[0]} failed: {error.stderr.strip()}") from error
    return done.stdout.strip()


def resolve(repo: Path, ref: str) -> str:
    """The commit that ``ref`` names, if it has kernels to compare with.

    Raises:
        CompareError: it names none, or one without them.
    """
    git(repo, "rev-parse", "--git-dir")  # says so if this is no repository at all
    try:
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        commit = git(repo, *words)
    except CompareError:
        raise CompareError(
            f"BASE must name a commit, but this repository has no {ref!r}; "
            "a branch, a tag or a commit will do, for example BASE=HEAD~1"
        ) from None
    files = git(repo, "ls-tree", "-r", "--name-only", commit, "setup.py", "csrc").splitlines()
    if "setup.py" not in files or not any(name.endswith(".cpp") for name in files):
        raise CompareError(
            f"BASE {ref!r} has no extension sources (setup.py, csrc/*.cpp); "
            "name a commit that has the C++ kernels"
        )
    return commit


@contextmanager
def worktree(repo: Path, commit: str) -> Iterator[Path]:
    """Check a commit out beside ``repo``; nothing of it is left afterwards, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="sparseconv-base-")).resolve()
    try:
        git(repo, "worktree", "add", "--quiet", "--detach", str(folder / "tree"), commit)
        yield folder / "tree"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Makes git forget every tree whose folder is gone, also one that it had only begun.
        git(repo, "worktree", "prune")


def build(tree: Path, into: Path) -> Path:
    """Build a tree's package into a folder of its own; returns what to import it from.

    Raises:
        CompareError: with the end of the build's output.
    """
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", into / "temp",
               "--build-lib", into / "lib"]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its compilers can be ended with it
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        # Not SIGKILL: ninja's compilers are in groups of their own, and only ninja ends them. The
        # pipe closes with the last process that writes to it.
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
        raise
    # setup.py leaves the extension out if it cannot be compiled, and goes on.
    package = into / "lib" / "sparseconv"
    complete = (package / "__init__.py").exists() and list(package.glob("_C*.so"))
    if process.returncode != 0 or not complete:
        raise CompareError(f"{tree} does not build a package with kernels:\n{output[-3000:]}")
    return into / "lib"


def table(rows: Sequence[Row]) -> Table:
    return Table(
        ("case", "", "base ms", "present ms", "present / base", "verdict"),
        [
            (row.case, row.computation, f"{row.base * 1e3:.3f}", f"{row.present * 1e3:.3f}",
             str(row.ratio), row.verdict)
            for row in rows
        ],
        text_columns=2,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("base", help="git ref to compare with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs per comparison")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(COMPARED))
    arguments = parser.parse_args(argv)
    try:
        return run(arguments.base, arguments.cases, arguments.threads, arguments.rounds)
    except (CompareError, WrongResultError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the worktree of BASE is removed", file=sys.stderr)
        return 130


def run(ref: str, cases: Sequence[str], threads: int, rounds: int) -> int:
    commit = resolve(ROOT, ref)
    dirty = " with uncommitted changes" if git(ROOT, "status", "--porcelain") else ""
    problems = {name: CASES[name].build() for name in cases}
    keys = [(name, computation) for name in cases for computation in COMPUTATIONS]
    with worktree(ROOT, commit) as tree:
        present_folder = tree.parent / "present"
        print(f"base: {commit[:12]} ({ref})\npresent: {git(ROOT, 'rev-parse', 'HEAD')[:12]}{dirty}")
        print("building both trees", flush=True)
        base, present = build(tree, tree.parent / "base"), build(ROOT, present_folder)
        rows = compare(
            lambda: workers(base, present, problems, threads=threads), keys, rounds=rounds
        )
    machine = measurement_context() | {"threads": str(threads)}
    del machine["cpp"], machine["commit"]  # of this process, which runs no kernel
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n")
    print(table(rows).markdown())
    slower = sum(row.verdict == "slower" for row in rows)
    if slower:
        print(f"\n{slower} of {len(rows)} became slower by over {SLOWDOWN - 1:.0%}")
    if unclear := sum(row.ratio.high > SLOWDOWN for row in rows) - slower:
        print(f"\n{unclear} intervals reach beyond {SLOWDOWN:.2f}: --rounds, or a quieter machine")
    return 1 if slower else 0


if __name__ == "__main__":
    # As after Ctrl-C: the worktree and the workers are cleaned up on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
