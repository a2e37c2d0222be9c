"""Examples: every script in ``examples/`` runs to its end, from an empty folder."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from child import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("aeon")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSECONV_QUICK", "1")
    runpy.run_path(str(script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 3
    assert script.read_text(encoding="utf-8").startswith("# %%"), "cells make it a notebook"
