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
from types import SimpleNamespace
from typing import Any

import promises
import pytest

ROOT = Path(promises.__file__).resolve().parents[1]
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
TESTS = ROOT / "tests"
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
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 120


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
@pytest.mark.promise("P3")
def test_passes_for_two(count_cases):
    count_cases(1)
    count_cases(1)

@pytest.mark.promise("P4")
def test_does_not_run():
    pytest.skip("nothing to see")

def test_stands_for_nothing(count_cases):
    count_cases(1)
"""
OTHERS = """
import pytest

@pytest.mark.parametrize("n", range(4, 11))
def test_other(n, request):
    request.node.user_properties.append(("promise", f"P{n}"))
"""


def suite(folder: Path, *words: str, **files: str) -> tuple[int, list[str]]:
    """Run pytest with this conftest in a suite of its own; the exit status and what it printed."""
    (folder / "tests").mkdir()
    for name in ("conftest.py", "promises.py", "engines.py", "parallel.py"):
        source = next(TESTS.rglob(name))
        shutil.copy(source, folder / "tests" / name)
    for name, text in files.items():
        (folder / "tests" / f"{name}.py").write_text(text)
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(settings.replace(', "sparseconv"]', "]"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": f"{folder / 'tests'}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("words", [[], ["-n", "2"]])
def test_a_promise_without_a_test_fails_the_run(tmp_path: Path, words: list[str]) -> None:
    pytest.importorskip("xdist")
    code, lines = suite(tmp_path, *words, test_toy=RUN)
    assert code == 1, lines
    assert {
        "P1: 3 tests passed, 60 cases",
        "P2: 1 tests passed, 2 cases",
        "P3: 1 tests passed, 2 cases",
        "cases executed: 63",
        "1 not run: nothing to see",
    } <= set(lines)
    untested = [line for line in lines if line.endswith("NO TEST PASSED")]
    assert untested == [f"P{i}: NO TEST PASSED" for i in range(4, 11)]


@pytest.mark.parametrize("words", [["tests"], ["-k", "toy"]])
def test_a_part_of_the_suite_may_leave_promises_out(tmp_path: Path, words: list[str]) -> None:
    code, lines = suite(tmp_path, *words, test_toy=RUN)
    assert code == 0, lines
    assert "cases executed: 63" in lines


def test_a_whole_run_passes_where_every_promise_has_a_test(tmp_path: Path) -> None:
    code, lines = suite(tmp_path, test_toy=RUN, test_others=OTHERS)
    assert code == 0, lines
    assert "P10: 1 tests passed, 0 cases" in lines


@pytest.mark.parametrize("mark", [("promise", "P11"), ("tool", "a"), ("tool", "a", "breaks")])
def test_a_wrong_marker_stops_the_run(mark: tuple[str, ...]) -> None:
    found = {mark[0]: [SimpleNamespace(args=mark[1:])]}
    item: Any = SimpleNamespace(nodeid="test_it", iter_markers=lambda kind: found.get(kind, []))
    with pytest.raises(pytest.UsageError, match="test_it: expected "):
        promises.note_markers(item)
