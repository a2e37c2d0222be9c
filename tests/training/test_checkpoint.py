"""Checkpoints: resumed runs end with the same bits, and no wrong file is ever taken."""

from __future__ import annotations

import math
import os
import re
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import RECIPE, WithDropout, data, interrupted, network, run, same
from torch import Tensor, nn

from sparseconv.training import checkpoint
from sparseconv.training.checkpoint import CheckpointError
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe


@pytest.mark.promise("P9")
@pytest.mark.parametrize("make", [network, WithDropout])
@pytest.mark.parametrize("grow", ["random", "gradient"])
@pytest.mark.parametrize("checkpoint_every", [1, 3])
def test_resumed_runs_end_with_the_same_bits(
    make: Any, grow: str, checkpoint_every: int, tmp_path: Path, count_cases: Any
) -> None:
    recipe = replace(RECIPE, grow=grow)
    arguments = {"recipe": recipe, "checkpoint_every": checkpoint_every}
    undisturbed = make()
    expected = run(undisturbed, out=tmp_path / "a", **arguments)
    finished = 0
    for forward_passes in (3, 14, 9, 5):  # of 4 an epoch, and one that checks the model
        said = interrupted(make(), forward_passes, out=tmp_path / "b", resume=True, **arguments)
        done = finished + (forward_passes - 1) // 4
        finished = done - done % checkpoint_every
        if finished:
            assert f"state after epoch {finished}: resume with" in said
            content = checkpoint.load(tmp_path / "b" / "checkpoint.pt")
            assert len(content["history"]) == finished
        else:
            assert "no epoch of this run has been saved yet" in said
        count_cases(1)
    model = make()
    result = run(model, out=tmp_path / "b", resume=True, **arguments)
    assert same(result.history, expected.history)
    assert (result.best_epoch, result.best_loss, result.itop_rate) == (
        expected.best_epoch,
        expected.best_loss,
        expected.itop_rate,
    )
    assert same(dict(model.state_dict()), dict(undisturbed.state_dict()))
    assert same(*(checkpoint.load(tmp_path / name / "checkpoint.pt") for name in "ab"))


def test_resuming_a_finished_run_only_restores_its_best_epoch(tmp_path: Path) -> None:
    model, again = network(), network(1)
    first = run(model, out=tmp_path)
    bytes_before = (tmp_path / "checkpoint.pt").read_bytes()
    second = run(again, out=tmp_path, resume=True)
    assert second == first
    assert same(dict(model.state_dict()), dict(again.state_dict()))
    assert (tmp_path / "checkpoint.pt").read_bytes() == bytes_before


def test_an_interrupted_model_holds_the_best_epoch_so_far(tmp_path: Path) -> None:
    model = network()
    given = checkpoint.snapshot(model)
    interrupted(model, 3, "nothing was saved")
    assert same(dict(model.state_dict()), dict(given))
    interrupted(model, 18, "in epoch 5 of 7", out=tmp_path)
    best = checkpoint.load(tmp_path / "checkpoint.pt")["best"]
    assert same(dict(model.state_dict()), dict(best["model"]))
    # Where the file of an older run is:
    interrupted(network(), 3, "no epoch of this run has been saved yet", out=tmp_path)


