"""``make reliability``: what the library promises, and what a run of the tests says about it.

RELIABILITY.md is made of the files in ``benchmarks/results/reliability/``: ``suite.json`` of the
whole suite, and of the long campaigns ``fuzz.json``, ``crash.json``, ``install.json`` (all of them
by ``pytest --evidence``) and ``mutants.json`` (``make mutants``). No figure in it is typed by hand.
The command fails where a promise has a failed test or none; ``--check`` only says whether the file
is up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import evidence_files, mutants_table
from benchmarks.evidence_files import Evidence, TestRow
from sparseconv.core.files import write_whole
from sparseconv.measure.table import Table, with_thousands

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results") / "reliability"

# The one place where the promises stand: name, what is promised, how it is tested.
PROMISES: dict[str, tuple[str, str, str]] = {
    "P1": (
        "Accurate",
        "Every output lies within a computed bound of the float64 result: "
        "|y - y64| ≤ (n + 2) · 2⁻²⁴ · conv(|w|, |x|) with n active weights in that sum.",
        "Random cases against an index-loop oracle in float64; no tolerance is typed by hand.",
    ),
    "P2": (
        "Exact",
        "The result is exact to the bit wherever all partial sums are integers below 2²⁴.",
        "Integer inputs, threshold 0; a case whose result is mostly zeros does not count.",
    ),
    "P3": (
        "Reproducible",
        "Bits of the output and of the input's gradient do not depend on run, threads, batch size, "
        "position in the batch, memory layout or instruction set; bits of the weights' gradient "
        "not on run, threads, memory layout or instruction set.",
        "Hashes over thread counts, instruction sets, batch sizes and repeats.",
    ),
    "P4": (
        "NaN and infinity",
        "They travel along active weights only; a row without active weights gives exactly the "
        "bias.",
        "Special values at every position of small cases; what they reach is compared with a "
        "boolean model.",
    ),
    "P5": (
        "Memory-safe",
        "No tensor, pattern or checkpoint can make the library read or write outside its buffers: "
        "it raises.",
        "Mutated patterns and checkpoints, wrong arguments of every op, guard pages, sanitizers.",
    ),
    "P6": (
        "Any memory layout",
        "Contiguous, transposed, sliced, expanded and offset tensors give the same bits.",
        "Every layout on every tensor, compared bit by bit.",
    ),
    "P7": (
        "The same everywhere",
        "Eager, torch.compile, torch.export and functional_call give the same result.",
        "torch's opcheck on every op; compiled and exported models beside eager ones.",
    ),
    "P8": (
        "Changes nothing global",
        "Floating-point mode, threads, random generators, default dtype and environment stay "
        "untouched; layers survive a fork and calls from many threads.",
        "All of it is asserted before and after.",
    ),
    "P9": (
        "Crash-safe",
        "Killed at any instant, a training run resumes from its checkpoint and ends with the same "
        "bits: weights, pattern, optimizer, schedule, random numbers, best epoch.",
        "Processes killed at random instants; the finished runs are compared by hash.",
    ),
    "P10": (
        "Installs anywhere",
        "Without a compiler, CUDA or Triton the import works, what is missing is said once, and "
        "the reference runs.",
        "Fresh processes and environments with each part missing.",
    ),
}
CAMPAIGNS = {"fuzz": "make fuzz", "crash": "make crash", "install": "make install-matrix"}


class Broken(RuntimeError):  # noqa: N818  (a finding, not an error of the program)
    """Promises or tools that a run did not keep; the text names them."""


def markdown(results: Path = RESULTS) -> tuple[str, list[str]]:
    """Make RELIABILITY.md, and a list of what is not as promised.

    Raises:
        ValueError: a file is missing or malformed.
    """
    runs = _read_runs(results)
    mutants = mutants_table.read(results / "mutants.json")
    broken = problems(runs)
    parts = [
        "# Reliability",
        "What this library promises, which tests stand for it, and what they said. Written by "
        "`make reliability`, not by hand.",
        _promises(runs).markdown(),
        "*Cases* counts what tests counted as executed: a case is one problem computed and "
        "compared. A skipped test is not a passed one.",
        "## The runs behind it",
        _runs(runs, mutants).markdown(),
        "## How each promise is tested",
        *(_evidence_for(promise, runs) for promise in PROMISES),
        "## What was not run",
        _not_run(runs, mutants),
        "## Would the tests notice?",
        mutants_table.section(mutants),
        "## Tools",
        "What each tool does with a `SparseConv1d`, as the tests saw it: it works, it refuses with "
        "a clear error, or it does not apply.",
        matrix_markdown(results),
    ]
    if broken:
        listed = "\n".join(f"- {text}" for text in broken)
        parts.insert(2, f"**Not everything holds:**\n\n{listed}")
    return "\n\n".join(parts) + "\n", broken


def _read_runs(results: Path) -> dict[str, Evidence]:
    """The suite first, then the campaigns that were recorded."""
    found = [name for name in CAMPAIGNS if (results / f"{name}.json").exists()]
    return {name: evidence_files.read(results / f"{name}.json") for name in ("suite", *found)}


def matrix_markdown(results: Path = RESULTS, heading: str = "###") -> str:
    """The table of tools, one for each file of tests that has some.

    Raises:
        ValueError: ``suite.json`` is missing or malformed, or two tests contradict each other.
    """
    sections: dict[str, dict[str, list[TestRow]]] = {}
    verdicts: dict[str, str] = {}
    for row in (row for run in _read_runs(results).values() for row in run.tests):
        for tool, verdict, *_ in row.tools:
            if verdicts.setdefault(tool, verdict) != verdict:
                raise ValueError(
                    f"{row.test} says that {tool!r} {verdict!r}, another test "
                    f"{verdicts[tool]!r}; a tool has one verdict"
                )
            known = next((rows for rows in sections.values() if tool in rows), None)
            rows = sections.setdefault(row.about, {}) if known is None else known
            rows.setdefault(tool, []).append(row)
    parts = []
    for title, tools in sorted(sections.items()):
        lines = [_tool(tool, verdicts[tool], rows) for tool, rows in tools.items()]
        table = Table(("tool", "SparseConv1d", ""), lines, text_columns=3)
        parts += [f"{heading} {title}", table.markdown()]
    return "\n\n".join(parts) if parts else "No test is marked with a tool."


def problems(runs: Mapping[str, Evidence]) -> list[str]:
    """What is not as promised: failed tests, and promises without any that passed."""
    broken = []
    for run in runs.values():
        broken += [
            f"{', '.join(row.promises) or row.tools[0][0]}: {row.test} failed"
            for row in run.tests
            if row.failed
        ]
        broken += [f"`{run.command}`: {run.failed} tests failed"] if run.failed else []
    for promise in PROMISES:
        if not any(row.passed for row in _rows(runs["suite"], promise)):
            broken.append(f"{promise}: no test of it ran")
    return broken


def _tool(tool: str, verdict: str, rows: Sequence[TestRow]) -> tuple[str, str, str]:
    notes = {mark[2]: None for row in rows for mark in row.tools if mark[0] == tool and mark[2:]}
    if any(row.failed for row in rows):
        verdict = "**FAILED**"
    elif not any(row.passed for row in rows):
        verdict = f"not run (expected: {verdict})"
    elif verdict == "refuses":
        verdict = "refuses clearly"
    return tool, verdict, "; ".join(notes)


def _rows(run: Evidence, promise: str) -> list[TestRow]:
    return [row for row in run.tests if promise in row.promises]


def _promises(runs: Mapping[str, Evidence]) -> Table:
    lines = []
    for promise, (name, text, _) in PROMISES.items():
        rows = [row for run in runs.values() for row in _rows(run, promise)]
        cases = [sum(row.cases for row in _rows(run, promise)) for run in runs.values()]
        failed = sum(row.failed for row in rows)
        passed = sum(row.passed for row in _rows(runs["suite"], promise))
        result = f"**FAILED** ({failed})" if failed else "holds" if passed else "**NOT TESTED**"
        lines.append(
            (
                promise,
                f"**{name}.** {text}",
                result,
                str(passed),
                *(with_thousands(n) if n else "-" for n in cases),
            )
        )
    header = ("", "promise", "result", "tests passed", "cases")
    return Table((*header, *(f"cases, {name}" for name in list(runs)[1:])), lines, text_columns=3)


def _runs(runs: Mapping[str, Evidence], mutants: Mapping[str, Any] | None) -> Table:
    lines = []
    for run in runs.values():
        outcome = f"{run.passed} passed, {run.failed} failed, {run.skipped} skipped"
        lines.append((f"`{run.command}`", outcome, with_thousands(run.cases), *_where(run.machine)))
    if mutants is not None:
        count = f"{len(mutants['mutants'])} mutants"
        lines.append((f"`{mutants['command']}`", count, "-", *_where(mutants["machine"])))
    header = ("command", "outcome", "cases", "date", "commit", "machine")
    return Table(header, lines, text_columns=6)


def _where(machine: Mapping[str, str]) -> tuple[str, str, str]:
    keys = ("cpu", "isas", "torch", "python", "system")
    cpu, isas, torch, python, system = (machine.get(key, "unknown") for key in keys)
    text = f"{cpu}, {machine.get('cores', '?')} cores ({isas}), torch {torch}, Python {python}"
    return machine["date"], machine["commit"], f"{text}, {system}"


def _evidence_for(promise: str, runs: Mapping[str, Evidence]) -> str:
    name, _, how = PROMISES[promise]
    lines = [f"### {promise} {name}", "", how, ""]
    for title, run in runs.items():
        for row in _rows(run, promise):
            file, _, test = row.test.partition("::")
            outcome = f"{row.passed} passed" if row.passed else ""
            for count, word in ((row.failed, "**failed**"), (row.skipped, "not run")):
                outcome += f"{', ' if outcome else ''}{count} {word}" if count else ""
            cases = f", {with_thousands(row.cases)} cases" if row.cases else ""
            what = test.removeprefix("test_").replace("_", " ")
            where = "" if title == "suite" else f" ({CAMPAIGNS[title]})"
            lines.append(f"- {what}: {outcome}{cases} · [{Path(file).name}]({file}){where}")
    return "\n".join(lines if len(lines) > 4 else [*lines, "- **no test**"])


def _not_run(runs: Mapping[str, Evidence], mutants: Mapping[str, Any] | None) -> str:
    lines = []
    for run in runs.values():
        lines += [f"- {n} tests of `{run.command}`: {why}" for why, n in run.not_run.items()]
    for name, command in CAMPAIGNS.items():
        if name not in runs:
            lines.append(f"- `{command}`, the long campaign: no result is recorded")
    if mutants is None:
        lines.append("- `make mutants`: no result is recorded")
    elif left := mutants["drawn"] - len(mutants["mutants"]):
        lines.append(f"- `make mutants`: {left} of the {mutants['drawn']} changes that were drawn")
    for promise in PROMISES:
        for row in _rows(runs["suite"], promise):
            if row.skipped and not row.passed:
                lines.append(f"- {promise}: {row.test}")
    return "\n".join(lines) or "Everything was run."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the folder of the JSON files"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "RELIABILITY.md")
    arguments = parser.parse_args(argv)
    try:
        text, broken = markdown(arguments.results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in broken:
        print(f"not as promised: {line}", file=sys.stderr)
    if arguments.check:
        stale = not arguments.out.exists() or arguments.out.read_text(encoding="utf-8") != text
        if stale:
            print(f"{arguments.out} is out of date; run make reliability", file=sys.stderr)
        return int(stale or bool(broken))
    write_whole(arguments.out, text)
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
