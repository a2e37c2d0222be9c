"""Reading a results folder back: the network, its labels, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_figures import quick_figures  # noqa: F401 (a fixture of every test here)
from toy_run import SMALL, files, write_data

import sparseconv as sc
from sparseconv import datasets
from sparseconv.cli.main import main
from sparseconv.running import predict_log_proba
from sparseconv.training import checkpoint
from sparseconv.training.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    words = ["train", write_data(folder), "--epochs", "30", "--out", str(folder / "run"), *SMALL]
    assert main([*words, "--update-every-epochs", "1"]) == 0
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_network_of_the_best_epoch_and_its_labels(finished: Path) -> None:
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

    data = datasets.load(finished.parent / "toy.npz")
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
