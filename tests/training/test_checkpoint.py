"""Checkpoints: resumed runs end with the same bits, and no wrong file is ever taken."""

from __future__ import annotations

import copy
import errno
import math
import os
import resource
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny import RECIPE, WithDropout, data, interrupted, network, run, same
from torch import Tensor, nn

from sparseconv.pruning.sparsity_loss import InstanceSparsity
from sparseconv.training import checkpoint
from sparseconv.training.checkpoint import CheckpointError
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("make", "grow", "checkpoint_every"),
    [(network, "random", 1), (network, "gradient", 3), (WithDropout, "random", 3)],
)
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
            assert f"contains epoch {finished}: resume with" in said
            content = checkpoint.load(tmp_path / "b" / "checkpoint.pt")
            assert len(content["history"]) == finished
        else:
            assert "no epoch of this run has been saved yet" in said
        count_cases(1)
    model = make()
    result = run(model, out=tmp_path / "b", resume=True, **arguments)
    assert same(vars(result), vars(expected))
    assert same(dict(model.state_dict()), dict(undisturbed.state_dict()))
    assert same(*(checkpoint.load(tmp_path / name / "checkpoint.pt") for name in "ab"))
    again = make()  # resumed when it is finished
    assert run(again, out=tmp_path / "b", resume=True, **arguments) == result
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_the_default_device_changes_no_run(tmp_path: Path) -> None:
    (model, again), (X, y) = (network(), network()), data()
    expected = train(model, X, y, RECIPE, verbose=False)
    with torch.device("meta"):
        train(again, X, y, RECIPE, out=tmp_path, verbose=False)
        assert same(model.state_dict(), again.state_dict())
        found = train(again, X, y, RECIPE, out=tmp_path, resume=True, verbose=False)
    assert same(vars(found), vars(expected))


def test_a_run_with_a_penalty_resumes_with_the_same_bits_and_no_other_penalty(
    tmp_path: Path,
) -> None:
    def penalty(model: nn.Module, weight: float = 0.1) -> InstanceSparsity:
        return InstanceSparsity(model, ["blocks.0.relu"], weight)

    model, other = network(), network()
    expected = run(model, penalty=penalty(model))
    interrupted(other, 18, out=tmp_path, penalty=penalty(other))
    assert not any(module._forward_hooks for module in other.modules())
    other = network()
    found = run(other, out=tmp_path, resume=True, penalty=penalty(other))
    assert same(found.history, expected.history)
    assert same(model.state_dict(), other.state_dict())
    for then in (penalty(other, 0.2), lambda: torch.zeros(()), None):
        with pytest.raises(ValueError, match=r"run, whose penalty differs: '(stages|weight)"):
            run(other, out=tmp_path, resume=True, penalty=then)


def test_an_interrupted_model_holds_the_best_epoch_so_far(tmp_path: Path) -> None:
    model = network()
    given = copy.deepcopy(model.state_dict())
    interrupted(model, 3, "saved because train")
    assert same(dict(model.state_dict()), dict(given))
    interrupted(model, 18, "in epoch 5 of 7", out=tmp_path)
    best = checkpoint.load(tmp_path / "checkpoint.pt")["best"]
    assert same(dict(model.state_dict()), dict(best["model"]))
    # Where the file of an older run is:
    interrupted(network(), 3, "no epoch of this run has been saved yet", out=tmp_path)


@pytest.mark.promise("P9")
def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    said = f"another run is writing to {tmp_path}; wait for it, or choose another"

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
    before, file = copy.deepcopy(model.state_dict()), (out / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match=text):
        train(model, data()[0] if X is None else X, data()[1], recipe, out=out, resume=True)
    assert same(dict(model.state_dict()), dict(before))
    assert (out / "checkpoint.pt").read_bytes() == file


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    interrupted(network(), 10, out=tmp_path)
    for change in ({"seed": 4}, {"grow": "gradient"}, {"epochs": 8}):
        refused(network(), tmp_path, "whose recipe differs: ", replace(RECIPE, **change))
    changes = {"nf": 4}, {"sparsity": 0.7}, {"depth": 3}, {"padding": "centred-zeros"}
    for model in (*(network(**change) for change in changes), WithDropout()):
        refused(model, tmp_path, "whose model differs: '")
    interrupted(network(sparsity=0.0), 10, out=tmp_path / "dense")
    said = r"'block of blocks.1.conv' was '\(1, 1\)' in the checkpoint, but is '\(3, 3\)' now"
    refused(network(sparsity=0.0, block=3), tmp_path / "dense", said)
    refused(network(), tmp_path, "whose data differs", X=data()[0] + 1e-6)
    file = tmp_path / "checkpoint.pt"
    content = checkpoint.load(file)
    del content["data"]["batches an epoch"]  # as before a last batch of one joined another
    checkpoint.save(file, content)
    refused(network(), tmp_path, "'batches an epoch' was 'absent' in the checkpoint, but is 4")


