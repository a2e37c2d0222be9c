"""Killed or interrupted at any instant, a training run goes on to the same bits."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from killed_run import (
    EPOCHS,
    digest,
    finish,
    run,
    undisturbed,  # noqa: F401 (a fixture)
)

from sparseconv.training import checkpoint
from sparseconv.training.loop import CHECKPOINT_NAME


def kill_and_resume(
    out: Path, kills: int, instants: random.Random, epoch_seconds: float
) -> list[int]:
    """Kill the run again and again, at random instants of random epochs.

    Returns the number of epochs in the checkpoint after each kill; fewer than ``kills`` of them if
    the run came to its end before a kill.
    """
    saved: list[int] = []
    for epoch in sorted(instants.sample(range(EPOCHS - 3), kills)):
        code, errors = run(out, "kill", epoch, instants.uniform(1e-6, 2 * epoch_seconds))
        if code != -signal.SIGALRM:
            assert code == 0, errors
            break
        file = out / CHECKPOINT_NAME
        saved.append(len(checkpoint.load(file)["history"]) if file.exists() else 0)
        assert saved[-1] >= epoch, "a saved epoch was lost"
    return saved


@pytest.mark.promise("P9")
def test_killed_at_random_instants(
    undisturbed: tuple[str, float],  # noqa: F811
    tmp_path: Path,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    """Four kills of each run; each run is finished, and compared with one that nobody killed."""
    expected, epoch_seconds = undisturbed
    instants, killed, kills, runs = random.Random(0), 0, campaign(4, 200), 0
    while killed < kills:
        runs += 1
        assert runs <= 2 * kills, f"only {killed} of {runs} runs could be killed"
        out = tmp_path / f"{runs}"
        # On a busy machine a run may end before its kill comes: then there were fewer.
        killed += len(kill_and_resume(out, 4, instants, epoch_seconds))
        finish(out)
        assert digest(out) == expected
    count_cases(killed)


@pytest.mark.promise("P9")
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(
    undisturbed: tuple[str, float],  # noqa: F811
    tmp_path: Path,
) -> None:
    code, errors = run(tmp_path, "interrupt", 3)
    assert code == 1
    done = len(checkpoint.load(tmp_path / CHECKPOINT_NAME)["history"])
    assert f"{tmp_path / CHECKPOINT_NAME} holds the state after epoch {done}" in errors
    assert "resume with the same call and resume=True" in errors
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_NAME]
    finish(tmp_path)
    assert digest(tmp_path) == undisturbed[0]
