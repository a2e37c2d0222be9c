"""``benchmarks.studies.unpruned``: what is measured, recorded once, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_clock import fake_clock
from torch import nn

from benchmarks.lines import read_lines
from benchmarks.studies import unpruned
from benchmarks.studies.__main__ import main


def test_each_network_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = fake_clock(
        monkeypatch, lambda name, _: 3.0 if name.split()[0] in ("dense", "before") else 1.0
    )
    networks = {"small": lambda: nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Conv1d(4, 2, 3))}
    monkeypatch.setattr(unpruned, "NETWORKS", networks)
    path = tmp_path / "rows.jsonl"
    assert main(["unpruned", "--out", str(path)]) == 0
    rows = read_lines(path)
    assert [(r["n_timepoints"], r["threads"]) for r in rows] == [
        (150, 1), (150, 2), (500, 1), (500, 2),
    ]  # fmt: skip
    everywhere = {"chosen": 2, "layers": 2, "ratio": [3, 3, 3]}
    assert all(row["training"] == row["inference"] == everywhere for row in rows)
    measured = len(clock)
    assert main(["unpruned", "--out", str(path)]) == 0
    assert len(clock) == measured, "nothing was left to do"
    assert "3.00 [3.00, 3.00]" in capsys.readouterr().out


def test_a_wrong_network_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 2, 3)

        def forward(self, x: Any) -> Any:
            return self.conv(x) * (1 if type(self.conv) is nn.Conv1d else 2)

    fake_clock(monkeypatch, lambda name, _: 3.0 if name.startswith("dense") else 1.0)
    monkeypatch.setattr(unpruned, "NETWORKS", {"wrong": Double})
    with pytest.raises(AssertionError, match="not close"):
        unpruned.measure(tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
