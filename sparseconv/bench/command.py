"""``python -m sparseconv bench``: which cases, what is printed, which files are written."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparseconv import _backends, _ops
from sparseconv.bench import growth, peaks, tables, timing
from sparseconv.bench.cases import SUITES, Case, select
from sparseconv.bench.rivals import RIVALS
from sparseconv.bench.run import WrongResultError, cpp_or_reason, measure
from sparseconv.machine import threads

SCHEMA = 1
ROUNDS, QUICK_ROUNDS = 30, 5
# The slow rivals are shown where their place is in question: they take most of the time.
FAST_RIVALS = ("conv1d", "conv2d_channels_last")
ALL_RIVALS_IN = ("layer", "trained", "density")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Check the sparse kernels against float64, then time them beside dense PyTorch and other "
        "rivals, in turns, in one process. Without --suites and --cases, everything: about an hour."
    )
    add = parser.add_argument
    add("--suites", nargs="+", metavar="SUITE", help=f"of {', '.join(SUITES)}")
    add("--cases", nargs="+", metavar="CASE", help="single cases; --list shows them")
    add("--threads", nargs="+", type=int, metavar="X", help="default: 1 and, with more cores, 2")
    add(
        "--rivals", nargs="*", metavar="RIVAL",
        help=f"of {', '.join(RIVALS)}; by default all of them in the suites "
        f"{', '.join(ALL_RIVALS_IN)}, and {', '.join(FAST_RIVALS)} elsewhere",
    )  # fmt: skip
    add("--rounds", type=int, metavar="X", help=f"timed rounds of each case (default: {ROUNDS})")
    add("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds and no growth: a first look")
    add(
        "--growth", action=argparse.BooleanOptionalAction, default=None,
        help="how the cost grows with nnz, N, L and C (default: where no cases are chosen)",
    )  # fmt: skip
    for kind, what in (("json", "everything"), ("csv", "the rows"), ("html", "a report")):
        add(f"--{kind}", type=Path, metavar="FILE", help=f"also write {what} to this file")
    add("--list", action="store_true", help="show the cases and do nothing")


def main(arguments: argparse.Namespace) -> int:
    """Run the command: 0, or 1 if a result was wrong.

    Raises:
        ValueError, RuntimeError, OSError: something asked for cannot be done; nothing was measured.
    """
    cases = select(arguments.suites, arguments.cases)
    if arguments.list:
        print(listing(cases))
        return 0
    counts, rounds = _checked(arguments)
    if reason := cpp_or_reason():
        raise RuntimeError(reason)
    write = _writers(arguments)
    grows = arguments.growth
    if grows is None:
        grows = not (arguments.suites or arguments.cases or arguments.quick)
    try:
        document = run(
            cases,
            counts,
            rounds=rounds,
            rivals=arguments.rivals,
            series=list(growth.SERIES) if grows else [],
        )
    except WrongResultError as error:
        print(f"error: {error}; no figure is given", file=sys.stderr)
        return 1
    print(shown(document))
    for path, save in write:
        save(document, path)
        print(f"written to {path}")
    return 0


def run(
    cases: Sequence[Case],
    thread_counts: Sequence[int],
    *,
    rounds: int = ROUNDS,
    rivals: Sequence[str] | None = None,
    series: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure peaks, cases and growth; return the document that files and reports are made of.

    Args:
        cases: from ``cases.select``; those whose instruction set cannot run here are left out, and
            stderr says so.
        thread_counts: each case is measured with each.
        rounds: pairs of neighbours.
        rivals: of ``rivals.RIVALS``; None takes the fast ones, and all in some suites.
        series: of ``growth.SERIES``.

    Raises:
        WrongResultError: a result left its error bound; the case is named.
    """
    assert _backends.extension is not None
    runnable = [case for case in cases if case.isa in ("", *_backends.extension.isas())]
    for case in cases:
        if case not in runnable:
            print(f"{case.name} is left out: this CPU has no {case.isa}", file=sys.stderr)
    found = peaks.measure(thread_counts)
    rows, fits = [], []
    with _Bar(len(thread_counts) * (len(runnable) + len(series))) as advance:
        for case in runnable:
            names = rivals
            if names is None:
                names = list(RIVALS) if case.suite in ALL_RIVALS_IN else FAST_RIVALS
            for count in thread_counts:
                advance(f"{case.name}, {count} thr.")
                where = f"{case.name}, {count} threads"
                with threads(count), _naming(where):
                    rows += measure(
                        case, _ops, rival_names=names, rounds=rounds, machine_peaks=found
                    )
        for quantity in series:
            for count in thread_counts:
                advance(f"growth with {quantity}, {count} thr.")
                with threads(count), _naming(f"growth with {quantity}, {count} threads"):
                    fits += growth.measure(quantity, rounds=max(3, rounds // 2))
    return {
        "schema": SCHEMA,
        "machine": timing.machine(),
        "peaks": found,
        "rows": rows,
        "growth": fits,
        "network": [],
    }


def shown(document: Mapping[str, Any]) -> str:
    """The document as text: machine, peaks, a table for each suite, growth."""
    machine = "\n".join(f"{key}: {value}" for key, value in document["machine"].items())
    parts = [machine, tables.peaks_table(document["peaks"]).markdown()]
    parts.append(
        "Rivals: their time over the sparse one, median of the pairs and its 95 % bootstrap "
        "interval. Peak: multiply-adds from registers; roof: that, or the stream's bytes."
    )
    for suite, what in SUITES.items():
        if rows := [row for row in document["rows"] if row["suite"] == suite]:
            parts += [f"{suite}: {what}", tables.rows_table(rows).markdown()]
    parts += tables.absences(document["rows"])
    if document["growth"]:
        parts.append(tables.growth_table(document["growth"]).markdown())
    return "\n\n".join(parts) + "\n"


def listing(cases: Iterable[Case]) -> str:
    """The cases by suite, one line each."""
    chosen, lines = list(cases), []
    for suite, what in SUITES.items():
        members = [case for case in chosen if case.suite == suite]
        if members:
            lines.append(f"{suite}: {what}")
        for c in members:
            options = [
                f"{name} {value}"
                for name, value, usual in (
                    ("stride", c.stride, 1),
                    ("dilation", c.dilation, 1),
                    ("groups", c.groups, 1),
                    ("ISA", c.isa, ""),
                )
                if value != usual
            ]
            shape = f"N={c.n} {c.in_channels}->{c.out_channels} K={c.kernel_size} L={c.length}"
            lines.append("  ".join((f"  {c.name:26}", shape, c.dtype, c.pattern, *options)))
    return "\n".join(lines)


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write everything."""
    _replace(path, json.dumps(document, indent=1) + "\n")


def write_csv(document: Mapping[str, Any], path: Path) -> None:
    """Write the rows: ``ms_conv1d``, ``ratio_conv1d``, ``ratio_conv1d_low`` ... for each rival."""
    flat = [flatten(row) for row in document["rows"]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    with _partial(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    _partial(path).replace(path)


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without dicts and lists; the reasons of absent rivals are left to the JSON.

    Example:
        >>> flatten({"case": "a", "ms": {"fft": 2.0}, "ratio": {"fft": [3, 2, 4]}, "absent": {}})
        {'case': 'a', 'ms_fft': 2.0, 'ratio_fft': 3, 'ratio_fft_low': 2, 'ratio_fft_high': 4}
    """
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key == "ms":
            flat |= {f"ms_{name}": ms for name, ms in value.items()}
        elif key == "ratio":
            for name, three in value.items():
                ends = zip(("", "_low", "_high"), three, strict=True)
                flat |= {f"ratio_{name}{end}": number for end, number in ends}
        elif key != "absent":
            flat[key] = value
    return flat


Save = Callable[[Mapping[str, Any], Path], object]


def _writers(arguments: argparse.Namespace) -> list[tuple[Path, Save]]:
    """What to write where; paths and the report's packages are tried before anything is measured.

    Raises:
        ValueError: a path cannot be written.
        RuntimeError: a package that the report needs is missing.
    """
    wanted: list[tuple[Path, Save]] = []
    if arguments.json:
        wanted.append((arguments.json, write_json))
    if arguments.csv:
        wanted.append((arguments.csv, write_csv))
    if arguments.html:
        try:  # only who asks for plots needs matplotlib
            report = importlib.import_module("sparseconv.bench.report")
        except ImportError as error:
            raise RuntimeError(
                f"--html cannot be written: {error}; install what it needs with "
                "`pip install 'sparseconv[tsc]'`"
            ) from error
        wanted.append((arguments.html, report.write))
    for path, _ in wanted:
        try:
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            _partial(path).touch()
            _partial(path).unlink()
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror or error}); choose another file"
            ) from error
    return wanted


