"""RELIABILITY.md says what the runs said: failures and gaps show, wrong files are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evidence
import pytest

from benchmarks import evidence_files, mutants_table, reliability

TESTS = Path(__file__).parent
MACHINE = {"date": "2026-11-20 12:00 UTC", "commit": "1234567", "cpu": "a CPU", "cores": "2"}


def row(**changes: Any) -> dict[str, Any]:
    plain = {
        "test": "tests/test_x.py::test_bits_stay",
        "promises": ["P1"],
        "tools": [],
        "about": "Bits and pieces",
        "passed": 2,
        "failed": 0,
        "skipped": 0,
        "cases": 1234,
    }
    return plain | changes


def run(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    plain = {
        "command": "pytest",
        "machine": MACHINE,
        "passed": 20,
        "failed": 0,
        "skipped": 3,
        "cases": 5000,
        "not_run": {"no GPU": 3},
        "tests": list(rows),
    }
    return plain | changes


ALL = [row(promises=[promise]) for promise in reliability.PROMISES]


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)


def command(folder: Path, *words: str) -> int:
    out = ["--results", str(folder), "--out", str(folder / "RELIABILITY.md")]
    return reliability.main([*out, *words])


def page(folder: Path) -> str:
    return (folder / "RELIABILITY.md").read_text(encoding="utf-8")


def test_a_run_that_keeps_every_promise(tmp_path: Path) -> None:
    write(tmp_path, suite=run(*ALL), fuzz=run(row(cases=200_000), cases=200_000))
    assert command(tmp_path, "--check") == 1, "nothing was written yet"
    assert command(tmp_path) == 0
    assert command(tmp_path, "--check") == 0
    text = page(tmp_path)
    assert "Not everything holds" not in text
    for promise, (name, promised, how) in reliability.PROMISES.items():
        assert f"### {promise} {name}" in text
        assert promised.replace("|", r"\|") in text
        assert how in text
    assert "bits stay: 2 passed, 1 234 cases · [test_x.py](tests/test_x.py)" in text
    assert "bits stay: 2 passed, 200 000 cases · [test_x.py](tests/test_x.py) (make fuzz)" in text
    assert "3 tests of `pytest`: no GPU" in text
    assert "`make crash`, the long campaign: no result is recorded" in text
    assert "`make fuzz`, the" not in text
    assert "`make mutants`: no result is recorded" in text
    assert "2026-11-20 12:00 UTC" in text
    assert "1234567" in text
    write(tmp_path, suite=run(*ALL, cases=1))
    assert command(tmp_path, "--check") == 1, "it is not up to date any more"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([*ALL[1:], row(failed=1)], "P1: tests/test_x.py::test_bits_stay failed"),
        (ALL[1:], "P1: no test of it ran"),
        ([*ALL[1:], row(passed=0, skipped=2)], "P1: no test of it ran"),
        (
            [*ALL, row(promises=[], tools=[["a tool", "works"]], failed=1)],
            "a tool: tests/test_x.py::test_bits_stay failed",
        ),
    ],
)
def test_failures_and_gaps_show(
    rows: list[dict[str, Any]], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, suite=run(*rows))
    assert command(tmp_path) == 1
    assert command(tmp_path, "--check") == 1
    text = page(tmp_path)
    assert says in capsys.readouterr().err
    assert f"**Not everything holds:**\n\n- {says}\n" in text
    assert ("**FAILED**" in text or "**FAILED** (1)" in text) is ("failed" in says)
    assert ("**NOT TESTED**" in text) is ("no test" in says)


def test_failures_of_tests_that_stand_for_nothing_and_of_campaigns_count(tmp_path: Path) -> None:
    write(tmp_path, suite=run(*ALL, failed=2))
    assert command(tmp_path) == 1
    assert "`pytest`: 2 tests failed" in page(tmp_path)
    write(tmp_path, suite=run(*ALL), crash=run(row(promises=["P9"], failed=1, passed=0)))
    assert command(tmp_path) == 1
    assert "P9: tests/test_x.py::test_bits_stay failed" in page(tmp_path)


def test_the_matrix_of_tools(tmp_path: Path) -> None:
    rows = [
        row(promises=[], tools=[["copy", "works"], ["a|b", "refuses", "says why"]], about="Saving"),
        row(promises=[], tools=[["copy", "works", "deep"]], about="Other"),
        row(promises=[], tools=[["thop", "not applicable"]], about="Counting"),
        row(promises=[], tools=[["onnx", "works"]], about="Saving", passed=0, skipped=1),
        row(promises=[], tools=[["jit", "works"]], about="Saving", failed=1),
    ]
    write(tmp_path, suite=run(*rows))
    text = reliability.matrix_markdown(tmp_path)
    cells = [[cell.strip(" |") for cell in line.split(" | ")] for line in text.splitlines()]
    assert [line[0] for line in cells if line[0].startswith("###")] == [
        "### Counting",
        "### Saving",
    ]
    assert ["copy", "works", "deep"] in cells
    assert [r"a\|b", "refuses clearly", "says why"] in cells
    assert any(line[:2] == ["thop", "not applicable"] for line in cells)
    assert any(line[:2] == ["onnx", "not run (expected: works)"] for line in cells)
    assert any(line[:2] == ["jit", "**FAILED**"] for line in cells)
    write(tmp_path, suite=run(*rows, row(promises=[], tools=[["copy", "refuses"]])))
    with pytest.raises(ValueError, match="'copy' 'refuses', another test 'works'"):
        reliability.matrix_markdown(tmp_path)


def test_a_campaign_runs_what_the_suite_leaves_out(tmp_path: Path) -> None:
    skipped = row(tools=[["an old torch", "works"]], passed=0, skipped=1)
    write(tmp_path, suite=run(skipped))
    assert "not run (expected: works)" in reliability.matrix_markdown(tmp_path)
    write(tmp_path, suite=run(skipped), install=run(row(tools=[["an old torch", "works"]])))
    assert "not run" not in reliability.matrix_markdown(tmp_path)
    assert reliability.matrix_markdown(tmp_path).count("an old torch") == 1


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        *(without(run(row()), name) for name in evidence_files.Evidence._fields),
        *(run(without(row(), name)) for name in evidence_files.TestRow._fields),
        run(row(), more=1),
        run(row(more=1)),
        run(row(passed=-1)),
        run(row(passed=True)),
        run(row(cases="7")),
        run(row(promises=[])),
        run(row(tools=[["a tool"]])),
        run(row(tools=[["a tool", "breaks"]])),
        run(row(), machine={"cpu": "a CPU"}),
        run(row(), not_run=["no GPU"]),
    ],
)
@pytest.mark.parametrize("name", ["suite", "fuzz", "crash"])
def test_malformed_files_are_refused(
    name: str, content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, suite=run(*ALL))
    write(tmp_path, **{name: content})
    assert command(tmp_path) == 2
    assert "is not what pytest --evidence writes" in capsys.readouterr().err
    assert not (tmp_path / "RELIABILITY.md").exists()


def test_a_missing_suite_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path) == 2
    assert "suite.json" in capsys.readouterr().err


def mutant(name: str, outcome: str, **changes: Any) -> dict[str, Any]:
    plain = {
        "id": name, "file": "a.py", "line": 3, "kind": "comparison", "text": "if a < b:",
        "old": "<", "new": "<=", "outcome": outcome, "by": "", "seconds": 1.0,
    }  # fmt: skip
    return plain | changes


def test_mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = ["killed"] * 16 + ["timeout"] * 2 + ["survived"] * 3 + ["equivalent", "invalid"]
    rows = [mutant(f"{i}", outcome) for i, outcome in enumerate(outcomes)]
    rows[18] |= {"kind": "deleted statement", "old": "b += 1", "new": "", "text": "b += 1"}
    explained = {"19": "a and b are never equal", "20": "nobody looks"}
    monkeypatch.setattr(mutants_table, "explanations", lambda: explained)
    write(
        tmp_path,
        suite=run(*ALL),
        mutants={"machine": MACHINE, "command": "make mutants", "drawn": 30, "mutants": rows},
    )
    assert command(tmp_path) == 0
    text = page(tmp_path)
    assert "Of 22 changes **18 were noticed**; 1 compiled to the same code, 2 others" in text
    assert "**94.7%** of those that do harm (goal: 95%, **missed**)" in text
    assert "**Not noticed, though it should be:**\n\n- a.py:3: `b += 1` left out\n" in text
    assert "- a.py:3: `<` → `<=` in `if a < b:`: a and b are never equal\n" in text
    assert "- `make mutants`: 7 of the 30 changes that were drawn\n" in text


@pytest.mark.parametrize(
    "content",
    [
        "",
        {"mutants": []},
        {"machine": MACHINE, "mutants": []},
        {"machine": {}, "drawn": 1, "mutants": []},
        {"machine": MACHINE, "drawn": 1, "mutants": [{"id": "1"}]},
        {"machine": MACHINE, "drawn": 1, "mutants": [mutant("1", "fine")]},
        {"machine": MACHINE, "drawn": 0, "mutants": [mutant("1", "killed")]},
    ],
)
def test_malformed_mutants_are_refused(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, suite=run(*ALL), mutants=content)
    assert command(tmp_path) == 2
    assert "is not what make mutants writes" in capsys.readouterr().err


def test_the_page_is_what_the_recorded_files_say() -> None:
    page, suite = reliability.ROOT / "RELIABILITY.md", reliability.RESULTS / "suite.json"
    assert page.exists() == suite.exists()
    if suite.exists():
        assert page.read_text(encoding="utf-8") == reliability.markdown()[0]


def test_every_explanation_is_of_a_mutant_that_survived() -> None:
    recorded = mutants_table.read(reliability.RESULTS / "mutants.json")
    outcomes = {row["id"]: row["outcome"] for row in (recorded or {"mutants": []})["mutants"]}
    explained = mutants_table.explanations()
    assert {outcomes.get(name) for name in explained} <= {"survived"}
    assert all(reason.strip() for reason in explained.values())


RUN = """'What toys do.'
import pytest

