"""The small archive and plan of the sweep's tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_plan import PLAN, write_set


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    write_set(folder / "ucr" / "Short.npz", 12)
    write_set(folder / "Long.npz", 30, channels=2)
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
