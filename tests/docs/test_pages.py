"""README and docs as a code host renders them: CommonMark and tables, without Sphinx."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from child import ROOT
from markdown_it import MarkdownIt
from markdown_it.token import Token

from docs import generate

PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
MARKDOWN = MarkdownIt("commonmark").enable("table")
# What only Sphinx understands, and a row outside any table.
LITERAL = re.compile(r"^(:{3,}|\(.+\)=$|\{[\w-]+\}|\|)|\{[\w:]+\}`", re.MULTILINE)


@cache
def tokens(page: Path) -> list[Token]:
    return MARKDOWN.parse(page.read_text(encoding="utf-8"))


def inside(page: Path) -> Iterator[Token]:
    """The parts of a page's paragraphs, headings and cells."""
    for token in tokens(page):
        yield from token.children or ()


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for opening, heading in zip(tokens(page), tokens(page)[1:], strict=False):
        if opening.type == "heading_open":
            text = "".join(child.content for child in heading.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_directive_is_shown(page: Path) -> None:
    for token in tokens(page):
        if token.type == "html_block":
            assert token.content.startswith("<!--"), token.content
            assert token.content.rstrip().endswith("-->"), token.content
        elif token.type == "fence":
            assert not token.info.strip().startswith("{"), token.content
        elif token.type in ("inline", "code_block"):
            assert not LITERAL.search(token.content), token.content


@cache
def committed_files() -> set[Path]:
    """What a code host has; empty outside a checkout."""
    listed = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return set()
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {ROOT / name for name in names.split("\0")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_and_anchor_resolves(page: Path) -> None:
    committed = committed_files()
    for token in inside(page):
        link = str(token.attrs.get("href", token.attrs.get("src", "https:")))
        if not link.startswith(("https:", "http:")):
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not committed or target.is_dir() or target in committed, f"{link}: not in git"
            assert target.is_relative_to(ROOT), link
            assert not anchor or anchor in anchors(target), link


def test_the_pages_show_what_the_results_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aeon")
    figure = pytest.importorskip("matplotlib.figure")
    # Without drawing, which takes longer than all tables.
    monkeypatch.setattr(figure.Figure, "savefig", lambda _, path, **__: Path(path).touch())
    made = generate.parts(tmp_path / "static")
    shown = []
    for page in generate.PAGES:
        text = page.read_text(encoding="utf-8")
        assert generate.filled(text, made) == text, f"{page.name}: run python -m docs.generate"
        shown += [name for _, name, _ in generate.PART.findall(text)]
    assert sorted(shown) == sorted(made), "each part is shown once"
    assert {*generate.names.PAGES, "index"} == {page.stem for page in (ROOT / "docs/api").iterdir()}
    drawn = {path.name for path in (tmp_path / "static").iterdir()}
    files = {path.name for path in generate.PICTURES.glob("*.svg")}
    assert drawn <= files, "run python -m docs.generate"
    pictures = {Path(str(token.attrs["src"])).name for page in PAGES for token in inside(page)
                if token.type == "image"}  # fmt: skip
    assert pictures == files, "each picture is shown"
