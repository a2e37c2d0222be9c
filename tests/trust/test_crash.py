"""Killed at any instant, a training run continues to the same bits."""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import same

from sparseconv.models import DSN
from sparseconv.training import Recipe, checkpoint, train
from sparseconv.training.loop import CHECKPOINT_NAME

EPOCHS = 16


def run(out: Path, epoch: int | None = None, delay: float = 1e-6) -> int | None:
    """Start or resume the run and wait for its end; returns its exit code.

    A signal kills it ``delay`` seconds after ``epoch`` was saved, by a timer of its process: on a
    busy machine the run may be over before this process wakes up.
    """
    # A fork of a process that has imported everything; the optimisers import torch._dynamo.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparseconv.training", "torch._dynamo"])
    process = context.Process(target=go, args=(out, epoch, delay))
    process.start()
    process.join(300)
    process.kill()
    process.join()
    return process.exitcode


def go(out: Path, epoch: int | None, delay: float) -> None:
    torch.set_num_threads(1)
    write = checkpoint.save

    def arm(done: int) -> None:
        if done == epoch:
            signal.setitimer(signal.ITIMER_REAL, delay)

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
    train(model, X, y, recipe, out=out, resume=True, verbose=False)


def finished(out: Path) -> dict[str, Any]:
    """Weights, patterns, moments, schedule, generators, best epoch and history of the run."""
    assert run(out) == 0
    return checkpoint.load(out / CHECKPOINT_NAME)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return finished(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.promise("P9")
def test_killed_at_random_instants(
    undisturbed: dict[str, Any],
    tmp_path: Path,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    """Up to four kills of each run, which is then finished and compared with an undisturbed one."""
    epoch_seconds = sum(epoch["seconds"] for epoch in undisturbed["history"]) / EPOCHS
    instants, killed, kills, runs = random.Random(0), 0, campaign(3, 200), 0
    while killed < kills:
        runs += 1
        assert runs <= 2 * kills, f"only {killed} of {runs} runs could be killed"
        out = tmp_path / f"{runs}"
        file = out / CHECKPOINT_NAME
        for epoch in sorted(instants.sample(range(EPOCHS - 3), min(4, kills))):
            code = run(out, epoch, instants.uniform(1e-6, 2 * epoch_seconds))
            if code != -signal.SIGALRM:  # on a busy machine a run may end before its kill comes
                assert code == 0
                break
            killed += 1
            saved = len(checkpoint.load(file)["history"]) if file.exists() else 0
            assert saved >= epoch, "a saved epoch was lost"
        assert same(finished(out), undisturbed)
    count_cases(killed)
