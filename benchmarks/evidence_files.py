"""The files that ``pytest --evidence`` writes, read with care."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

VERDICTS = ("works", "refuses", "not applicable")


class TestRow(NamedTuple):
    """One marked test function; its parameters are summed up."""

    test: str
    promises: list[str]
    tools: list[list[str]]  # name, verdict and perhaps a note
    about: str
    passed: int
    failed: int
    skipped: int
    cases: int


class Evidence(NamedTuple):
    """One run of pytest."""

    command: str
    machine: dict[str, str]
    passed: int
    failed: int
    skipped: int
    cases: int
    not_run: dict[str, int]  # reason -> tests that were skipped for it
    tests: list[TestRow]


def read(path: Path) -> Evidence:
    """Read what one run wrote.

    Raises:
        ValueError: the file is missing, or not what ``pytest --evidence`` writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [_checked(TestRow, row) for row in content.pop("tests")]
        run = _checked(Evidence, {**content, "tests": rows})
        for row in rows:
            if not row.promises and not row.tools:
                raise ValueError(f"{row.test} stands for nothing")
            if any(len(tool) not in (2, 3) or tool[1] not in VERDICTS for tool in row.tools):
                raise ValueError(f"{row.test} has a tool without a verdict: {row.tools}")
        if not {"date", "commit"} <= set(run.machine):
            raise ValueError("the machine has no date or commit")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what pytest --evidence writes ({type(error).__name__}: {error}); "
            "make it anew with make reliability"
        ) from error
    return run


def _checked(kind: Any, content: Mapping[str, Any]) -> Any:
    """Build a row whose fields are all there, no others, and of the right kind."""
    if set(content) != set(kind._fields):
        raise ValueError(f"expected {sorted(kind._fields)}, but got {sorted(content)}")
    kinds = {"int": int, "str": str, "list": list, "dict": dict}
    for name, annotation in kind.__annotations__.items():
        text = getattr(annotation, "__forward_arg__", annotation)
        expected = kinds[str(text).partition("[")[0]]
        value = content[name]
        if type(value) is not expected or (expected is int and value < 0):
            raise ValueError(f"expected {name} to be {text}, but got {value!r}")
    return kind(**content)
