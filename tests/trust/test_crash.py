"""Killed or interrupted at any instant, a training run goes on to the same bits."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseconv.models import DSN
from sparseconv.training import Recipe, checkpoint, train
from sparseconv.training.loop import CHECKPOINT_NAME

EPOCHS = 16


def run(out: Path, stop: str = "", epoch: int = 0, delay: float = 1e-6) -> tuple[int | None, str]:
    """Start or resume the run and wait for its end: its exit code, and what it wrote to stderr.

    With ``stop`` "kill" or "interrupt" that happens ``delay`` seconds after an epoch was saved, by
    a timer of its own: on a busy machine the run may be over before this process wakes up.
    """
    # A fork of a process that has imported everything; the optimisers import torch._dynamo.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparseconv.training", "torch._dynamo"])
    with tempfile.NamedTemporaryFile("r") as errors:
        process = context.Process(target=_child, args=(errors.name, out, stop, epoch, delay))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode, errors.read()


def _child(errors: str, *arguments: Any) -> None:
    with open(errors, "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    go(*arguments)


def go(out: Path, stop: str = "", epoch: int = 0, delay: float = 1e-6) -> None:
    if stop == "interrupt":  # else the timer's signal ends the process at once
        signal.signal(signal.SIGALRM, signal.default_int_handler)

    def arm(done: int) -> None:
        if stop and done == epoch:
            signal.setitimer(signal.ITIMER_REAL, delay)

    write = checkpoint.save

    def save(path: Path, content: dict[str, Any]) -> None:
        write(path, content)
        arm(len(content["history"]))

    arm(0)
    checkpoint.save = save
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(24) % 3
    X = torch.randn(24, 2, 32, generator=generator) + y[:, None, None]
    torch.manual_seed(0)
    model = DSN(2, 3, nf=4, kernel_size=13, depth=3)
    recipe = Recipe(epochs=EPOCHS, lr=1e-3, batch_size=5, update_every_epochs=2, seed=1)
    train(model, X, y, recipe, out=out, resume=True, progress=False)


def finish(out: Path) -> None:
    code, errors = run(out)
    assert code == 0, errors


def digest(out: Path) -> str:
    """SHA-256 over weights, patterns, moments, schedule, generators, best epoch and history."""
    content = checkpoint.load(out / CHECKPOINT_NAME)
    sha = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        if isinstance(item, Tensor):
            sha.update(f"{name} {item.dtype} {tuple(item.shape)}".encode())
            sha.update(item.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict | list | tuple):
            for key, entry in item.items() if isinstance(item, dict) else enumerate(item):
                add(f"{name}.{key}", entry)
        elif not name.endswith("seconds"):
            sha.update(f"{name} {item!r}".encode())

    add("checkpoint", content)
    return sha.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The digest of the run, and how long one of its epochs takes, in seconds."""
    out = tmp_path_factory.mktemp("undisturbed")
    finish(out)
    history = checkpoint.load(out / CHECKPOINT_NAME)["history"]
    return digest(out), sum(epoch["seconds"] for epoch in history) / EPOCHS


@pytest.mark.promise("P9")
def test_killed_at_random_instants(
    undisturbed: tuple[str, float],
    tmp_path: Path,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    """Up to four kills of each run, which is then finished and compared with an undisturbed one."""
    expected, epoch_seconds = undisturbed
    instants, killed, kills, runs = random.Random(0), 0, campaign(3, 200), 0
    while killed < kills:
        runs += 1
        assert runs <= 2 * kills, f"only {killed} of {runs} runs could be killed"
        out = tmp_path / f"{runs}"
        file = out / CHECKPOINT_NAME
        for epoch in sorted(instants.sample(range(EPOCHS - 3), min(4, kills))):
            code, errors = run(out, "kill", epoch, instants.uniform(1e-6, 2 * epoch_seconds))
            if code != -signal.SIGALRM:  # on a busy machine a run may end before its kill comes
                assert code == 0, errors
                break
            killed += 1
            saved = len(checkpoint.load(file)["history"]) if file.exists() else 0
            assert saved >= epoch, "a saved epoch was lost"
        finish(out)
        assert digest(out) == expected
    count_cases(killed)


@pytest.mark.promise("P9")
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(
    undisturbed: tuple[str, float],
    tmp_path: Path,
) -> None:
    code, errors = run(tmp_path, "interrupt", 3)
    assert code == 1
    done = len(checkpoint.load(tmp_path / CHECKPOINT_NAME)["history"])
    assert f"{tmp_path / CHECKPOINT_NAME} holds the state after epoch {done}" in errors
    assert "resume with the same call and resume=True" in errors
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_NAME]
    (tmp_path / f"{CHECKPOINT_NAME}.partial").touch()  # as a kill within a write leaves it
    finish(tmp_path)
    assert digest(tmp_path) == undisturbed[0]
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_NAME]
