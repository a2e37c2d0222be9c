"""The commands read the archives' own files, and know the data of a run in another format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_run import SMALL

import sparseconv as sc


@pytest.fixture
def ucr(tmp_path: Path) -> Path:
    """A folder as in the UCR archive of 2018, and one as in that of 2015."""
    random = np.random.default_rng(0)
    for split in ("TRAIN", "TEST"):
        y = np.arange(20) % 2 * 2 - 1
        X = random.normal(0, 0.3, (20, 40)) + np.sin(np.outer(y + 2, np.linspace(0, 6, 40)))
        for folder, ending, mark in (("UCR", ".tsv", "\t"), ("UCR15", "", ",")):
            (tmp_path / folder / "Toy").mkdir(parents=True, exist_ok=True)
            name = tmp_path / folder / "Toy" / f"Toy_{split}{ending}"
            np.savetxt(name, np.c_[y, X], delimiter=mark, fmt="%.6g")
    return tmp_path


def test_every_command_that_reads_data(
    ucr: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ucr)
    command("train", "UCR/Toy", "--epochs", 2, *SMALL)
    run = Path("runs/Toy-seed4")
    command("train", "UCR/Toy/Toy_TEST.tsv", "--resume", *SMALL)
    pocket = ["--model", "pocket", "--n-kernels", 20, "--quiet"]
    command("train", "UCR15/Toy/Toy_TRAIN", *pocket)
    assert sc.load_run("runs/Toy-pocket-seed0").classes.tolist() == ["-1", "1"]
    command("prune", run, "--data", "UCR15/Toy", "--epochs", 1, "--quiet")
    assert json.loads(Path("runs/Toy-seed4-whc/config.json").read_text())["data"]["name"] == "Toy"
    assert "c-float32 holds" in command("export", run, "--data", "UCR15/Toy/Toy_TRAIN")
