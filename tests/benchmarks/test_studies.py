"""Studies of networks and classifiers of others: measured once, recorded, and shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_clock import fake_clock
from small_plan import write_set
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks import plots
from benchmarks.recording import read_lines
from benchmarks.studies import (
    blocks,
    classifiers,
    densities,
    dilation,
    networks,
    published_networks,
    unpruned,
)
from benchmarks.studies.__main__ import main
from benchmarks.studies.published_networks import WAYS, Data, Network
from benchmarks.studies.published_widths import fcn
from sparseconv.conversion import to_dense
from sparseconv.estimators.pocket import POCKETClassifier
from sparseconv.models import ResNet


@pytest.fixture
def measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Path, str]]:
    """Run a study twice, the second time without anything to do: its file, and what it prints."""

    def run(study: str, *words: str) -> tuple[Path, str]:
        out = tmp_path / "new" / "out"
        assert main([study, *words, "--out", str(out)]) == 0
        before = out.read_text()
        capsys.readouterr()
        assert main([study, *words, "--out", str(out)]) == 0
        assert out.read_text() == before
        return out, capsys.readouterr().out

    return run


def test_unpruned_networks(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch, lambda name, _: 3.0 if name.split()[0] in ("dense", "torch") else 1.0)
    networks = {"small": lambda: nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Conv1d(4, 2, 3))}
    monkeypatch.setattr(unpruned, "NETWORKS", networks)
    path, printed = measured("unpruned")
    rows = read_lines(path)
    assert [(r["n_timepoints"], r["threads"]) for r in rows] == [
        (150, 1), (150, 2), (500, 1), (500, 2),
    ]  # fmt: skip
    everywhere = {"chosen": 2, "layers": 2, "ratio": [3, 3, 3]}
    assert all(row["training"] == row["inference"] == everywhere for row in rows)
    assert "3.00 [3.00, 3.00]" in printed


def test_the_largest_ratio_of_dilations_is_named(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interleave(calls: Any, rounds: int) -> dict[str, Any]:
        outputs = {name: call() for name, call in calls.items()}
        assert len({output.shape for output in outputs.values()}) == 1
        assert len({output.sum().item() for output in outputs.values()}) == len(calls)
        return {d: np.full(rounds, 1 + int(d) * output.shape[-1]) for d, output in outputs.items()}

    monkeypatch.setattr(dilation, "interleave", interleave)
    monkeypatch.setattr(dilation, "LENGTHS", (64, 100))
    path, printed = measured("dilation")
    assert len(read_lines(path)) == 12
    assert f"{6401 / 101:.2f} | 25x25x7, N = 1, L = 100, dilation 64 |" in printed


SECONDS = {
    "plain": 9.0, "channels_last": 6.0, "compiled": 8.0, "1": 8.0, "0.1": 2.0,
    "sparse": 2.0, "sparse, compiled": 3.0,
}  # fmt: skip


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Each call runs once, without Inductor, and took what ``SECONDS`` says."""
    found: list[set[str]] = []
    compile = torch.compile

    def interleave(calls: Any, rounds: int, **_: Any) -> dict[str, Any]:
        for call in calls.values():
            call()
        found.append(set(calls))
        return {name: np.full(rounds, SECONDS[name]) for name in calls}

    for study in (densities, networks):
        monkeypatch.setattr(study, "interleave", interleave)
    monkeypatch.setattr(
        torch, "compile",
        lambda model, backend=None, **_: compile(model, backend=backend) if backend else model,
    )  # fmt: skip
    return found


