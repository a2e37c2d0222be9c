"""The small archive and plan of the sweep's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_plan import PLAN, command, write_archive, write_set

from benchmarks.paper.__main__ import main


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    write_archive(folder)
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Let the jobs of a sweep run in a thread: the start of processes takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.paper.__main__.local_pool", lambda workers: ThreadPoolExecutor(1))
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, in_this_process: None) -> Callable[[str], Path]:
    """Run a plan's text on a small GunPoint; what is returned is the folder ``out``."""

    def run(plan: str) -> Path:
        folder = tmp_path_factory.mktemp("swept")
        write_set(folder / "archive" / "GunPoint.npz")
        (folder / "plan.toml").write_text(plan)
        assert main(command(folder / "plan.toml", folder / "archive", folder / "out")) == 0
        return folder / "out"

    return run
