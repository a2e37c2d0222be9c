"""The code blocks of the README and the docs, run as a reader would paste them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparseconv.cli.main import main

ROOT = Path(__file__).parents[2]
# A reader trains for longer: one epoch of a small network shows that a command runs to its end.
SMALL = {"train": ["--epochs", "1", "--nf", "4", "--depth", "1", "--quiet"],
         "train pocket": ["--n-kernels", "100", "--quiet"],
         "prune": ["--epochs", "1", "--quiet"]}  # fmt: skip


_ran: set[str] = set()  # commands that one page or another has shown


class Block(NamedTuple):
    """One fenced block: ``python`` or ``sh``, its text, where it starts, and what it prints."""

    language: str
    text: str
    place: str
    output: str  # the page's ``text`` block below, or empty


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown file, also those inside directives."""
    page = path.read_text(encoding="utf-8")
    block = r"^```(python|sh)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    for found in re.finditer(block, page, re.DOTALL | re.MULTILINE):
        line = page.count("\n", 0, found.start()) + 2
        yield Block(found[1], found[2], f"{path.relative_to(ROOT)}:{line}", found[3] or "")


def comparable(text: str) -> list[str]:
    """The lines that no measurement decides; of a row of a report its layer and density."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip("|:- ")]
    rows = (line.startswith("|") and not line.startswith("| layer") for line in lines)
    return [
        "|".join(line.split("|")[:3]) if row else line
        for line, row in zip(lines, rows, strict=True)
    ]


def run(block: Block, scope: dict[str, Any]) -> None:
    """Run a block: Python in ``scope``, commands of this package in this process, each once."""
    if block.language == "python":
        exec(compile(re.sub(r"\bepochs=\d+", "epochs=1", block.text), block.place, "exec"), scope)
        return
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:3] != ["python", "-m", "sparseconv"]:
            check_foreign(words, f"{block.place}: {line}")
        elif line not in _ran:
            _ran.add(line)
            kind = words[3] + (" pocket" if "pocket" in line else "")
            assert main(words[3:] + SMALL.get(kind, [])) == 0, f"{block.place}: {line}"


def check_foreign(words: list[str], place: str) -> None:
    """What a test cannot run must at least exist: a target of the Makefile, a file."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), place
    elif words[0] == "jupytext":
        assert (ROOT / words[-1]).is_file(), place
    else:
        assert words[:2] == ["pip", "install"], f"{place}: nothing here runs this"
