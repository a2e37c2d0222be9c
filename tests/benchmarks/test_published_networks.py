"""``benchmarks.studies.published_networks``: a run of it with a stand-in, and what is recorded."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.studies import published_networks
from benchmarks.studies.published_networks import WAYS, Data, Network


class Own(nn.Conv1d):
    """Convert leaves it alone."""


def build(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Conv1d(channels, 8, 49, padding="same")),
        nn.ReLU(),
        Own(8, 8, 3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def data(_: str) -> Data:
    torch.manual_seed(0)
    y = torch.arange(36) % 2
    X = torch.randn(36, 1, 80) + torch.linspace(-2, 2, 80) * (2 * y - 1)[:, None, None]
    return Data(X, y, X[:20], y[:20], classes=2)


def test_a_run_is_recorded_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Data, "load", data)
    monkeypatch.setattr(published_networks, "ROUNDS", 6)
    monkeypatch.setattr(published_networks, "LR", 0.02)
    network = Network("Stand-in", "torch", "Ramps", build, epochs=8)
    monkeypatch.setattr(published_networks, "NETWORKS", (network,))
    monkeypatch.setattr(published_networks, "SEEDS", range(2))
    path = tmp_path / "results.json"
    published_networks.measure(path)
    before = path.read_text()
    published_networks.measure(path)
    assert path.read_text() == before
    rows = json.loads(before)["rows"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert [layer["name"] for layer in rows[0]["layers"]] == ["0", "2"]
    assert "a Own may compute something else" in rows[0]["layers"][1]["reason"]
    assert rows[0]["times"].keys() == {"step", "inference"}
    assert "times" not in rows[1]
    for row in rows:
        assert row["before"].keys() == {"dense", "pruned"}
        assert min(row["after"][way] for way in (*WAYS, "moving")) > 0.6
    text = published_networks.section(path)
    assert f"Stand-in (torch {version('torch')})" in text
    assert "1 of 2 left dense: cannot be replaced; a Own" in text
    assert capsys.readouterr().out.count("Stand-in") == 2
