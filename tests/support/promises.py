"""Count the tests and cases of each of the ten promises, printed at the end.

``@pytest.mark.promise("P5")`` marks a test of promise P5 (docs/reliability.md), and the fixture
``count_cases`` counts the problems that a test computed and compared. Both travel with the reports,
so that tests in worker processes count too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

PROMISES = tuple(f"P{i}" for i in range(1, 11))
VERDICTS = ("works", "refuses")
# Options that leave tests out on purpose.
NARROWING = ("keyword", "markexpr", "lf", "deselect", "ignore", "ignore_glob", "collectonly")

Stats = Mapping[str, Sequence[Any]]  # outcome -> reports


def note_markers(item: pytest.Item) -> None:
    """Put a test's promises into its reports."""
    item.user_properties += [("promise", mark.args[0]) for mark in item.iter_markers("promise")]


def is_whole(session: pytest.Session) -> bool:
    """Whether this run is the whole suite, and ran to its end."""
    narrowed = any(session.config.getoption(name, None) for name in NARROWING)
    everything = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return everything and not (narrowed or session.shouldstop or session.shouldfail)


def without_a_test(stats: Stats) -> list[str]:
    """The promises of which no test passed."""
    passed = {value for report in stats.get("passed", []) for value in _values(report, "promise")}
    return [promise for promise in PROMISES if promise not in passed]


def lines(stats: Stats) -> Iterator[str]:
    """The summary: tests and cases of each promise, and all cases."""
    total, tests, cases = 0, Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in stats.get(outcome, []):
            n = sum(_values(report, "cases"))
            total += n
            for promise in set(_values(report, "promise")):
                tests[promise] += outcome == "passed"
                cases[promise] += n
    for promise in filter(tests.__contains__, PROMISES):
        yield f"{promise}: {tests[promise]} tests passed, {cases[promise]} cases"
    yield f"cases executed: {total}"


def _values(report: Any, name: str) -> list[Any]:
    return [value for key, value in report.user_properties if key == name]
