"""``info``, ``profile`` and ``export`` of a trained network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_program import Program
from fake_clock import fake_clock
from toy_run import SMALL, files, stop_after, write_data

import sparseconv as sc
from sparseconv import datasets, profiling
from sparseconv.cli.main import main
from sparseconv.models import DSN
from sparseconv.training import checkpoint


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    words = ["--epochs", "6", "--out", str(folder / "run"), *SMALL, "--update-every-epochs", "1"]
    assert main(["train", write_data(folder), *words]) == 0
    return folder


def test_profile(home: Path, out: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the best epoch, on series as in training or others; only the clock is not real."""
    fake_clock(monkeypatch)
    calls: list[Any] = []
    real = profiling.profile

    def spy(model: DSN, x: torch.Tensor, *, training: bool, verbose: bool) -> Any:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, best[name]), name
        calls.append((tuple(x.shape), training, model.training, torch.get_num_threads()))
        return real(model, x, training=training, verbose=verbose)

    monkeypatch.setattr(profiling, "profile", spy)
    run = home / "run"
    best = checkpoint.load(run / "checkpoint.pt")["best"]["model"]
    before, threads = files(run), torch.get_num_threads()
    with torch.random.fork_rng():
        printed = command("profile", run)
    assert printed.startswith("| layer")
    assert "blocks.1.conv" in printed

    path = out.with_name("out.json")
    words = ["--inference", "--batch", 3, "--length", 31, "--threads", 2, "--json", path]
    command("profile", run / "checkpoint.pt", *words)
    assert calls == [((2, 1, 20), True, True, 1), ((3, 1, 31), False, False, 2)]
    rows = json.loads(path.read_text())["layers"]
    assert [row["input_shape"] for row in rows] == [[3, 1, 31], [3, 3, 31]]
    assert files(run) == before
    assert torch.get_num_threads() == threads


def test_export(home: Path, command: Any) -> None:
    run, data = home / "run", home / "toy.npz"
    X = datasets.load(data).X_test
    for words, folder in (([], "c-float32"), (["--int8", "--data", data], "c-int8")):
        printed = command("export", run, "--name", "toy", *words)
        assert f"{folder} contains README.md, toy.c, toy.h, toy_test.c" in printed
        assert "classes, from 0: fast, slow" in printed
        labels = np.array(["fast", "slow"])[Program(run / folder, "toy").labels(X)]
        if not words:
            assert (labels == sc.load_run(run).predict(X)).all()


def test_an_unfinished_run(
    home: Path, command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read with a warning that says how to resume it; a finished one without."""
    fake_clock(monkeypatch)
    run, data = home / "half", str(home / "toy.npz")
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        assert main(["train", data, "--epochs", "6", "--out", str(run), *SMALL]) == 130
    how = f"to resume: python -m sparseconv train --out {run} --resume\n"
    said = f"2 of 6 epochs have been trained; {how}"
    assert re.search(rf"^unfinished +{re.escape(said)}", command("info", run), re.MULTILINE)
    assert "unfinished" not in command("info", home / "run")
    for path, words in (
        (run, ["export"]),
        (run / "checkpoint.pt", ["profile", "--inference", "--quiet"]),
    ):
        assert main([words[0], str(path), *words[1:]]) == 0
        assert capsys.readouterr().err == f"warning: {path} is unfinished: {said}"
    assert main(["profile", str(home / "run"), "--inference", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    kept = checkpoint.load(run / "checkpoint.pt")["history"]
    best = min(reversed(kept), key=lambda row: row["train_loss"])["epoch"]
    assert (sc.load_run(run).epoch, sc.load_run(run).epochs_done) == (best, 2)
    config = json.loads((run / "config.json").read_text())
    kept = {"criterion": "WHC", "filters": {f"blocks.{i}.conv": list(range(9)) for i in (0, 1)}}
    (run / "config.json").write_text(json.dumps(config | {"pruning": kept}))
    assert "2 of 6 epochs have been trained; `prune` cannot resume it; prune again\n" in command(
        "info", run
    )
    (run / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not exist.*--resume"):
        sc.load_run(run)


def test_data_that_moved(home: Path, tmp_path: Path, refused: Any) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["path"] = str(tmp_path / "gone.npz")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    refused(
        ["export", str(tmp_path / "run")],
        "gone.npz', which does not exist; specify its location with",
    )
