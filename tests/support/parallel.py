"""The suite in worker processes (``pytest -n 2``): what measures time runs alone.

A pytest plugin that ``tests/conftest.py`` registers. A test that is marked ``serial`` waits until
no other one runs, and no other one begins before it has ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # in a worker, and for the processes that tests start
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    elif config.getoption("numprocesses", None):  # the workers' environment is this one's
        # OpenMP reads it when a worker starts. Two threads next to another worker wait for a core,
        # and by default they do so in loops that take it from each other: up to 20 times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):
        return (yield)
    torch.set_num_threads(1)  # whatever the test before has left
    folder = item.config.rootpath / "build"
    folder.mkdir(exist_ok=True)
    serial = item.get_closest_marker("serial")
    with (folder / "tests-begin").open("w") as begin, (folder / "tests-run").open("w") as run:
        fcntl.flock(begin, fcntl.LOCK_EX)  # held by a serial test while others end
        fcntl.flock(run, fcntl.LOCK_EX if serial else fcntl.LOCK_SH)
        fcntl.flock(begin, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(run, fcntl.LOCK_UN)  # a child of the test may hold the file open