def test_networks_are_timed_by_density_and_drawn(
    timed: list[set[str]], measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = lambda density: blocks.pruned(ResNet(1, 2, nf=4), 1, density)  # noqa: E731
    monkeypatch.setattr(densities, "NETWORKS", {"ResNet": (small, (4, 1, 64))})
    monkeypatch.setattr(densities, "DENSITIES", (1.0, 0.1))
    path, printed = measured("densities")
    assert len(timed) == 1
    assert "| 4 x 1 x 64 |     10% | 4.50 [4.50, 4.50] |      3.00 [3.00, 3.00] |" in printed
    assert {"cpu", "isa", "torch", "date", "commit"} <= read_lines(path)[0]["machine"].keys()
    speeds = densities.speeds(path)
    assert speeds == {"ResNet": [(1.0, 0.75), (0.1, 3.0)]}
    assert len(plots.networks_by_density(speeds).axes) == 1


class Own(nn.Conv1d):
    """Convert leaves it alone: it computes something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def build(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Conv1d(channels, 8, 49, padding="same")),
        nn.ReLU(),
        Own(8, 8, 3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def ramps(_: str) -> Data:
    torch.manual_seed(0)
    y = torch.arange(36) % 2
    X = torch.randn(36, 1, 80) + torch.linspace(-2, 2, 80) * (2 * y - 1)[:, None, None]
    return Data(X, y, X[:20], y[:20], classes=2)


def test_published_networks(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "load", ramps)
    monkeypatch.setattr(published_networks, "ROUNDS", 6)
    monkeypatch.setattr(published_networks, "LR", 0.02)
    network = Network("Stand-in", "torch", "Ramps", build, epochs=8)
    monkeypatch.setattr(published_networks, "NETWORKS", (network,))
    monkeypatch.setattr(published_networks, "SEEDS", range(2))
    path, text = measured("published_networks")
    rows = read_lines(path)
    assert [row["seed"] for row in rows] == [0, 1]
    assert [row.get("times", {}).keys() for row in rows] == [{"step", "inference"}, set()]
    for row in rows:
        assert row["before"].keys() == {"dense", "pruned"}
        assert min(row["after"][way] for way in (*WAYS, "moving")) > 0.6
    assert f"Stand-in (torch {version('torch')})" in text
    assert "1 of 2 left dense: cannot be replaced; " in text


def test_networks_in_blocks(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def network(channels: int, classes: int) -> nn.Module:
        first, second = nn.Conv1d(channels, 32, 9, padding=4), nn.Conv1d(32, 32, 9, padding=4)
        end = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, classes)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *end)

    monkeypatch.setattr(blocks, "NETWORKS", {"ours": network})
    monkeypatch.setattr(blocks, "open_archive", lambda _: SimpleNamespace(sources={"Ramps": ""}))
    monkeypatch.setattr(Data, "load", ramps)
    monkeypatch.setattr(published_networks, "LR", 0.02)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    sizes = {"DATASETS": ("Ramps",), "EPOCHS": 20, "SEEDS": range(2), "ROUNDS": 6}
    for name, value in sizes.items():
        monkeypatch.setattr(blocks, name, value)
    path, text = measured("blocks")
    first, second = read_lines(path)
    assert (first["seed"], second["seed"]) == (0, 1)
    assert min(*first["accuracy"].values(), *second["accuracy"].values()) > 0.6
    assert len(first["ratio"]) == 4
    assert "ratio" not in second
    assert "| ours    | Ramps    |         80 |" in text
    found = blocks.networks("ours", ramps(""), 0, 0)
    assert [found["blocks"][i].pattern.block for i in (0, 2)] == [(1, 1), (16, 16)]
    assert found["single weights"][2].pattern.block == (1, 1)


def test_each_fit_is_a_line(measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "archive" / "GunPoint.npz")
    trained = [{"run": "DSN", "dataset": "GunPoint", "seed": 0, "train_seconds": None}]
    monkeypatch.setattr(classifiers, "read_rows", lambda _: trained)
    small = {"ROCKET": partial(POCKETClassifier, n_kernels=20)}
    monkeypatch.setattr(classifiers, "classifiers", lambda: small)
    out, _ = measured("classifiers", "--archive", str(tmp_path / "archive"))
    assert [row["seed"] for row in read_lines(out)] == [0, 1, 2]


@pytest.mark.parametrize("network", ["ECG ResNet", "SpliceAI", "TCN", "PhaseNet"])
def test_other_networks_keep_their_outputs_when_they_are_pruned(network: str) -> None:
    found = networks.NETWORKS[network]
    X, y = torch.randn(2, found.shape[1], 256), torch.arange(2)
    model = networks.comparable(found.sparse(0.05))
    networks.check(model, X, y)
    images = networks.images_of(to_dense(model))
    torch.testing.assert_close(images.train()(X), to_dense(model).train()(X))


def test_networks_are_timed_in_each_mode(
    timed: list[set[str]], measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"FCN": networks.Network(lambda: fcn((16, 32, 16)), (4, 1, 64))}
    monkeypatch.setattr(networks, "NETWORKS", small)
    _, printed = measured("networks")
    assert timed == [networks.DENSE.keys() | networks.SPARSE.keys()] * 4, "each mode once"
    cell = "3.00 [3.00, 3.00]*<br>channels_last |"
    assert f"4 x 1 x 64 | {cell} {cell}" in " ".join(printed.split())
