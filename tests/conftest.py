"""What every test file shares: one count of the executed cases, and what could not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

CASES = pytest.StashKey[int]()


@pytest.fixture
def count_cases(pytestconfig: pytest.Config) -> Callable[[int], None]:
    """Add to the number of cases that the summary prints: ``count_cases(50)`` after 50 of them."""

    def count(n: int) -> None:
        pytestconfig.stash[CASES] = pytestconfig.stash.get(CASES, 0) + n

    return count


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    terminalreporter.write_line(f"cases executed: {config.stash.get(CASES, 0)}")
    # A skip is not a pass: each reason, and how many tests it kept from running.
    skips = terminalreporter.stats.get("skipped", [])
    for reason, n in Counter(report.longrepr[2] for report in skips).items():
        terminalreporter.write_line(f"{n} not run: {reason.removeprefix('Skipped: ')}")
    if not torch.cuda.is_available():
        terminalreporter.write_line("GPU: not run (torch sees no CUDA device)")
