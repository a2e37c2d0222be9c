"""The commands read the archives' own files, and know the data of a run in another format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_run import SMALL, waves

import sparseconv as sc
from sparseconv import datasets
from sparseconv.cli import results


def test_a_run_of_an_older_version_knows_its_data(tmp_path: Path) -> None:
    """It sorted integers as text, and has the labels of .ts files in lower case."""
    for labels, older in ((["2", "10"], ["10", "2"]), (["Stand", "run"], ["run", "stand"])):
        folder = tmp_path / labels[0]
        folder.mkdir()
        for split in ("TRAIN", "TEST"):
            text = "\n".join(f"{label},{n},5,{n % 3}" for n, label in enumerate(labels * 3))
            (folder / f"Toy_{split}.csv").write_text(text)
        data = datasets.load(folder)
        assert data.classes.tolist() == labels
        then = replace(data, classes=np.array(older), y_train=1 - data.y_train)
        then = replace(then, y_test=1 - data.y_test)
        known = results.data_facts(then, {})
        again = results.as_in(data, known, tmp_path)
        assert results.data_facts(again, {}) == known
        assert again.classes.tolist() == older
        with pytest.raises(ValueError, match="its classes is"):
            results.as_in(data, known | {"classes": ["run", "10"]}, tmp_path)


def test_every_command_that_reads_data(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder as in the UCR archive of 2018, and one as in that of 2015."""
    monkeypatch.chdir(tmp_path)
    X, labels = waves(20, 40)
    y = np.where(labels == "slow", -1, 1)
    for folder, ending, mark in (("UCR", ".tsv", "\t"), ("UCR15", "", ",")):
        Path(folder).mkdir()
        for split in ("TRAIN", "TEST"):
            name = f"{folder}/Toy_{split}{ending}"
            np.savetxt(name, np.c_[y, X], delimiter=mark, fmt="%.6g")
    command("train", "UCR/Toy_TEST.tsv", "--epochs", 2, *SMALL)
    command("train", "UCR", "--out", "runs/Toy-seed4", "--resume", *SMALL)
    command("train", "UCR15/Toy_TRAIN", "--model", "pocket", "--n-kernels", 20, "--quiet")
    assert sc.load_run("runs/Toy-pocket-seed0").classes.tolist() == ["-1", "1"]
    command("prune", "runs/Toy-seed4", "--data", "UCR15", "--epochs", 1, "--quiet")
    assert json.loads(Path("runs/Toy-seed4-whc/config.json").read_text())["data"]["name"] == "Toy"
    assert "c-float32 contains" in command("export", "runs/Toy-seed4", "--data", "UCR15/Toy_TRAIN")