def _set_moments(content: dict[str, Any], name: str, change: Callable[[Tensor], Any]) -> None:
    for moments in content["optimizer"]["state"].values():
        moments[name] = change(moments[name])


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Interrupt a run in its third epoch, and change its checkpoint."""
    interrupted(network(), 9, "in epoch 3", out=folder)
    path = folder / "checkpoint.pt"
    content = checkpoint.load(path)
    change(content)
    checkpoint.save(path, content)
    return content


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("optimizer"),
        lambda content: content["state"].pop("head.1.weight"),
        lambda content: content["state"]["blocks.1.conv.col_indices"].fill_(99),
        lambda content: content["best"]["model"]["blocks.0.conv.col_indices"].fill_(-1),
        lambda content: _set_moments(content, "exp_avg", lambda _: torch.zeros(3)),
        lambda content: _set_moments(content, "step", lambda _: torch.zeros(0)),
        lambda content: content["scheduler"].pop("generator"),
        lambda content: content["rng"].update(torch=torch.zeros(3)),
    ],
)
def test_a_wellformed_checkpoint_with_wrong_content(damage: Any, tmp_path: Path) -> None:
    edited(tmp_path, damage)
    refused(network(1), tmp_path, "cannot be resumed")


@pytest.mark.promise("P5")
def test_moments_that_share_memory_are_copied(tmp_path: Path) -> None:
    """Adam's fused step would write past the end of a moment that was expanded."""

    def share(content: dict[str, Any]) -> None:
        _set_moments(content, "exp_avg", lambda m: m.flatten()[:1].expand(m.shape))

    content = edited(tmp_path, share)
    optimizer = torch.optim.Adam(network().parameters(), fused=True)
    checkpoint.restore_adam(optimizer, content["optimizer"])
    for parameter, moments in optimizer.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()


@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
def test_damaged_and_foreign_files(tmp_path: Path, count_cases: Any) -> None:
    run(network(), out=tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    damaged = [whole[:-1], whole[: len(whole) // 2], b"text", b""]
    # A flipped bit in the content of a tensor, which torch.load itself does not notice.
    values = checkpoint.load(path)["state"]["blocks.1.conv.values"]
    flipped = bytearray(whole)
    flipped[whole.index(values.numpy().tobytes()) + 5] ^= 1
    for file in (*damaged, bytes(flipped)):
        path.write_bytes(file)
        refused(network(1), tmp_path, "truncated, damaged or from another program")
    count_cases(len(damaged) + 1)
    for content in ({"weight": torch.zeros(2)}, {"format": "sparseconv checkpoint, version 99"}):
        torch.save(content, path)
        refused(network(1), tmp_path, "but not a sparseconv checkpoint, version 1")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file grows beyond these bytes, as on a disk that becomes full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.promise("P9")
def test_a_failed_write_leaves_the_older_file(tmp_path: Path, count_cases: Any) -> None:
    path, content = tmp_path / "checkpoint.pt", {"epoch": 1, "x": [torch.zeros(9), torch.ones(5)]}
    checkpoint.save(path, content)
    whole, full = path.read_bytes(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    places = (os, "fsync"), (Path, "replace"), (Path, "open")
    disks = [*map(room_for, range(0, len(whole), 100))]
    for disk in (*disks, *(mock.patch.object(*place, side_effect=full) for place in places)):
        with disk, pytest.raises((OSError, RuntimeError)):
            checkpoint.save(path, {**content, "epoch": 2})
        assert path.read_bytes() == whole
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
    checkpoint.save(path, {**content, "epoch": 2})
    assert checkpoint.load(path)["epoch"] == 2
    count_cases(len(disks) + 3)


class CtrlC:
    """Comes while this is written."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return OrderedDict, ()


@pytest.mark.promise("P9")
def test_ctrl_c_waits_until_a_checkpoint_is_written(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    # A shell's background jobs ignore it, and their children would.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, {"epoch": 2, "interrupt": CtrlC(), "weight": torch.ones(3)})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoint.load(path)["epoch"] == 2
    # Other threads feel none, and may not set handlers.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(checkpoint.save, path, {"epoch": 3}).result()
    assert checkpoint.load(path)["epoch"] == 3
