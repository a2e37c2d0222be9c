"""``python -m sparseconv prune``: a smaller run of a trained one."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_clock import fake_clock
from toy_run import files, write_data

import sparseconv as sc
from sparseconv import datasets
from sparseconv.cli.main import main

SMALL = ["--epochs", "2", "--nf", "5", "--depth", "2", "--threads", "1", "--quiet"]
TUNE = ["--epochs", "2", "--quiet"]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", write_data(folder), "--out", str(folder / "trained"), *SMALL]) == 0
    return folder / "trained"


@pytest.fixture
def trained(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "trained"))


@pytest.mark.parametrize(
    "words",
    [
        ["--criterion", "jacobian", "--fraction", "0.6", "--steps", "2"],
        ["--criterion", "dsp", "--eps", "0.5", "--silence", "1e-4", "--silence-epochs", "1"],
        ["--criterion", "magnitude", "--target-macs", "6000"],
        ["--criterion", "evolutionary"],
    ],
)
def test_a_pruned_run_is_a_run(
    words: list[str], data: str, trained: Path, tmp_path: Path, command: Any
) -> None:
    out, before = tmp_path / "pruned", files(trained)
    printed = command("prune", trained, "--data", data, "--out", out, *TUNE, *words)
    assert files(trained) == before
    assert "test accuracy" in printed
    whole, pruned = sc.load_run(trained), sc.load_run(out)
    cost, old = pruned.model.cost(40), whole.model.cost(40)
    assert cost.params == sum(p.numel() for p in pruned.model.parameters()) < old.params
    read = datasets.load(data)
    if "--target-macs" in words:
        assert cost.macs_executed <= 6000 * 40 / read.n_timepoints
    accuracy = float((pruned.predict(read.X_test) == pruned.classes[read.y_test]).mean())
    assert f"{accuracy:.4f}" in (out / "summary.md").read_text()
    assert "filters" in (out / "pruning.html").read_text()
    criterion = json.loads((out / "config.json").read_text())["pruning"]["criterion"]
    assert re.search(rf"^pruned by +{re.escape(criterion)}$", command("info", out), re.MULTILINE)
    command("profile", out, "--inference", "--threads", 1)


def test_what_silences_filters_is_scaled_to_the_batch(
    data: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    given: list[float] = []
    real = sc.pruning.InstanceSparsity

    def watched(model: Any, stages: Any, weight: float) -> Any:
        given.append(weight)
        return real(model, stages, weight)

    monkeypatch.setattr("sparseconv.pruning.InstanceSparsity", watched)
    words = ["--criterion", "dsp", "--eps", 0, "--silence-epochs", 1, "--batch-size", 4, *TUNE]
    command("prune", trained, "--data", data, "--out", tmp_path / "a", *words)
    assert given == pytest.approx([2e-5 * 64 / 4])


def test_pruned_twice(data: str, trained: Path, tmp_path: Path, command: Any) -> None:
    folders = [trained, tmp_path / "a", tmp_path / "b"]
    for source, out in itertools.pairwise(folders):
        words = ["--criterion", "hc", "--fraction", 0.5, *TUNE]
        command("prune", source, "--data", data, "--out", out, *words)
    config = json.loads((folders[2] / "config.json").read_text())
    kept = config["pruning"]["filters"]["blocks.0.conv"]
    assert len(kept) == 6
    assert max(kept) < 15
    conv = sc.load_run(folders[2]).model.blocks[0].conv
    widths = [end - first for (first, end), _ in conv.regions]
    groups = np.bincount(np.array(kept) // 5, minlength=3)
    assert widths == groups[groups > 0].tolist()
