"""The reports of ``profile``, ``convert``, ``prune_filters`` and ``factorize`` are one family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseconv as sc
from sparseconv.measure.records import Report
from sparseconv.measure.table import Table
from sparseconv.pruning import WHC

X = torch.randn(2, 2, 30)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 8, 5), nn.ReLU(), nn.Conv1d(8, 3, 5))


REPORTS: dict[str, Callable[[], Report]] = {
    "profile": lambda: sc.profile(sc.SparseConv1d(2, 8, 5), X, rounds=6, least_seconds=0),
    "convert": lambda: sc.convert(network(), layers=["0"]).report,
    "prune_filters": lambda: sc.prune_filters(network(), X, WHC(), fraction=0.5).report,
    "factorize": lambda: sc.factorize(network(), rank=1, method="svd").report,
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_has_all_forms(name: str, tmp_path: Path) -> None:
    report = REPORTS[name]()
    html = report._repr_html_()
    assert not any(other in html for other in ("src=", "href=", "@import", "url(", "<script"))
    assert report.save(tmp_path / "report.html").read_text() == html
    saved = json.loads(report.save(tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    table = report.table()
    assert max(map(len, str(report).splitlines())) <= 100
    assert len(table.header) <= 5
    assert all(cell in html for cell in report.details().header)
    for text in (str(report), html):
        assert all(cell in text for cell in table.header)
        assert all(row[0] in text for row in table.rows)
    long = Table(("layer", "ms"), [("module." * 20 + "last", "1.0")]).markdown(width=40)
    assert {len(line) for line in long.splitlines()} == {40}
    assert "module.last |" in long
    with pytest.raises(ValueError, match=r"\.html or \.json, but got"):
        report.save(tmp_path / "report.pdf")
