"""``python -m sparseconv bench``: measure, print and write."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import recording
from benchmarks.bench import networks, random_kernels, tables
from benchmarks.bench.baselines import BASELINES
from benchmarks.bench.cases import CASES, SUITES, WITHOUT_CASES, Case, select
from benchmarks.bench.run import ROUNDS, WrongResultError, measure
from benchmarks.recording import measurement_context
from sparseconv.cli.options import PROG, at_least, count
from sparseconv.core.files import check_writable
from sparseconv.measure.machine import retain_freed_memory
from sparseconv.measure.table import threads_text
from sparseconv.measure.timing import LEAST_ROUNDS
from sparseconv.ops.backends import resolve_backend

# What README.md shows: half an hour on two cores, where everything takes an hour.
README_SUITES = ("layer", "density", "trained", "network")
QUICK_ROUNDS = LEAST_ROUNDS
QUICK_BASELINES = ("masked_dense", "dense_best")  # compiling takes most of the network's time

# A key of the document, what is measured, and the call that gives its rows.
Task = tuple[str, str, Callable[[], list[dict[str, Any]]]]


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after ``bench``; return the exit code."""
    # Options are not abbreviated, as those of the other commands.
    command = argparse.ArgumentParser(
        prog=f"{PROG} bench", description=inspect.getdoc(run), allow_abbrev=False
    )
    _add_options(command)
    return run(command.parse_args(argv))


def _add_options(command: argparse.ArgumentParser) -> None:
    add, several = command.add_argument, partial(command.add_argument, nargs="+")
    suites = f"any of {', '.join(SUITES)} ({' '.join(README_SUITES)} take half an hour)"
    several("--suites", choices=SUITES, metavar="SUITE", default=(), help=suites)
    cases = "cases to time, in addition to those of --suites; --list shows them"
    several("--cases", choices=CASES, metavar="CASE", default=(), help=cases)
    counts = sorted({1, min(2, os.cpu_count() or 1)})
    numbers = count("numbers of threads (default: 1 and, with more cores, 2)")
    several("--threads", **numbers, default=counts)
    baselines = f"baselines of the cases (default: {' '.join(BASELINES)})"
    add("--baselines", nargs="*", choices=BASELINES, metavar="BASELINE", default=list(BASELINES),
        help=baselines)  # fmt: skip
    often = command.add_mutually_exclusive_group()
    rounds = f"number of timed rounds, at least {LEAST_ROUNDS} (default: {ROUNDS} for each case)"
    often.add_argument("--rounds", type=at_least(LEAST_ROUNDS), metavar="X", help=rounds)
    quick = f"take a first look: {QUICK_ROUNDS} rounds, without compiled networks"
    often.add_argument("--quick", action="store_true", help=quick)
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    add("--json", **file, help="also write all results to this JSON file after each case")
    add("--csv", **file, help="also write a row per case and computation to this CSV file")
    add("--list", action="store_true", help="list the suites and cases, and exit")


