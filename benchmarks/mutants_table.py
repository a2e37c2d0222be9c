"""What ``make mutants`` found, as a section of RELIABILITY.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparseconv.measure.table import Table

EXPLAINED = Path(__file__).with_name("mutants_explained.json")
OUTCOMES = ("killed", "timeout", "survived", "equivalent", "invalid")
FIELDS = {"id", "file", "line", "kind", "text", "old", "new", "outcome", "by", "seconds"}
GOAL = 0.95

Row = Mapping[str, Any]


def read(path: Path) -> dict[str, Any] | None:
    """Read what ``make mutants`` wrote; None if it was never run.

    Raises:
        ValueError: the file is something else.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"date", "commit"} <= set(content["machine"]):
            raise ValueError("the machine has no date or commit")
        str(content["command"])
        if not len(content["mutants"]) <= int(content["drawn"]):
            raise ValueError("there are more mutants than were drawn")
        for row in content["mutants"]:
            if set(row) != FIELDS or row["outcome"] not in OUTCOMES:
                raise ValueError(f"a mutant must have {sorted(FIELDS)}, but this one is {row}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what make mutants writes ({type(error).__name__}: {error}); "
            "remove it, and run make mutants"
        ) from error
    return content


def explanations(path: Path = EXPLAINED) -> dict[str, str]:
    """Why mutants that survive are no gap in the tests: name -> reason."""
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def section(content: Mapping[str, Any] | None, explained: Mapping[str, str] | None = None) -> str:
    """The share of mutants that the tests noticed, by file, and what became of the others."""
    if content is None:
        return "Not run: `make mutants` has left no result."
    explained = explanations() if explained is None else explained
    rows = [row for row in content["mutants"] if row["outcome"] != "invalid"]
    survivors = [row for row in rows if row["outcome"] == "survived"]
    left = [row for row in survivors if row["id"] not in explained]
    told = [row for row in survivors if row["id"] in explained]
    noticed = sum(_noticed(row) for row in rows)
    harmful = noticed + len(left)
    share = noticed / harmful if harmful else 0.0
    parts = [
        "`make mutants` changes the code in one small place at a time (an operator, a comparison, "
        "a constant, a condition, swapped arguments, a statement left out; drawn at random) and "
        "runs the tests of that file. A change that no test notices marks a gap.",
        f"Of {len(rows)} changes **{noticed} were noticed**; "
        f"{len(rows) - len(survivors) - noticed} compiled to the same code, {len(told)} others "
        f"cannot be noticed, for the reasons below, and {len(left)} should have been: "
        f"**{share:.1%}** of those that do harm (goal: {GOAL:.0%}"
        f"{'' if share >= GOAL else ', **missed**'}).",
        _by_file(rows, explained).markdown(),
    ]
    if left:
        lines = [f"- {_change(row)}" for row in left]
        parts += ["**Not noticed, though it should be:**", "\n".join(lines)]
    if told:
        lines = [f"- {_change(row)}: {explained[row['id']]}" for row in told]
        parts += ["Not noticed, because nothing changes:", "\n".join(lines)]
    return "\n\n".join(parts)


def _noticed(row: Row) -> bool:
    return row["outcome"] in ("killed", "timeout")


def _by_file(rows: Sequence[Row], explained: Mapping[str, str]) -> Table:
    lines = []
    for file in sorted({row["file"] for row in rows}):
        mine = [row for row in rows if row["file"] == file]
        count = Counter(row["outcome"] for row in mine)
        told = sum(row["outcome"] == "survived" and row["id"] in explained for row in mine)
        cells = (
            len(mine), count["killed"], count["timeout"], count["equivalent"], told,
            count["survived"] - told,
        )  # fmt: skip
        lines.append((file, *(str(n) for n in cells)))
    header = ("file", "changes", "a test failed", "a test hung", "same code", "explained", "missed")
    return Table(header, lines)


def _change(row: Row) -> str:
    """One line of Markdown that shows a change."""
    old, new = (" ".join(row[key].split()) for key in ("old", "new"))
    what = f"`{old}` → `{new}`" if new else f"`{old}` left out"
    line = "" if row["text"] in (old, f"{old};") else f" in `{row['text']}`"
    return f"{row['file']}:{row['line']}: {what}{line}"
