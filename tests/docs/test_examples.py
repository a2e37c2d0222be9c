"""Examples: every script in ``examples/`` runs to its end, from a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs(script: Path, tmp_path: Path) -> None:
    pytest.importorskip("aeon")
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", script],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"SPARSECONV_QUICK": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3
    assert script.read_text(encoding="utf-8").startswith("# %%"), "cells make it a notebook"