@pytest.mark.promise("P9")
def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    said = f"another run is writing to {tmp_path}; .* choose another .*process {os.getpid()} has"

    def other(_: Any) -> None:
        before = (tmp_path / "checkpoint.pt").read_bytes()
        with ThreadPoolExecutor(1) as pool:
            for resume in (False, True):
                with pytest.raises(ValueError, match=said):
                    pool.submit(run, network(), out=tmp_path, resume=resume).result()
        assert (tmp_path / "checkpoint.pt").read_bytes() == before

    expected = run(network())
    assert same(run(network(), out=tmp_path, on_epoch=other).history, expected.history)
    interrupted(network(), 3, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    model = network()
    count = 0

    def poison(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return output * math.nan if count == 11 else output

    hook = model.register_forward_hook(poison)
    with pytest.raises(ValueError, match="became nan in epoch 3, batch 2: lower lr"):
        run(model, out=tmp_path)
    hook.remove()
    content = checkpoint.load(tmp_path / "checkpoint.pt")
    assert len(content["history"]) == 2
    assert same(dict(model.state_dict()), dict(content["best"]["model"]))
    expected = run(network())
    assert same(run(network(), out=tmp_path, resume=True).history, expected.history)


def refused(model: nn.Module, out: Path, text: str, recipe: Recipe = RECIPE, X: Any = None) -> None:
    before, file = checkpoint.snapshot(model), (out / "checkpoint.pt").read_bytes()
    rng, mode = torch.get_rng_state(), model.training
    X = data()[0] if X is None else X
    with pytest.raises(CheckpointError, match=text):
        train(model, X, data()[1], recipe, out=out, resume=True, progress=False)
    assert same(dict(model.state_dict()), dict(before))
    assert (out / "checkpoint.pt").read_bytes() == file
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training == mode


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    run(network(), out=tmp_path)
    for change in ({"epochs": 8}, {"lr": 0.1}, {"seed": 1}, {"grow": "gradient"}):
        (name, value), *_ = change.items()
        text = f"its recipe differs: '{name}' is {getattr(RECIPE, name)!r} in .* now {value!r}"
        refused(network(), tmp_path, text, replace(RECIPE, **change))
    changes = {"nf": 4}, {"sparsity": 0.7}, {"depth": 3}, {"padding": "centred-zeros"}
    for model in (*(network(**change) for change in changes), WithDropout()):
        refused(model, tmp_path, "its model differs: 'line ")
    X, _ = data()
    refused(network(), tmp_path, "its data differs", X=X + 1e-6)
    refused(network(), tmp_path, "its data differs", X=X[:, :, :-1])


def _set_moments(content: dict[str, Any], name: str, change: Callable[[Tensor], Any]) -> None:
    for moments in content["optimizer"]["state"].values():
        moments[name] = change(moments[name])


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["recipe"].update(batch_size=None),
        lambda content: content["recipe"].update(batch_size=torch.zeros(2)),
        lambda content: content["recipe"].pop("update_every_steps"),
        lambda content: content.pop("optimizer"),
        lambda content: content["state"].pop("head.1.weight"),
        lambda content: content["state"].update({"head.1.weight": torch.zeros(3)}),
        lambda content: content["state"]["blocks.1.conv.col_indices"].fill_(99),
        lambda content: content["best"]["model"]["blocks.0.conv.col_indices"].fill_(-1),
        lambda content: content["best"].update(model=None),
        lambda content: content["optimizer"]["param_groups"].clear(),
        lambda content: content["optimizer"]["param_groups"][0].update(amsgrad=True),
        lambda content: content["optimizer"]["param_groups"][0]["params"].reverse(),
        lambda content: _set_moments(content, "exp_avg", lambda _: torch.zeros(3)),
        lambda content: _set_moments(content, "exp_avg_sq", lambda m: m.double()),
        lambda content: _set_moments(content, "exp_avg", lambda m: m.flatten()[:1].expand(m.shape)),
        lambda content: _set_moments(content, "exp_avg", lambda m: m.to_sparse()),
        lambda content: _set_moments(content, "exp_avg", lambda m: None),
        lambda content: _set_moments(content, "step", lambda _: torch.zeros(2)),
        lambda content: [m.pop("step") for m in content["optimizer"]["state"].values()],
        lambda content: content["optimizer"]["state"].update({99: {}}),
        lambda content: content["scheduler"].pop("generator"),
        lambda content: content["rng"].update(torch=torch.zeros(3)),
        lambda content: content["rng"].pop("shuffle"),
        lambda content: content.update(history=None),
        lambda content: content.update(history="abc"),
        lambda content: content.update(history=[]),
        lambda content: content["history"].pop(),
        lambda content: content["history"].pop(2),
        lambda content: content["history"].extend(
            {**content["history"][-1], "epoch": epoch} for epoch in (5, 6, 7, 8)
        ),
        lambda content: content["best"].pop("epoch"),
        lambda content: content["best"].update(epoch=1, loss=0.0),
    ],
)
def test_a_wellformed_checkpoint_with_wrong_content(damage: Any, tmp_path: Path) -> None:
    interrupted(network(), 17, "in epoch 5", out=tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = checkpoint.load(path)
    assert len(content["history"]) == 4
    damage(content)
    checkpoint.save(path, content)
    refused(network(1), tmp_path, "cannot be resumed|of another run, its recipe differs")


@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
def test_damaged_and_foreign_files(tmp_path: Path, count_cases: Any) -> None:
    run(network(), out=tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [whole[:-1], whole[: len(whole) // 2], b"text", b""]
    # A flipped bit in the content of a tensor, which torch.load itself does not notice.
    values = checkpoint.load(path)["state"]["blocks.1.conv.values"]
    at = whole.index(values.numpy().tobytes())
    for offset in generator.integers(0, 4 * values.numel(), 5):
        flipped = bytearray(whole)
        flipped[at + offset] ^= 1 << int(generator.integers(8))
        damaged.append(bytes(flipped))
    for file in damaged:
        path.write_bytes(file)
        refused(network(1), tmp_path, "truncated, damaged or of another program")
    count_cases(len(damaged))
    for content in ({"weight": torch.zeros(2)}, [1, 2], {"format": torch.zeros(2), "version": 1}):
        torch.save(content, path)
        refused(network(1), tmp_path, "not a checkpoint written by")
    for version in (99, torch.zeros(2), True):
        torch.save({"format": checkpoint.FORMAT, "version": version}, path)
        refused(network(1), tmp_path, re.escape(f"has checkpoint version {version}"))


@pytest.mark.parametrize("written", [", bias=True", ""])
def test_what_torch_says_of_a_batchnorm_is_up_to_its_release(written: str, tmp_path: Path) -> None:
    model = network()
    interrupted(model, 10, out=tmp_path)
    file = tmp_path / "checkpoint.pt"
    content = checkpoint.load(file)
    (line, *_) = [key for key, text in content["model"].items() if "BatchNorm1d" in text]
    text = content["model"][line].replace(", bias=True", "")
    content["model"][line] = text.replace(", track", f"{written}, track")
    checkpoint.save(file, content)
    run(model, out=tmp_path, resume=True)
    content["model"][line] = text.replace("affine=True", "affine=False")
    checkpoint.save(file, content)
    refused(network(), tmp_path, "its model differs: 'line ")


@pytest.mark.promise("P9")
def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises(Exception, match="lambda"):
        checkpoint.save(path, {"tensor": torch.zeros(9), "f": lambda: 0})
    assert checkpoint.load(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "absent.pt")


def test_what_load_would_refuse_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"epoch": 1})
    for content, kind, said in (
        ({"version": 7}, ValueError, "must not have the key 'version', which save writes itself"),
        (
            {"loss": np.float64(1.5)},
            TypeError,
            r"it holds numpy.*scalar.*, which load would refuse",
        ),
        ({"recipe": RECIPE}, TypeError, "it holds sparseconv.training.recipe.Recipe, which load"),
        ({"f": lambda: 0}, TypeError, "content must hold dicts.* only, but .*lambda.*; convert it"),
        ({"n": 10**1000}, TypeError, "content must hold dicts.* only, but .*; convert it"),
        ([1], TypeError, "content must be a dict, but got a list"),
    ):
        with pytest.raises(kind, match=said):
            checkpoint.save(path, content)  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    content = checkpoint.load(path)
    checkpoint.save(path, {**content, "epoch": 2})
    assert checkpoint.load(path)["epoch"] == 2, "what was loaded can be saved"


class CtrlC:
    """Comes while this is written."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return OrderedDict, ()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A shell's background jobs ignore it, and their children would."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.promise("P9")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_until_a_checkpoint_is_written(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"epoch": 2, "interrupt": CtrlC(), "weight": torch.ones(3)})
    assert checkpoint.load(path)["epoch"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # Other threads feel none, and may not set handlers.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(checkpoint.save, path, {"epoch": 3}).result()
    assert checkpoint.load(path)["epoch"] == 3


def test_restore_is_all_or_nothing() -> None:
    model, other = network(0), network(1)
    checkpoint.restore(model, checkpoint.snapshot(other))
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    before = checkpoint.snapshot(model)
    with pytest.raises(CheckpointError, match=r"another architecture: this model has '.*'"):
        checkpoint.restore(model, checkpoint.snapshot(network(nf=4)))
    assert same(dict(model.state_dict()), dict(before))
