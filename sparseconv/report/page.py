"""Tables, and one self-contained HTML page made of them and of figures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparseconv.measure.table import Table


@dataclass(frozen=True)
class Section:
    """One part of a page, shown in this order."""

    title: str
    text: str = ""
    table: Table | None = None
    figure: Path | None = None
    caption: str = ""


def write_html(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    highlights: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write one HTML file that needs no other: styles and figures are inside.

    ``highlights`` are (figure, meaning) pairs shown large below the heading. Nothing is written if
    a section's figure does not exist (FileNotFoundError).
    """
    figures = [_inline(section.figure) if section.figure else None for section in sections]
    return render(
        path,
        __package__,
        "template.html",
        title=title,
        subtitle=subtitle,
        highlights=highlights,
        sections=list(zip(sections, figures, strict=True)),
    )


def render(path: str | Path, package: str, template: str, **content: Any) -> Path:
    """Write the page that a package's template makes of ``content``.

    The template may extend this package's ``base.html``, which reads ``title``, ``subtitle`` and
    ``highlights``, and import ``parts.html``. RuntimeError if jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise RuntimeError(
            f"the HTML report needs jinja2, which cannot be imported ({error}); "
            "install it with `pip install 'sparseconv[tsc]'`"
        ) from error

    def load(name: str) -> str:
        own = files(package).joinpath(name)
        return (own if own.is_file() else files(__package__).joinpath(name)).read_text("utf-8")

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(load),
    )
    html = environment.get_template(template).render(content)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _inline(figure: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(figure.read_bytes()).decode()
