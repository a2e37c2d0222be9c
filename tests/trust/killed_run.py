"""A training run in a process of its own, to be killed and resumed: start it, wait, compare."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from child import ROOT
from torch import Tensor

from sparseconv.training import checkpoint
from sparseconv.training.loop import CHECKPOINT_NAME

EPOCHS = 40

CHILD = f"""
import signal, sys
import torch
from sparseconv.models import DSN
from sparseconv.training import Recipe, checkpoint, train

out, stop, epoch, delay = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if stop == "interrupt":  # else the timer's signal ends the process at once
    signal.signal(signal.SIGALRM, signal.default_int_handler)

def arm(done):
    if stop and done == epoch:
        signal.setitimer(signal.ITIMER_REAL, delay)

write = checkpoint.save

def save(path, content):
    write(path, content)
    print(len(content["history"]), flush=True)
    arm(len(content["history"]))

arm(0)

checkpoint.save = save
generator = torch.Generator().manual_seed(0)
y = torch.arange(24) % 3
X = torch.randn(24, 2, 32, generator=generator) + y[:, None, None]
torch.manual_seed(0)
model = DSN(2, 3, nf=4, kernel_size=13, depth=3)
recipe = Recipe(epochs={EPOCHS}, lr=1e-3, batch_size=5, update_every_epochs=2, seed=1)
train(model, X, y, recipe, out=out, resume=True, progress=False)
"""


def start(out: Path, stop: str = "", epoch: int = 0, delay: float = 1e-6) -> subprocess.Popen[str]:
    """Start or resume the run, which prints the number of each epoch that it has saved.

    With ``stop`` "kill" or "interrupt" that happens ``delay`` seconds after an epoch was saved, by
    a timer of its own: on a busy machine the run may be over before this process wakes up.
    """
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out), stop, str(epoch), str(delay)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        elif not name.endswith("seconds"):
            sha.update(f"{name} {item!r}".encode())

    add("checkpoint", content)
    return sha.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The digest of the run, and how long one of its epochs takes, in seconds."""
    out = tmp_path_factory.mktemp("undisturbed")
    child = start(out)
    assert child.stdout is not None
    child.stdout.readline()
    begin = time.monotonic()
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    return digest(out), (time.monotonic() - begin) / (EPOCHS - 1)
