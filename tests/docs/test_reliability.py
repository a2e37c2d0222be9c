"""docs/reliability.md and docs/tools.md name what exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import promises
from child import ROOT, TESTS

PAGES = ROOT / "docs"
FILES = {path.stem: path for path in TESTS.rglob("*.py")}


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of a page's table whose header line begins so."""
    table = (PAGES / page).read_text(encoding="utf-8").partition(header)[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()[2:]
    ]


def test_every_promise_names_files_that_stand_for_it() -> None:
    table = rows("reliability.md", "| | guarantee |")
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
    columns = zip(*[row[1:] for row in rows("tools.md", "| | works |")], strict=True)
    cells = (" ".join(column).replace("`", "") for column in columns)
    said = dict(zip(promises.VERDICTS, cells, strict=True))
    found = list(markers())
    assert len(found) > 85
    for name, verdict in found:
        assert name.split(": ")[-1] in said[verdict], (name, verdict)
