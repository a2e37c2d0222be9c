"""docs/reliability.md names what exists, and a run in which a promise went untested fails."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import promises
from child import ROOT, TESTS

PAGE = ROOT / "docs" / "reliability.md"
FILES = {path.stem: path for path in TESTS.rglob("*.py")}


def rows(header: str) -> list[list[str]]:
    """The cells of the page's table whose header line begins so."""
    table = PAGE.read_text(encoding="utf-8").partition(header)[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()[2:]
    ]


def test_every_promise_names_files_that_stand_for_it() -> None:
    table = rows("| | promise |")
    assert tuple(row[0] for row in table) == promises.PROMISES
    for promise, *_, files in table:
        for name in re.findall(r"`(\w+)`", files):
            assert f'promise("{promise}")' in FILES[name].read_text(encoding="utf-8"), name


def markers() -> Iterator[tuple[str, str]]:
    """Name and verdict of every ``tool`` marker that is written out."""
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "tool":
                words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                if len(words) == len(node.args) >= 2:
                    yield words[0], words[1]


def test_every_tool_is_where_its_test_says() -> None:
    columns = zip(*[row[1:] for row in rows("| | works |")], strict=True)
    said = {verdict: " ".join(c) for verdict, c in zip(promises.VERDICTS, columns, strict=True)}
    found = list(markers())
    assert len(found) > 85
    for name, verdict in found:
        assert name in said[verdict], (name, verdict)


RUN = """
import pytest

@pytest.mark.promise("P1")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_passes(n, count_cases):
    count_cases(10 * n)

@pytest.mark.promise("P2")
def test_does_not_run():
    pytest.skip("nothing to see")
"""


def test_a_promise_without_a_test_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "promises.py", "engines.py", "parallel.py"):
        shutil.copy(next(TESTS.rglob(name)), tmp_path / "tests" / name)
    (tmp_path / "tests" / "test_toy.py").write_text(RUN)
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(settings.replace(', "sparseconv"]', "]"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{tmp_path / 'tests'}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 1, lines
    assert {"P1: 3 tests passed, 60 cases", "1 not run: nothing to see"} <= set(lines)
    untested = [line for line in lines if line.endswith("NO TEST PASSED")]
    assert untested == [f"P{i}: NO TEST PASSED" for i in range(2, 11)]
