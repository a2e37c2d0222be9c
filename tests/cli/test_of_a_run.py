"""What reads a run: ``load_run``, ``info``, ``profile``, ``export``, ``prune``; random kernels."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from functools import partial
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
from sparseconv.rocket.bank import POCKET
from sparseconv.running import predict_log_proba
from sparseconv.training import checkpoint
from sparseconv.training.checkpoint import CheckpointError


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    words = ["--epochs", "30", "--out", str(folder / "run"), *SMALL, "--update-every-epochs", "1"]
    assert main(["train", write_data(folder), *words]) == 0
    return folder


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def test_the_network_of_the_best_epoch_and_its_labels(home: Path) -> None:
    finished = home / "run"
    before, generator = files(finished), torch.get_rng_state()
    run = sc.load_run(finished)
    assert files(finished) == before
    assert torch.get_rng_state().equal(generator)
    best = checkpoint.load(finished / "checkpoint.pt")["best"]
    assert run.epoch == best["epoch"]
    state = run.model.state_dict()
    assert state.keys() == best["model"].keys()
    assert all(state[name].equal(tensor) for name, tensor in best["model"].items())
    assert not run.model.training
    assert run.config == json.loads((finished / "config.json").read_text())
    assert sc.load_run(str(finished / "checkpoint.pt")).epoch == run.epoch

    data = datasets.load(home / "toy.npz")
    assert run.classes.tolist() == data.classes.tolist() == ["fast", "slow"]
    predicted = run.predict(data.X_test)
    index = predict_log_proba(run.model, torch.from_numpy(data.X_test)).argmax(1)
    assert predicted.tolist() == data.classes[index].tolist()
    proba = run.predict_proba(data.X_test)
    assert np.allclose(proba.sum(1), 1)
    assert run.classes[proba.argmax(1)].tolist() == predicted.tolist()
    correct = (predicted == data.classes[data.y_test]).sum()
    printed = (finished / "summary.md").read_text()
    assert f"{correct / len(predicted):.4f}" in printed, "the accuracy that training reported"
    assert set(predicted) == {"fast", "slow"}
    assert run.predict(data.X_test[:, 0].astype("float64")).tolist() == predicted.tolist()
    watched = torch.from_numpy(data.X_test).requires_grad_()
    assert run.predict(watched).tolist() == predicted.tolist()
    run = sc.load_run(finished, backend="reference")
    assert {layer.backend for layer in run.model.sparse_layers()} == {"reference"}
    assert run.predict(np.tile(data.X_test, 2)).shape == predicted.shape, "of another length"


def test_missing_values_as_in_training(copied: Path) -> None:
    X = datasets.load(write_data(copied.parent)).X_test
    X[0, 0, 3] = np.nan
    run = sc.load_run(copied)
    with pytest.raises(ValueError, match=r"predict: expected finite values in X, but 1 of"):
        run.predict(X)
    config = json.loads((copied / "config.json").read_text())
    config["data"]["nan_to_zero"] = True
    (copied / "config.json").write_text(json.dumps(config))
    zero = np.nan_to_num(X)
    assert sc.load_run(copied).predict(X).tolist() == run.predict(zero).tolist()


def test_what_is_refused(copied: Path) -> None:
    for X in (np.zeros((2, 3, 20)), np.zeros(20)):
        with pytest.raises(ValueError, match=r"shape \(n_cases, .*n_timepoints"):
            sc.load_run(copied).predict(X)
    with pytest.raises(ValueError, match=r"nope\.pt does not exist"):
        sc.load_run(copied / "nope.pt")
    config = copied / "config.json"
    good = config.read_text()
    config.write_text(good.replace('"nf": 3', '"nf": 4'))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt does not match its config\.json"):
        sc.load_run(copied)
    for bad in ("{}", "[]", '{"model": []}', good[:-9], good.replace('"n_train"', '"cases"')):
        config.write_text(bad)
        with pytest.raises(ValueError, match=r"config\.json is damaged, or was written"):
            sc.load_run(copied)


def test_profile(home: Path, out: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the best epoch, on series as in training or others; only the clock is not real."""
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


def test_data_that_moved(copied: Path, refused: Any) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["data"]["path"] = str(copied / "gone.npz")
    (copied / "config.json").write_text(json.dumps(config))
    refused(["export", str(copied)], "gone.npz', which does not exist; specify its location with")


