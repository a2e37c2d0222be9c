"""The small archive and plan of the sweep's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_plan import PLAN, write_archive


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