@pytest.mark.promise("P1")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_passes(n, count_cases):
    count_cases(10 * n)

@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
def test_fails(count_cases):
    count_cases(1)
    assert False

@pytest.mark.promise("P4")
def test_does_not_run():
    pytest.skip("nothing to see")

@pytest.fixture
def broken():
    raise OSError

@pytest.mark.tool("a tool", "works", "a note")
def test_does_not_start(broken):
    pass

def test_stands_for_nothing(count_cases):
    count_cases(1)
"""


def test_what_pytest_writes_is_what_the_page_says(tmp_path: Path) -> None:
    for name in ("conftest.py", "evidence.py", "engines.py"):
        shutil.copy(TESTS / name, tmp_path / name)
    (tmp_path / "test_toy.py").write_text(RUN)
    words = ["-c", TESTS.parent / "pyproject.toml", "--rootdir", tmp_path, "test_toy.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--evidence", tmp_path / "suite.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    content = evidence_files.read(tmp_path / "suite.json")
    counts = {row.test.partition("::")[2]: row[4:] for row in content.tests}
    assert counts == {
        "test_passes": (3, 0, 0, 60),
        "test_fails": (0, 1, 0, 1),
        "test_does_not_run": (0, 0, 1, 0),
        "test_does_not_start": (0, 1, 0, 0),
    }
    assert content[2:6] == (4, 2, 1, 62)
    assert content.not_run == {"nothing to see": 1}
    assert command(tmp_path) == 1
    text = page(tmp_path)
    for promise in ("P2", "P3"):
        assert f"- {promise}: no test of it ran" in text
    assert "P2, P3: test_toy.py::test_fails failed" in text
    assert "### What toys do\n" in text


@pytest.mark.parametrize(
    "mark", [("promise", "P11"), ("tool", "a tool"), ("tool", "a tool", "breaks")]
)
def test_a_marker_that_no_table_could_show_is_refused(mark: tuple[str, ...]) -> None:
    found = {mark[0]: [SimpleNamespace(args=mark[1:])]}
    item: Any = SimpleNamespace(nodeid="test_it", iter_markers=lambda kind: found.get(kind, []))
    with pytest.raises(pytest.UsageError, match="test_it: "):
        evidence.claims(item)
