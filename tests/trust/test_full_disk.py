"""A disk that is full, damaged or read-only costs a training run no epoch that it has saved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import killed_run
import pytest
import torch
from child import PYTHONPATH
from full_disk import check_every_write
from killed_run import (
    digest,
    finish,
    run,
    undisturbed,  # noqa: F401 (a fixture)
)

from sparseconv.training import checkpoint
from sparseconv.training.loop import CHECKPOINT_NAME

# A file system of the run's own, seen by nobody else and gone with it: $1 its size, $2 where, $3
# the folder that lends it its content and gets it back, $4 what else to do before the run.
OWN_DISK = """
mount -t tmpfs -o size=$1 none "$2" || exit 77
cp "$3"/* "$2"/ 2>/dev/null
eval "$4"
"$PYTHON" "$RUN" "$2"; code=$?
cp "$2"/* "$3"/
exit $code
"""


def run_on_own_disk(size: int, out: Path, then: str = ":") -> subprocess.CompletedProcess[str]:
    """Train in a file system of ``size`` bytes; skipped where none can be mounted."""
    point = out.parent / "disk"
    point.mkdir(exist_ok=True)
    environment = {"PYTHON": sys.executable, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    environment["RUN"] = killed_run.__file__
    command = ["unshare", "--mount", "sh", "-c", OWN_DISK, "sh", str(size), str(point), str(out)]
    try:
        done = subprocess.run(
            [*command, then],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here (needs root)")
    return done


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of a run that was killed after its first epochs."""
    out = tmp_path_factory.mktemp("killed")
    run(out, "kill", 1)
    return (out / CHECKPOINT_NAME).read_bytes()


@pytest.fixture
def out(killed: bytes, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / CHECKPOINT_NAME).write_bytes(killed)
    return folder


def is_left_alone(out: Path, content: bytes) -> bool:
    """Then it goes on as one that was killed: see test_a_checkpoint_that_was_damaged_since."""
    return [(f.name, f.read_bytes()) for f in out.iterdir()] == [(CHECKPOINT_NAME, content)]


@pytest.mark.promise("P9")
def test_a_disk_that_is_full(killed: bytes, out: Path, count_cases: Callable[[int], None]) -> None:
    """It holds one checkpoint and half of the next, which is written beside it."""
    done = run_on_own_disk(len(killed) * 3 // 2, out)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr or "PytorchStreamWriter" in done.stderr
    assert is_left_alone(out, killed)
    count_cases(1)


@pytest.mark.promise("P9")
def test_a_disk_that_is_read_only(
    killed: bytes, out: Path, count_cases: Callable[[int], None]
) -> None:
    done = run_on_own_disk(2**24, out, 'mount -o remount,ro "$2"')
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert is_left_alone(out, killed)
    count_cases(1)


@pytest.mark.promise("P9")
def test_a_checkpoint_that_was_damaged_since(
    undisturbed: tuple[str, float],  # noqa: F811
    killed: bytes,
    out: Path,
    count_cases: Callable[[int], None],
) -> None:
    """It is refused and left alone; a copy of it goes on, whatever lies about beside it."""
    path = out / CHECKPOINT_NAME
    damaged = killed[: len(killed) // 2] + killed[len(killed) // 2 + 1 :]
    path.write_bytes(damaged)
    code, errors = run(out)
    assert code == 1
    assert "CheckpointError" in errors
    assert is_left_alone(out, damaged)
    path.write_bytes(killed)
    path.with_name(CHECKPOINT_NAME + ".partial").write_bytes(killed[:99])
    finish(out)
    assert digest(out) == undisturbed[0]
    assert [file.name for file in out.iterdir()] == [CHECKPOINT_NAME]
    count_cases(1)


@pytest.mark.promise("P9")
def test_no_write_of_a_save_may_fail_unnoticed(
    tmp_path: Path, count_cases: Callable[[int], None]
) -> None:
    path, content = tmp_path / "checkpoint.pt", {"epoch": 1, "x": [torch.zeros(9), torch.ones(5)]}
    checkpoint.save(path, content)
    failed = check_every_write(lambda: checkpoint.save(path, {**content, "epoch": 2}), path)
    assert failed > 13
    assert checkpoint.load(path)["epoch"] == 2
    count_cases(failed)
