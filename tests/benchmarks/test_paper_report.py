"""The report of `make paper`, from rows made by hand."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paper_rows import SETS, dsn_facts, row

from benchmarks.paper import report
from benchmarks.paper.archives import members
from benchmarks.paper.parts import PARTS
from benchmarks.paper.plan import PLANS


@pytest.fixture(scope="module")
def full() -> list[dict[str, Any]]:
    """A row for each run that the plans name, on six sets."""
    generator = np.random.default_rng(0)
    names = [run["name"] for run in tomllib.loads((PLANS / "full.toml").read_text())["run"]]
    held = {"UCR 2018": members("ucr2018"), "UEA": members("uea")}
    rows = [
        row(name, dataset, 0, generator.uniform(0.7, 1), **dsn_facts(nf=4))
        for name in dict.fromkeys(names)
        for dataset in held.get(name.partition(",")[0], SETS)[:6]
    ]
    for one in rows:
        one["train_seconds"] = 50.0 if one["run"] == "masked dense" else 10.0
        one["curve_seconds"] = [one["train_seconds"] / 2, one["train_seconds"]]
        one |= {"forward_ms": 1.0, "step_ms": generator.uniform(3, 4)}
        if one["run"] == "without groups":
            one |= dsn_facts(nf=4, n_groups=1)
    return rows


def test_report_with_everything(full: list[dict[str, Any]], tmp_path: Path) -> None:
    page = report.write_report(full, tmp_path)
    text = page.read_text(encoding="utf-8")
    for part in PARTS:
        assert part.title in text, part.name
        assert "{" not in part.caption(with_figure=True), "not filled in"
        assert part.figure is None or (tmp_path / f"{part.name}.png").stat().st_size > 5000
    assert "Omitted, because" not in text
    assert "Of UCR 85, 6 were run: " in text
    assert (tmp_path / "table-1.md").read_text().startswith("| published")


def test_post_hoc_sets_count_in_no_comparison(tmp_path: Path) -> None:
    rows = [row("DSN", name, 0, 0.5) for name in SETS]
    grown = [row("gradient growth", name, post_hoc=True) for name in SETS[:3]]
    report.write_report([*rows, *grown], tmp_path)
    for shown in ("behind", "runs"):
        assert "gradient growth" in (tmp_path / f"{shown}.md").read_text()
    assert not (tmp_path / "figure-7.md").exists()
    grown[0]["post_hoc"] = grown[2]["post_hoc"] = False
    report.write_report([*rows, *grown], tmp_path)
    (*_, cells) = (tmp_path / "figure-7.md").read_text().splitlines()
    assert cells.split("|")[2].strip() == "2, 2"
