"""Tables of the public names, for readers of ``docs/api`` without the site."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sparseconv.measure.table import Table

ROOT = Path(__file__).parent.parent
PAGES = ("layers", "training", "dsn", "inference", "pruning", "rocket", "reference")
ENTRY = re.compile(r"^\.\. (auto\w+|py:data):: sparseconv\.(\S+)\n((?:   .*\n|\n)*)", re.MULTILINE)
DEFINED = re.compile(r"^(?:class|def) (\w+)|^(\w+)(?:: .*)? = ", re.MULTILINE)
# The index shows these, the networks, and the names of sparseconv itself.
ALSO = ("training.train", "training.Recipe", "datasets.load")


class Entry(NamedTuple):
    """A name without ``sparseconv.``, a sentence about it, and the file that defines it."""

    name: str
    text: str
    source: str


def entries(page: str) -> Iterator[Entry]:
    """Yield what a page of the API documents, in its order."""
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")
    for kind, name, below in ENTRY.findall(text):
        module, _, own = f"sparseconv.{name}".rpartition(".")
        thing = getattr(importlib.import_module(module), own)
        said = re.sub(r"^ *:.*", "", below, flags=re.MULTILINE)  # without options
        if kind != "py:data":
            said = inspect.getdoc(thing) or ""
        sentence = " ".join(re.split(r"(?<=[^.]\.)\s|\n\n", said.strip())[0].split())
        yield Entry(name, sentence.replace("``", "`"), _source(thing, own))


def _source(thing: Any, name: str) -> str:
    """Return the path of the file that defines a name; other files may use it as well."""
    for own in (name, getattr(thing, "__name__", name)):  # it may be exported under another
        for path in _definitions().get(own, ()):
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            if getattr(module, own) is thing:
                return path
    raise LookupError(f"no file defines {name}")


@cache
def _definitions() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "sparseconv").rglob("*.py")):
        for names in DEFINED.findall(path.read_text(encoding="utf-8")):
            found.setdefault("".join(names), []).append(path.relative_to(ROOT).as_posix())
    return found


def table(page: str) -> str:
    """Tabulate a page's names, with links to their sources."""
    rows = [
        (f"`{name}`", text, f"[{source.removeprefix('sparseconv/')}](../../{source})")
        for name, text, source in entries(page)
    ]
    return Table(("name", "summary", "source"), rows, text_columns=3).markdown()


def summary() -> str:
    """Tabulate the names that most programs need."""
    rows = [
        (f"[`sc.{name}`]({page}.md)", text)
        for page in PAGES
        for name, text, _ in entries(page)
        if "." not in name.strip("_") or name in ALSO or name.startswith("models.")
    ]
    return Table(("name", "summary"), rows, text_columns=2).markdown()
