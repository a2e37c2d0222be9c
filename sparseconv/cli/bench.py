"""``python -m sparseconv bench``: which suites, what is printed, which files are written."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sparseconv.bench import files, goals, suite, tables
from sparseconv.bench.cases import SUITES, Case, select
from sparseconv.bench.network import compare
from sparseconv.bench.rivals import RIVALS
from sparseconv.bench.run import WrongResultError, cpp_or_reason
from sparseconv.bench.suite import ALL_RIVALS_IN, FAST_RIVALS, MORE, OTHER_ROUNDS, QUICK_ROUNDS
from sparseconv.core.files import check_writable

EVERY_SUITE = {**SUITES, **MORE}


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "bench",
        help="check and time the kernels beside dense PyTorch",
        description="Check the sparse kernels against float64, then time them, and the whole "
        "network, beside dense PyTorch and other rivals, in turns, in one process. Without "
        "--suites and --cases, everything: about half an hour on two cores.",
    )
    command.set_defaults(run=_bench)
    add = command.add_argument
    add("--suites", nargs="+", metavar="SUITE", help=f"of {', '.join(EVERY_SUITE)}")
    add(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="these cases, and all of the --suites if some are named; --list shows them",
    )
    add("--threads", nargs="+", type=int, metavar="X", help="default: 1 and, with more cores, 2")
    add(
        "--rivals", nargs="*", metavar="RIVAL",
        help=f"of the cases: {', '.join(RIVALS)}; by default all of them in the suites "
        f"{', '.join(ALL_RIVALS_IN)}, and {', '.join(FAST_RIVALS)} elsewhere",
    )  # fmt: skip
    add(
        "--rounds", type=int, metavar="X",
        help="timed rounds of everything, at least 3 "
        f"(default: {OTHER_ROUNDS} in most suites; each row says)",
    )  # fmt: skip
    add(
        "--quick", action="store_true",
        help=f"a first look: {QUICK_ROUNDS} rounds; of the network no epochs and nothing compiled",
    )  # fmt: skip
    for kind, what in (("json", "everything"), ("csv", "the rows"), ("html", "a report")):
        when = ", after each case" if kind == "json" else ""
        add(f"--{kind}", type=Path, metavar="FILE", help=f"also write {what} to this file{when}")
    add("--list", action="store_true", help="show the suites and cases, and do nothing")


def _bench(arguments: argparse.Namespace) -> int:
    """Run the command: 0, or 1 if a result was wrong.

    Raises:
        ValueError, RuntimeError, OSError: something asked for cannot be done; nothing was measured.
    """
    cases, more = _chosen(arguments.suites, arguments.cases)
    if arguments.list:
        print(listing(cases, more))
        return 0
    counts = _checked(arguments)
    if reason := cpp_or_reason():
        raise RuntimeError(reason)
    write = _writers(arguments)
    kept = ""

    def save(document: Mapping[str, Any]) -> None:  # an interrupted run loses nothing
        nonlocal kept
        if arguments.json:
            files.write_json(document, arguments.json)
            kept = f"; what was measured before is in {arguments.json}"

    try:
        document = suite.run(
            cases,
            counts,
            more=more,
            rounds=arguments.rounds,
            rivals=arguments.rivals,
            quick=arguments.quick,
            save=save,
        )
    except WrongResultError as error:
        print(f"error: {error}; no figure is given{kept}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped{kept}", file=sys.stderr)
        raise
    print(shown(document))
    for path, write_file in write:
        write_file(document, path)
        print(f"written to {path}")
    return 0


def _chosen(suites: list[str] | None, names: list[str] | None) -> tuple[list[Case], list[str]]:
    """The cases, and what else is measured.

    Raises:
        ValueError: a name that is not one.
    """
    if suites is None:
        return select(None, names), [] if names else list(MORE)
    for name in suites:
        if name not in EVERY_SUITE:
            known = ", ".join(EVERY_SUITE)
            raise ValueError(f"there is no suite {name!r}; expected one of {known}")
    return select([name for name in suites if name in SUITES], names), [
        name for name in MORE if name in suites
    ]


def shown(document: Mapping[str, Any]) -> str:
    """The document as text: machine, peaks, a table for each suite, growth, compare, goals."""
    machine = "\n".join(f"{key}: {value}" for key, value in document["machine"].items())
    parts = [
        machine,
        "Peaks: GFLOP/s with operands in registers, with one load per multiply-add from L1 "
        "and from L2; GB/s of a stream.",
        tables.peaks_table(document["peaks"]).markdown(),
    ]
    parts.append(
        "Rivals: their time over the sparse one, median of the pairs and its 95 % bootstrap "
        "interval. Peak: multiply-adds from registers; roof: that, or the stream's bytes."
    )
    for name, what in SUITES.items():
        if rows := [row for row in document["rows"] if row["suite"] == name]:
            parts += [f"{name}: {what}", tables.rows_table(rows).markdown()]
    parts += tables.absences(document["rows"])
    if document["growth"]:
        parts.append(tables.growth_table(document["growth"]).markdown())
    if document["network"]:
        parts.append("network: " + MORE["network"])
        parts.append(compare.table(document["network"]).markdown())
        parts.append(compare.parts_table(document["network"]).markdown())
    if document["goals"]:
        parts += ["Goals, each judged by the worst of its rows", goals.table(document).markdown()]
    return "\n\n".join(parts) + "\n"


def listing(cases: Iterable[Case], more: Iterable[str] = ()) -> str:
    """The cases by suite, one line each, and the suites that are not made of cases."""
    chosen, lines = list(cases), []
    for name, what in SUITES.items():
        members = [case for case in chosen if case.suite == name]
        if members:
            lines.append(f"{name}: {what}")
        for c in members:
            options = [
                f"{option} {value}"
                for option, value, usual in (
                    ("stride", c.stride, 1),
                    ("dilation", c.dilation, 1),
                    ("groups", c.groups, 1),
                    ("ISA", c.isa, ""),
                )
                if value != usual
            ]
            shape = f"N={c.n} {c.in_channels}->{c.out_channels} K={c.kernel_size} L={c.length}"
            lines.append("  ".join((f"  {c.name:26}", shape, c.dtype, c.pattern, *options)))
    lines += [f"{name}: {MORE[name]}" for name in more]
    return "\n".join(lines)


Save = Callable[[Mapping[str, Any], Path], object]


def _writers(arguments: argparse.Namespace) -> list[tuple[Path, Save]]:
    """What to write where; paths and the report's packages are tried before anything is measured.

    Raises:
        ValueError: a path cannot be written.
        RuntimeError: a package that the report needs is missing.
    """
    wanted: list[tuple[Path, Save]] = []
    if arguments.json:
        wanted.append((arguments.json, files.write_json))
    if arguments.csv:
        wanted.append((arguments.csv, files.write_csv))
    if arguments.html:
        try:  # only who asks for plots needs matplotlib
            report = importlib.import_module("sparseconv.bench.page.report")
        except ImportError as error:
            raise RuntimeError(
                f"--html cannot be written: {error}; install what it needs with "
                "`pip install 'sparseconv[tsc]'`"
            ) from error
        wanted.append((arguments.html, report.write))
    paths = [path.absolute() for path, _ in wanted]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise ValueError(f"{twice.pop()} was named for two outputs; name a file for each")
    for path, _ in wanted:
        check_writable(path)
    return wanted


def _checked(arguments: argparse.Namespace) -> list[int]:
    counts: list[int] = arguments.threads or sorted({1, min(2, os.cpu_count() or 1)})
    if min(counts) < 1:
        raise ValueError(f"--threads must be at least 1, but got {min(counts)}")
    if arguments.rounds is not None and arguments.quick:
        raise ValueError(f"--quick means --rounds {QUICK_ROUNDS}; leave one of them away")
    if arguments.rounds is not None and arguments.rounds < 3:
        raise ValueError(f"--rounds must be at least 3, but got {arguments.rounds}")
    for name in arguments.rivals or ():
        if name not in RIVALS:
            raise ValueError(f"there is no rival {name!r}; expected one of {', '.join(RIVALS)}")
    return list(dict.fromkeys(counts))
