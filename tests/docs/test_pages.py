"""README and docs: what was measured is as the results make it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate


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
    drawn = {path.name for path in (tmp_path / "static").iterdir()}
    files = {path.name for path in generate.PICTURES.glob("*.svg")}
    assert drawn <= files, "run python -m docs.generate"
    text = "".join(page.read_text(encoding="utf-8") for page in generate.PAGES)
    assert set(re.findall(r"\]\((?:docs/)?static/([^)]+)", text)) == files
