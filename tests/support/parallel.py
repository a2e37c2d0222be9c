"""The suite in worker processes (``pytest -n 2``): files in parallel, then serial tests alone.

A pytest plugin that ``tests/conftest.py`` registers. What measures time has
``pytestmark = pytest.mark.serial``: one worker runs it at the end, when all others have finished.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

SERIAL = "serial"
DURATIONS = Path("build/test-durations.txt")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # in a worker, and for the processes that tests start
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@cache
def is_serial(file: Path) -> bool:
    """By its text: the process that hands out the tests collects none, and sees no markers."""
    return f"pytestmark = pytest.mark.{SERIAL}" in file.read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ParallelThenSerial(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return SERIAL if is_serial(config.rootpath / file) else file

        def _only_serial_left(self) -> bool:
            return list(self.workqueue) == [SERIAL]

        def _others(self, node: Any) -> list[Any]:
            return [other for other in self.nodes if other is not node]

        def _assign_work_unit(self, node: Any) -> None:
            if SERIAL in self.workqueue:
                self.workqueue.move_to_end(SERIAL)
            busy = any(self._pending_of(self.assigned_work[o]) for o in self._others(node))
            if not (busy and self._only_serial_left()):
                super()._assign_work_unit(node)

        def _reschedule(self, node: Any) -> None:
            last = all(other.shutting_down for other in self._others(node))
            if self._only_serial_left() and not last:
                node.shutdown()  # after what it has
            else:
                super()._reschedule(node)

        def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
            super().mark_test_complete(node, item_index, duration)
            if self._only_serial_left():
                for other in self._others(node):
                    self._reschedule(other)

    return ParallelThenSerial(config, log)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """With ``--durations``: what each file took, also written to ``build/test-durations.txt``."""
    if not config.getoption("durations"):
        return
    seconds = Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    lines = [f"{total:7.1f} s  {file}" for file, total in seconds.most_common()]
    DURATIONS.parent.mkdir(exist_ok=True)
    DURATIONS.write_text("\n".join(lines) + "\n")
    terminalreporter.section(f"seconds of each file (all: {DURATIONS})")
    for line in lines[:20]:
        terminalreporter.write_line(line)