def run(arguments: argparse.Namespace) -> int:
    """Check the sparse kernels against float64, and time them and dense PyTorch.

    Sparse and dense calls run interleaved, in one process. Without --suites or --cases, everything
    runs, which takes about an hour on two cores, and much less with --quick. If a result is wrong,
    the exit code is 1.
    """
    cases = select(arguments.suites, arguments.cases)
    asked = arguments.suites or ([] if arguments.cases else SUITES)
    others = [name for name in WITHOUT_CASES if name in asked]
    if arguments.list:
        print(listing(cases, others))
        return 0
    resolve_backend("cpp", torch.device("cpu"))
    for path in filter(None, (arguments.json, arguments.csv)):
        check_writable(path)
    retain_freed_memory()  # before anything is timed, so that all of it is timed alike
    rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds
    everything = not (arguments.suites or arguments.cases) and (rounds or ROUNDS) >= ROUNDS
    found: dict[str, Any] = {
        "complete": False,  # whether it holds everything, in all rounds
        "machine": measurement_context(),
        "rows": [],
        **{name: [] for name in WITHOUT_CASES},
    }
    todo = tasks(arguments, cases, others, rounds)
    kept = ""
    for number, (key, name, task) in enumerate(todo, 1):
        print(f"{number} of {len(todo)}: {name}", file=sys.stderr, flush=True)
        try:
            found[key] += recording.rounded(task())
        except WrongResultError as error:
            print(f"error: {name}: {error}; no measurements are reported{kept}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"stopped{kept}", file=sys.stderr)
            raise
        found["complete"] = everything and number == len(todo)
        if arguments.json:  # an interrupted run loses nothing
            recording.write_json(found, arguments.json)
            kept = f"; earlier measurements are in {arguments.json}"
    if arguments.csv:  # before anything is printed, which may fail where a pipe is closed
        tables.write_csv(found["rows"], arguments.csv)
    print(shown(found))
    for path in filter(None, (arguments.json, arguments.csv)):
        print(f"written to {path}")
    return 0


def tasks(
    arguments: argparse.Namespace, cases: Iterable[Case], others: Container[str], rounds: int | None
) -> list[Task]:
    """List what to measure with each number of threads; --quick compiles no network."""
    counts: Sequence[int] = list(dict.fromkeys(arguments.threads))
    measures: list[tuple[str, str, Callable[..., Any]]] = [
        ("rows", case.name, partial(measure, case=case, baselines=arguments.baselines))
        for case in cases
    ]
    if "random_kernels" in others:
        measures.append(("random_kernels", "random kernels", random_kernels.measure))
    todo: list[Task] = [
        (key, f"{name}, {threads_text(count)}", partial(call, count, rounds=rounds or ROUNDS))
        for key, name, call in measures
        for count in counts
    ]
    modes = list(networks.MODES) if "network" in others else []
    if "blocks" in (arguments.suites or ()):
        modes = modes or ["blocks"]
    chosen = QUICK_BASELINES if arguments.quick else networks.BASELINES
    found = networks.tasks(counts, modes, rounds=rounds or networks.ROUNDS, baselines=chosen)
    return [*todo, *(("network", *task) for task in found)]


def shown(found: Mapping[str, Any]) -> str:
    """Format the document as text: the machine, and a table for each suite."""
    rows = found["rows"]
    parts = [
        "\n".join(f"{key}: {value}" for key, value in found["machine"].items()),
        "vs: baseline time divided by sparse time (median over the pairs), with a 95 % interval "
        "for the fastest baseline.",
    ]
    absent = [row["absent"].items() for row in [*rows, *found["network"]]]
    reasons = dict.fromkeys(f"{name}: {why}" for items in absent for name, why in items)
    parts += ["\n".join(["Left out where they could not run:", *reasons])] if reasons else []
    others = {"network": tables.NETWORK_COLUMNS, "random_kernels": tables.KERNEL_COLUMNS}
    for name, what in SUITES.items():
        if mine := found.get(name) or [row for row in rows if row["suite"] == name]:
            text_columns = 1 if name in others else 2
            table = tables.table(mine, others.get(name, tables.COLUMNS), text_columns)
            parts += [f"{name}: {what}", table.markdown()]
    return "\n\n".join(parts) + "\n"


def listing(cases: Iterable[Case], others: Container[str]) -> str:
    """List the cases of each suite, one per line, and the suites without cases."""
    chosen, lines = list(cases), []
    for name, what in SUITES.items():
        members = [case for case in chosen if case.suite == name]
        if members or name in others:
            lines.append(f"{name}: {what}")
        for c in members:
            names = ("stride", "dilation", "groups")
            options = [f"{name} {getattr(c, name)}" for name in names if getattr(c, name) != 1]
            shape = f"N={c.n} {c.in_channels}->{c.out_channels} K={c.kernel_size} L={c.length}"
            lines.append("  ".join((f"  {c.name:26}", shape, c.dtype, c.pattern, *options)))
    return "\n".join(lines)
