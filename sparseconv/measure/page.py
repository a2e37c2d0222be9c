"""Make a self-contained HTML page with tables, figures and text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from sparseconv.core.files import write_whole
from sparseconv.measure.table import Table


@dataclass(frozen=True)
class Section:
    """One part of a page."""

    title: str
    text: str = ""  # a paragraph each line
    table: Table | None = None
    figure: Path | None = None
    caption: str = ""


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Return an HTML page that needs no other file: styles and figures are embedded.

    A section whose figure does not exist raises FileNotFoundError.
    """
    template = Template(files(__package__).joinpath("page.html").read_text("utf-8"))
    text = {
        "title": escape(title),
        "subtitle": escape(subtitle),
        "body": "\n".join(map(_section, sections)),
    }
    return template.substitute(text)


def write_html(path: str | Path, title: str, sections: Sequence[Section], **more: Any) -> Path:
    """Write a ``page``; write nothing if a figure does not exist."""
    text, path = page(title, sections, **more), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(line)}</p>" for line in section.text.splitlines()]
    if section.table:
        parts.append(f'<div class="scroll">{_table(section.table)}</div>')
    caption = f"<figcaption>{escape(section.caption)}</figcaption>"
    if section.figure:
        png = base64.b64encode(section.figure.read_bytes()).decode()
        picture = f'<img src="data:image/png;base64,{png}" alt="{escape(section.title)}">'
        parts.append(f"<figure>{picture}{caption}</figure>")
    elif section.caption:
        parts.append(caption)
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if i < table.text_columns else "" for i in range(len(cells))]
        shown = zip(kinds, map(escape, cells), strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in shown)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    wide = ' class="wide"' if len(table.header) > 12 else ""
    return f"<table{wide}><thead>{row(table.header, 'th')}</thead><tbody>{rows}</tbody></table>"
