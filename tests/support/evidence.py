"""What a run of the tests proves: which promise or tool each test stands for, and how it ended.

``pytest --evidence FILE`` writes it; ``python -m benchmarks.reliability`` makes RELIABILITY.md and
the matrix of tools of it.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

CASES = pytest.StashKey[int]()
VERDICTS = ("works", "refuses", "not applicable")


def add_cases(item: pytest.Item, n: int) -> None:
    """Count ``n`` cases for this test and for the whole run."""
    for stash in (item.stash, item.config.stash):
        stash[CASES] = stash.get(CASES, 0) + n


def claims(item: pytest.Item) -> dict[str, Any]:
    """The promises and tools that a test is marked with.

    Raises:
        pytest.UsageError: a marker that no table could show.
    """
    promises = [mark.args[0] for mark in item.iter_markers("promise")]
    tools = [list(mark.args) for mark in item.iter_markers("tool")]
    for promise in promises:
        if promise not in [f"P{i}" for i in range(1, 11)]:
            raise pytest.UsageError(f"{item.nodeid}: promise must be P1 to P10, not {promise!r}")
    for tool in tools:
        if len(tool) not in (2, 3) or tool[1] not in VERDICTS:
            raise pytest.UsageError(
                f"{item.nodeid}: expected tool(name, {' | '.join(VERDICTS)}, note), got {tool}"
            )
    module = item.getparent(pytest.Module)
    about = (getattr(module and module.obj, "__doc__", None) or "").partition("\n")[0].rstrip(".")
    promises.sort(key=lambda promise: int(promise[1:]))
    return {"promises": promises, "tools": tools, "about": about}


class Recorder:
    """Collects one row per test function that is marked; parameters are summed up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.reasons: dict[str, int] = {}
        self.totals = dict.fromkeys(("passed", "failed", "skipped"), 0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self.add(item, report)
        return report

    def add(self, item: pytest.Item, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self.totals[report.outcome] += 1
        claim = claims(item)
        if not claim["promises"] and not claim["tools"]:
            return
        name = item.nodeid.partition("[")[0]
        row = self.rows.setdefault(
            name, {"test": name, **claim, "passed": 0, "failed": 0, "skipped": 0, "cases": 0}
        )
        row[report.outcome] += 1
        row["cases"] += item.stash.get(CASES, 0) if report.when == "call" else 0

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        from sparseconv.measure.machine import machine

        content = {
            "command": shlex.join(["pytest", *sys.argv[1:]]),
            "machine": machine(),
            **self.totals,
            "cases": session.config.stash.get(CASES, 0),
            "not_run": self.reasons,
            "tests": [self.rows[name] for name in sorted(self.rows)],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1) + "\n")
