"""``python -m sparseconv bench``: which suites, what is printed, which files are written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from sparseconv.bench import document, suite, tables
from sparseconv.bench.baselines import BASELINES
from sparseconv.bench.cases import SUITES, WITHOUT_CASES, Case, check_names, select
from sparseconv.bench.run import WrongResultError, cpp_or_reason
from sparseconv.bench.suite import QUICK_ROUNDS, README_SUITES, ROUNDS
from sparseconv.core.files import check_writable
from sparseconv.measure.machine import threads
from sparseconv.measure.timing import LEAST_ROUNDS


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "bench",
        help="check and time the kernels beside dense PyTorch",
        description="Check the sparse kernels against float64, then time them, and the whole "
        "network, beside dense PyTorch and other baselines, in turns, in one process. Without "
        "--suites and --cases, everything. About an hour on two cores; "
        f"--suites {' '.join(README_SUITES)} half an hour, with --quick an estimated ten minutes.",
    )
    command.set_defaults(run=_bench)
    add = command.add_argument
    add("--suites", nargs="+", metavar="SUITE", help=f"of {', '.join(SUITES)}")
    add(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="these cases, and all of the --suites if some are named; --list shows them",
    )
    add("--threads", nargs="+", type=int, metavar="X", help="default: 1 and, with more cores, 2")
    add("--baselines", nargs="*", metavar="BASELINE", default=list(BASELINES),
        help=f"of the cases (default: {' '.join(BASELINES)})")  # fmt: skip
    rounds = f"timed rounds of everything, at least {LEAST_ROUNDS} (default: {ROUNDS} of each case)"
    add("--rounds", type=int, metavar="X", help=rounds)
    quick = f"a first look: {QUICK_ROUNDS} rounds; of the network nothing compiled"
    add("--quick", action="store_true", help=quick)
    add("--json", type=Path, metavar="FILE", help="also write everything, after each case")
    add("--csv", type=Path, metavar="FILE", help="also write the rows")
    add("--list", action="store_true", help="show the suites and cases, and do nothing")


def _bench(arguments: argparse.Namespace) -> int:
    """Run the command: 0, or 1 if a result was wrong.

    Raises:
        ValueError, RuntimeError, OSError: something asked for cannot be done; nothing was measured.
    """
    cases = select(arguments.suites, arguments.cases)
    asked = arguments.suites or ([] if arguments.cases else SUITES)
    others = [name for name in WITHOUT_CASES if name in asked]
    if arguments.list:
        print(listing(cases, others))
        return 0
    counts = _checked(arguments)
    if arguments.csv and not cases:
        raise ValueError(
            f"--csv writes the rows of cases, but {', '.join(asked)} has none; use --json"
        )
    if reason := cpp_or_reason():
        raise RuntimeError(reason)
    kept = ""

    def save(found: Mapping[str, Any]) -> None:  # an interrupted run loses nothing
        nonlocal kept
        if arguments.json:
            document.write_json(found, arguments.json)
            kept = f"; what was measured before is in {arguments.json}"

    try:
        found = suite.run(
            cases,
            counts,
            others=others,
            rounds=arguments.rounds,
            baselines=arguments.baselines,
            quick=arguments.quick,
            save=save,
        )
    except WrongResultError as error:
        print(f"error: {error}; no figure is given{kept}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped{kept}", file=sys.stderr)
        raise
    if arguments.csv:  # before anything is printed, which may fail where a pipe is closed
        document.write_csv(found, arguments.csv)
    print(shown(found))
    for path in filter(None, (arguments.json, arguments.csv)):
        print(f"written to {path}")
    return 0


def _checked(arguments: argparse.Namespace) -> list[int]:
    counts: list[int] = arguments.threads or sorted({1, min(2, os.cpu_count() or 1)})
    if min(counts) < 1:
        raise ValueError(f"--threads must be at least 1, but got {min(counts)}")
    for count in counts:  # before hours of work
        with threads(count):
            pass
    if arguments.rounds is not None and arguments.quick:
        raise ValueError(f"--quick means --rounds {QUICK_ROUNDS}; omit one of them")
    if arguments.rounds is not None and arguments.rounds < LEAST_ROUNDS:
        raise ValueError(
            f"--rounds must be at least {LEAST_ROUNDS}, or no interval of 95 % exists, but got "
            f"{arguments.rounds}"
        )
    check_names("baseline", arguments.baselines, BASELINES)
    if arguments.json and arguments.csv and arguments.json.absolute() == arguments.csv.absolute():
        raise ValueError(f"{arguments.json} was named for two outputs; name a file for each")
    for path in filter(None, (arguments.json, arguments.csv)):
        check_writable(path)
    return list(dict.fromkeys(counts))


def shown(found: Mapping[str, Any]) -> str:
    """The document as text: machine, peaks, a table for each suite, network."""
    rows, network = found["rows"], found["network"]
    parts = [
        "\n".join(f"{key}: {value}" for key, value in found["machine"].items()),
        "Peaks: multiply-adds from registers.",
        tables.peaks(found["peaks"]).markdown(),
        "vs: a baseline's time over the sparse one, median of the pairs, and for the fastest its "
        "95 % interval.",
    ]
    for name, what in SUITES.items():
        if mine := [row for row in rows if row["suite"] == name]:
            parts += [f"{name}: {what}", tables.cases(mine).markdown()]
    parts += tables.absences([*rows, *network, *found["compiled"]])
    if network:
        parts += ["network: " + SUITES["network"], tables.network(network).markdown()]
    if kernels := found["random_kernels"]:
        parts += [
            "random_kernels: " + SUITES["random_kernels"], tables.random_kernels(kernels).markdown()
        ]  # fmt: skip
    if compiled := found["compiled"]:
        parts += ["compiled: " + SUITES["compiled"], tables.compiled(compiled).markdown()]
    return "\n\n".join(parts) + "\n"


def listing(cases: Iterable[Case], others: Container[str]) -> str:
    """The cases by suite, one line each, and those of the other suites that have none."""
    chosen, lines = list(cases), []
    for name, what in SUITES.items():
        members = [case for case in chosen if case.suite == name]
        if members or name in others:
            lines.append(f"{name}: {what}")
        for c in members:
            usual = (("stride", 1), ("dilation", 1), ("groups", 1), ("isa", ""))
            options = [f"{k} {getattr(c, k)}" for k, value in usual if getattr(c, k) != value]
            shape = f"N={c.n} {c.in_channels}->{c.out_channels} K={c.kernel_size} L={c.length}"
            lines.append("  ".join((f"  {c.name:26}", shape, c.dtype, c.pattern, *options)))
    return "\n".join(lines)
