"""Killed or interrupted at any instant, a training run goes on to the same bits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseconv.training import checkpoint
from sparseconv.training.loop import CHECKPOINT_NAME

EPOCHS = 40

CHILD = f"""
import signal, sys
import torch
from sparseconv import checkpoint
from sparseconv.models import DSN
from sparseconv.training import Recipe, train

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored

write = checkpoint.save

def save(path, content):
    write(path, content)
    print(len(content["history"]), flush=True)

checkpoint.save = save
generator = torch.Generator().manual_seed(0)
y = torch.arange(24) % 3
X = torch.randn(24, 2, 32, generator=generator) + y[:, None, None]
torch.manual_seed(0)
model = DSN(2, 3, nf=4, kernel_size=13, depth=3)
recipe = Recipe(epochs={EPOCHS}, lr=1e-3, batch_size=5, update_every_epochs=2, seed=1)
train(model, X, y, recipe, out=sys.argv[1], resume=True, progress=False)
"""


def start(out: Path) -> subprocess.Popen[str]:
    """Start or resume the run, which prints the number of each epoch that it has saved."""
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epoch(child: subprocess.Popen[str], epoch: int) -> None:
    """Return as soon as this epoch is saved (or a later one, or the run has ended)."""
    assert child.stdout is not None
    while epoch > 0 and (line := child.stdout.readline()):
        if int(line) >= epoch:
            return


def finish(out: Path) -> None:
    child = start(out)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors


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
        elif not name.endswith(".seconds"):
            sha.update(f"{name} {item!r}".encode())

    add("checkpoint", content)
    return sha.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The digest of the run, and how long one of its epochs takes, in seconds."""
    out = tmp_path_factory.mktemp("undisturbed")
    child = start(out)
    wait_for_epoch(child, 1)
    begin = time.monotonic()
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    return digest(out), (time.monotonic() - begin) / (EPOCHS - 1)


def kill_and_resume(
    out: Path, kills: int, instants: random.Random, epoch_seconds: float
) -> list[int]:
    """Kill the run again and again, at random instants of random epochs.

    Returns the number of epochs in the checkpoint after each kill; fewer than ``kills`` of them if
    the run came to its end before a kill.
    """
    saved: list[int] = []
    for epoch in sorted(instants.sample(range(EPOCHS - 5), kills)):
        child = start(out)
        wait_for_epoch(child, epoch)
        time.sleep(instants.uniform(0, 2 * epoch_seconds))
        child.kill()
        _, errors = child.communicate()
        if child.returncode != -signal.SIGKILL:
            assert child.returncode == 0, errors
            break
        file = out / CHECKPOINT_NAME
        saved.append(len(checkpoint.load(file)["history"]) if file.exists() else 0)
        assert saved[-1] >= epoch, "a saved epoch was lost"
    return saved


@pytest.mark.promise("P9")
def test_killed_at_random_instants(
    undisturbed: tuple[str, float],
    tmp_path: Path,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    """Five kills of each run; each run is finished, and compared with one that nobody killed."""
    expected, epoch_seconds = undisturbed
    instants, killed, kills, runs = random.Random(0), 0, campaign(5, 200), 0
    while killed < kills:
        runs += 1
        assert runs <= 2 * kills, f"only {killed} of {runs} runs could be killed"
        out = tmp_path / f"{runs}"
        # On a busy machine a run may end before its kill comes: then there were fewer.
        killed += len(kill_and_resume(out, 5, instants, epoch_seconds))
        finish(out)
        assert digest(out) == expected
    count_cases(killed)


@pytest.mark.promise("P9")
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(
    undisturbed: tuple[str, float], tmp_path: Path
) -> None:
    child = start(tmp_path)
    wait_for_epoch(child, 3)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0
    done = len(checkpoint.load(tmp_path / CHECKPOINT_NAME)["history"])
    assert f"{tmp_path / CHECKPOINT_NAME} holds the state after epoch {done}" in errors
    assert "resume with the same call and resume=True" in errors
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_NAME]
    finish(tmp_path)
    assert digest(tmp_path) == undisturbed[0]
