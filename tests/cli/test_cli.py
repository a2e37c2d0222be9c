"""``python -m sparseconv``: what it prints, writes and takes up again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import same
from toy_run import NETWORK, RECIPE, SMALL, history, is_network, losses, stop_after

import sparseconv as sc
from sparseconv.cli import info, options, results
from sparseconv.cli.main import main
from sparseconv.measure import machine
from sparseconv.measure.table import with_thousands
from sparseconv.ops import backends
from sparseconv.training import Recipe, checkpoint, run_folder


@pytest.mark.promise("P10")
def test_info_says_what_is_there_and_what_is_missing(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (backends, info):
        monkeypatch.setattr(module, "extension", None)
    monkeypatch.setattr(backends, "_missing_reason", "no compiler was found")
    monkeypatch.setattr(info, "OPTIONAL_PACKAGES", ("aeon", "no-such-package"))
    monkeypatch.setenv("SPARSECONV_BACKEND", "reference")
    shown = command("info")
    with pytest.raises(SystemExit, match=r"^0$"):
        command("--version")
    for pattern in (
        rf"versions .*sparseconv {sc.__version__}, torch {re.escape(torch.__version__)}",
        rf"processor +{re.escape(machine.cpu_name())}",
        rf"threads +torch uses {torch.get_num_threads()} of",
        r"backend cpp +no compiler was found",
        r"no-such-package +not installed: pip install 'sparseconv\[tsc\]'",
        r"SPARSECONV_BACKEND +reference",
    ):
        assert re.search(pattern, shown), pattern
    monkeypatch.undo()
    shown = command("info")
    for name, state in sc.available_backends().items():
        assert re.search(rf"backend {name} +{re.escape(state)}", shown)
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "mmx")
    assert re.search(r"ISAs +.*baseline\n(.*\n)*backend cpp +.*'mmx'", command("info"))


def test_train_writes_a_results_folder(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the network that the classifier trains."""
    monkeypatch.chdir(tmp_path)
    threads, shown = torch.get_num_threads(), [word for word in SMALL if word != "--quiet"]
    assert main(["train", data, "--epochs", "3", "--lr", "0.001", *shown]) == 0
    assert torch.get_num_threads() == threads
    out = Path("runs", "toy-seed4")
    printed, progress = capsys.readouterr()
    assert "3/3" in progress
    cost = sc.models.DSN(1, 2, nf=3, kernel_size=6, depth=2).cost(20)
    for text in (
        "toy: 10 training and 6 test series, 1 x 20, 2 classes",
        f"network with {cost.params:,} parameters (dense: {cost.params_dense:,}), density of its",
        "of 3 (training loss",
        str(out / "summary.md"),
    ):
        assert text in printed
    accuracy = re.search(r"toy: test accuracy (\S+) \((\d+) of 6\)", printed)
    assert float(accuracy[1]) == pytest.approx(int(accuracy[2]) / 6, abs=5e-5)
    assert with_thousands(cost.flops_paper) in (out / "summary.md").read_text()
    assert list((out / "figures").glob("*.png"))
    assert not list(out.rglob("*.partial"))

    config = json.loads((out / "config.json").read_text())
    for split in ("train", "test"):
        assert re.fullmatch("[0-9a-f]{64}", config["data"].pop(f"{split}_sha256"))
    assert config["data"].pop("path") == str(Path(data).absolute())
    assert config["data"] == {
        "name": "toy", "n_train": 10, "n_test": 6, "n_channels": 1, "n_timepoints": 20,
        "classes": ["fast", "slow"], "nan_to_zero": False, "validation": False,
    }  # fmt: skip
    assert config["network"] == run_folder.NETWORK | {"nf": 3, "kernel_size": 6, "depth": 2}
    assert config["recipe"] == run_folder.RECIPE | {"epochs": 3, "lr": 0.001, "seed": 4}
    assert config["machine"]["cpu"] == machine.cpu_name()

    saved = checkpoint.load(out / "checkpoint.pt")
    rows = history(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [{key: str(value) for key, value in row.items()} for row in saved["history"]] == rows
    with np.load(data) as arrays:
        classifier = sc.DSNClassifier(
            nf=3, kernel_size=6, depth=2, epochs=3, lr=0.001, random_state=4
        ).fit(arrays["X_train"], arrays["y_train"])
    for name, tensor in classifier.model_.state_dict().items():
        assert torch.equal(tensor, saved["best"]["model"][name]), name


def test_every_option_reaches_the_run(
    data: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(RuntimeError):
        pass

    def spy(model: sc.models.DSN, X: Any, y: Any, recipe: Any, **_: Any) -> None:
        assert is_network(model)
        assert recipe == Recipe(**expected)
        raise StopError("seen")

    monkeypatch.setattr(results, "train", spy)
    expected = RECIPE | {"seed": 11}
    assert (set(NETWORK), set(expected)) == (set(run_folder.NETWORK), set(run_folder.RECIPE))
    assert {*NETWORK, *expected, *run_folder.DATA} <= set(options._HELP)  # described where defined
    words = ["train", data, "--out", str(out), "--quiet"]
    for name, value in (NETWORK | expected).items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    assert main(words) == 2
    assert json.loads((out / "config.json").read_text())["network"] == NETWORK


@pytest.mark.promise("P9")
def test_interrupted_and_resumed_is_as_undisturbed(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first epoch, after some, after the last; with missing values."""
    with np.load(data) as arrays:
        content = dict(arrays)
    content["X_train"][0, 3] = np.nan
    labels = np.array([5, 70])
    for split in ("y_train", "y_test"):
        content[split] = labels[(content[split] == "slow").astype(int)]
    np.savez(data, **content)
    words = ["train", data, "--epochs", "7", "--update-every-epochs", "2", "--nan-to-zero", *SMALL]
    whole, broken = tmp_path / "whole", tmp_path / "broken one"
    resume = ["train", "--out", str(broken), "--resume", "--quiet"]
    words.append("--validation")
    assert main([*words, "--out", str(whole)]) == 0
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in history(whole))
    for epochs, more in ((0, words), (3, resume)):
        with monkeypatch.context() as patched:
            stop_after(epochs, patched)
            assert main([*more, "--out", str(broken)]) == 130
        error = capsys.readouterr().err
        so_far = "" if epochs else " before the first epoch was saved"
        line = f"python -m sparseconv train --out '{broken}' --resume"
        assert error.strip().endswith(f"stopped{so_far}; to resume: {line}")
    assert len(history(broken)) == 2  # a row follows its checkpoint, which was the last thing done
    before = (broken / "history.csv").read_bytes()
    (tmp_path / "link").hardlink_to(broken / "history.csv")
    with machine.threads(2):  # the run's own number is taken, or the last bits would differ
        assert main(resume) == 0
    # Each history replaced the former one as a whole: a kill would have left one or the other.
    assert (tmp_path / "link").read_bytes() == before
    (broken / "summary.md").unlink()
    assert main(resume) == 0
    assert (broken / "summary.md").exists()
    assert losses(broken) == losses(whole)
    first, second = (checkpoint.load(out / "checkpoint.pt") for out in (whole, broken))
    assert first["best"]["epoch"] == second["best"]["epoch"]
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    found = sc.load_run(broken).classes
    assert found.tolist() == labels.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch sees no CUDA device")
def test_a_run_on_a_gpu_repeats_itself(data: str, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("first", "again")]
    words = ["train", data, "--device", "cuda", "--epochs", "4", *SMALL]
    for out in runs:
        assert main([*words, "--out", str(out)]) == 0
    first, again = (sc.load_run(out) for out in runs)
    assert same(first.model.state_dict(), again.model.state_dict())
    assert first.config["machine"]["device"] == "cuda"