def _checked(arguments: argparse.Namespace) -> tuple[list[int], int]:
    counts = arguments.threads or sorted({1, min(2, os.cpu_count() or 1)})
    if min(counts) < 1:
        raise ValueError(f"--threads must be at least 1, but got {min(counts)}")
    if arguments.rounds is not None and arguments.quick:
        raise ValueError(f"--quick means --rounds {QUICK_ROUNDS}; leave one of them away")
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    if arguments.rounds is not None and arguments.rounds < 3:
        raise ValueError(f"--rounds must be at least 3, but got {arguments.rounds}")
    for name in arguments.rivals or ():
        if name not in RIVALS:
            raise ValueError(f"there is no rival {name!r}; expected one of {', '.join(RIVALS)}")
    return list(dict.fromkeys(counts)), rounds


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except WrongResultError as error:
        raise WrongResultError(f"{what}: {error}") from error


class _Bar:
    """Says on stderr what is being measured, with tqdm's bar where it is installed."""

    def __init__(self, total: int) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self._bar = None
        else:
            self._bar = tqdm(total=total, unit="case")
        self._begun = False

    def __call__(self, what: str) -> None:
        if self._bar is None:
            print(what, file=sys.stderr, flush=True)
            return
        if self._begun:
            self._bar.update()
        self._begun = True
        self._bar.set_description(what)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            if self._begun and error[0] is None:
                self._bar.update()
            self._bar.close()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    _partial(path).write_text(text, encoding="utf-8")
    _partial(path).replace(path)
