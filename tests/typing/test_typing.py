"""mypy refuses the wrong calls of ``calls.py``, and no other line of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = Path(__file__).with_name("calls.py")


def test_wrong_choices_fail_in_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="the lint extra is not installed (make lint)")
    bare, wrong = tmp_path / "calls.py", "  # type: ignore[arg-type]"
    lines = CALLS.read_text(encoding="utf-8").splitlines()
    bare.write_text("\n".join(lines).replace(wrong, ""), encoding="utf-8")
    words = ["--strict", "--config-file", "pyproject.toml", "--no-error-summary", str(bare)]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *words],
        capture_output=True, text=True, check=False, cwd=CALLS.parents[2],
    )  # fmt: skip
    refused = {int(n) for n in re.findall(r"calls\.py:(\d+): error: .*\[arg-type\]", found.stdout)}
    assert refused == {n for n, line in enumerate(lines, 1) if line.endswith(wrong)}, found.stdout