LARGER = ["--epochs", "2", "--nf", "5", "--depth", "2", "--threads", "1", "--quiet"]
TUNE = ["--epochs", "2", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = write_data(folder)
    arrays = dict(np.load(path))
    arrays["X_train"][0, 0] = np.nan
    np.savez(path, **arrays)
    assert main(["train", path, "--nan-to-zero", "--out", str(folder / "trained"), *LARGER]) == 0
    return folder / "trained"


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
    words: list[str], data: str, run: Path, tmp_path: Path, command: Any, monkeypatch: Any
) -> None:
    search = partial(sc.pruning.Evolutionary, generations=2)
    monkeypatch.setattr(sc.pruning, "Evolutionary", search)
    out, before = tmp_path / "pruned", files(run)
    printed = command("prune", run, "--out", out, *TUNE, *words)
    assert files(run) == before
    assert "test accuracy" in printed
    whole, pruned = sc.load_run(run), sc.load_run(out)
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
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    given: list[float] = []
    real = sc.pruning.InstanceSparsity

    def watched(model: Any, stages: Any, weight: float) -> Any:
        given.append(weight)
        return real(model, stages, weight)

    monkeypatch.setattr("sparseconv.pruning.InstanceSparsity", watched)
    words = ["--criterion", "dsp", "--eps", 0, "--silence-epochs", 1, "--batch-size", 4, *TUNE]
    command("prune", run, "--out", tmp_path / "a", *words)
    assert given == pytest.approx([2e-5 * 64 / 4])


def test_pruned_twice(run: Path, tmp_path: Path, command: Any) -> None:
    folders = [run, tmp_path / "a", tmp_path / "b"]
    for source, out in itertools.pairwise(folders):
        words = ["--criterion", "hc", "--fraction", 0.5, *TUNE]
        command("prune", source, "--out", out, *words)
    config = json.loads((folders[2] / "config.json").read_text())
    kept = config["pruning"]["filters"]["blocks.0.conv"]
    assert len(kept) == 6
    assert max(kept) < 15
    conv = sc.load_run(folders[2]).model.blocks[0].conv
    widths = [end - first for (first, end), _ in conv.regions]
    groups = np.bincount(np.array(kept) // 5, minlength=3)
    assert widths == groups[groups > 0].tolist()


POCKET_RUN = ["--model", "pocket", "--n-kernels", "40", "--threads", "1"]


@pytest.fixture
def pocket_run(data: str, out: Path, command: Any) -> Path:
    pytest.importorskip("aeon", reason="aeon is not installed")
    command("train", data, "--out", out, *POCKET_RUN, "--quiet", "--keep", 0.25)
    return out


def test_the_folder_of_pocket_and_its_model(data: str, pocket_run: Path, command: Any) -> None:
    assert sorted(path.name for path in pocket_run.iterdir()) == [
        "config.json", "model.npz", "summary.md",
    ]  # fmt: skip
    read = datasets.load(data)
    classifier = sc.POCKETClassifier(n_kernels=40, keep=0.25, random_state=0)
    expected = read.classes[classifier.fit(read.X_train, read.y_train).predict(read.X_test)]
    for path in (pocket_run, pocket_run / "model.npz"):
        run = sc.load_run(path)
        assert run.epoch is None
        assert run.model.bank == classifier.bank_
        assert str(classifier.bank_) in command("info", path)
        assert run.classes.tolist() == read.classes.tolist()
        assert np.array_equal(run.predict(read.X_test), expected)
        proba = classifier.predict_proba(read.X_test)
        assert np.array_equal(run.predict_proba(read.X_test), proba)
    config = json.loads((pocket_run / "config.json").read_text())
    assert config["model"] == "pocket"
    assert config["pocket"] == POCKET | {"n_kernels": 40, "keep": 0.25, "seed": 0}
    assert config["data"]["n_train"] == len(read.X_train)
    accuracy = float((expected == read.classes[read.y_test]).mean())
    assert f"{accuracy:.4f}" in (pocket_run / "summary.md").read_text()
    with pytest.raises(ValueError, match=r"expected series of shape \(n_cases, 1"):
        run.predict(np.zeros((2, 2, read.n_timepoints)))
    with pytest.raises(ValueError, match="the shape that the kernels were drawn for"):
        run.predict(read.X_test[:, :, :-1])


def test_every_option_of_pocket(data: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--kernels", "minirocket", "--n-kernels", "84", "--keep", "cv", "--k", "cv"]
    words += ["--n-iter", "2", "--no-refit", "--seed", "3"]
    assert main(["train", data, "--out", str(out), *POCKET_RUN[:2], *words]) == 0
    found = json.loads((out / "config.json").read_text())["pocket"]
    assert found == {
        "kernels": "minirocket", "n_kernels": 84, "keep": "cv", "k": "cv", "n_iter": 2,
        "refit": False, "seed": 3,
    }  # fmt: skip
    printed = capsys.readouterr()
    assert "minirocket, threads: " in printed.out
    assert "features kept" in printed.out
    assert "folds" in printed.err  # the progress bar
    summary = (out / "summary.md").read_text()
    assert "## Folds" in summary
    assert "| 1000 " in summary
