"""A disk that is full, damaged or read-only costs a training run no epoch that it has saved."""

from __future__ import annotations

import builtins
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_crash import (
    CHILD,
    digest,
    finish,
    start,
    undisturbed,  # noqa: F401 (a fixture)
    wait_for_epoch,
)

from sparseconv import checkpoint
from sparseconv.training import CHECKPOINT_NAME

# A file system of the run's own, seen by nobody else and gone with it: $1 its size, $2 where, $3
# the folder that lends it its content and gets it back, $4 what else to do before the run.
OWN_DISK = """
mount -t tmpfs -o size=$1 none "$2" || exit 77
cp "$3"/* "$2"/ 2>/dev/null
eval "$4"
"$PYTHON" -c "$CHILD" "$2"; code=$?
cp "$2"/* "$3"/
exit $code
"""


def run_on_own_disk(size: int, out: Path, then: str = ":") -> subprocess.CompletedProcess[str]:
    """Train in a file system of ``size`` bytes; skipped where none can be mounted."""
    point = out.parent / "disk"
    point.mkdir(exist_ok=True)
    environment = {"PYTHON": sys.executable, "CHILD": CHILD, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
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


def epochs_in(out: Path) -> int:
    return len(checkpoint.load(out / CHECKPOINT_NAME)["history"])


@pytest.fixture
def one_epoch(tmp_path: Path) -> Path:
    """A folder with the checkpoint of a run that was killed after its first epochs."""
    out = tmp_path / "out"
    child = start(out)
    wait_for_epoch(child, 1)
    child.kill()
    child.communicate()
    return out


@pytest.mark.promise("P9")
def test_a_disk_that_is_full(
    undisturbed: tuple[str, float],  # noqa: F811
    one_epoch: Path,
    count_cases: Callable[[int], None],
) -> None:
    """It holds one checkpoint and half of the next, which is written beside it."""
    size = (one_epoch / CHECKPOINT_NAME).stat().st_size
    saved = epochs_in(one_epoch)
    done = run_on_own_disk(size + size // 2, one_epoch)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr or "PytorchStreamWriter" in done.stderr
    assert epochs_in(one_epoch) == saved
    assert [file.name for file in one_epoch.iterdir()] == [CHECKPOINT_NAME]
    finish(one_epoch)
    assert digest(one_epoch) == undisturbed[0]
    count_cases(1)


@pytest.mark.promise("P9")
def test_a_disk_that_is_read_only(
    undisturbed: tuple[str, float],  # noqa: F811
    one_epoch: Path,
    count_cases: Callable[[int], None],
) -> None:
    whole = (one_epoch / CHECKPOINT_NAME).read_bytes()
    done = run_on_own_disk(2**24, one_epoch, 'mount -o remount,ro "$2"')
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert (one_epoch / CHECKPOINT_NAME).read_bytes() == whole
    finish(one_epoch)
    assert digest(one_epoch) == undisturbed[0]
    count_cases(1)


@pytest.mark.promise("P9")
def test_a_checkpoint_that_was_damaged_since(
    undisturbed: tuple[str, float],  # noqa: F811
    one_epoch: Path,
    count_cases: Callable[[int], None],
) -> None:
    """It is refused and left alone; a copy of it goes on, whatever lies about beside it."""
    path = one_epoch / CHECKPOINT_NAME
    whole = path.read_bytes()
    damaged = whole[: len(whole) // 2] + whole[len(whole) // 2 + 1 :]
    path.write_bytes(damaged)
    child = start(one_epoch)
    _, errors = child.communicate()
    assert child.returncode != 0
    assert "CheckpointError" in errors
    assert path.read_bytes() == damaged
    path.write_bytes(whole)
    path.with_name(CHECKPOINT_NAME + ".partial").write_bytes(whole[:99])
    finish(one_epoch)
    assert digest(one_epoch) == undisturbed[0]
    assert [file.name for file in one_epoch.iterdir()] == [CHECKPOINT_NAME]
    count_cases(1)


class _Full:
    """A file whose disk is full after so many writes."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.left = file, writes

    def write(self, data: Any) -> int:
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


@pytest.mark.promise("P9")
def test_no_write_of_a_save_may_fail_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_cases: Callable[[int], None]
) -> None:
    """Each write in turn, then the way to the disk, then the new name."""
    path, content = tmp_path / "checkpoint.pt", {"epoch": 1, "x": [torch.zeros(9), torch.ones(5)]}
    checkpoint.save(path, content)
    whole, opened = path.read_bytes(), builtins.open

    def fails(replacement: Any, *place: Any) -> bool:
        """Whether the save raised and left the older file as it was."""
        with monkeypatch.context() as patch:
            patch.setattr(*place, replacement)
            try:
                checkpoint.save(path, {**content, "epoch": 2})
            except (OSError, RuntimeError):
                pass
            else:
                return False
        assert path.read_bytes() == whole
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        return True

    def no_space(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place in ((checkpoint.os, "fsync"), (Path, "replace"), (Path, "open")):
        assert fails(no_space, *place)
    writes = 0
    while fails(lambda self, mode, n=writes: _Full(opened(self, mode), n), Path, "open"):
        writes += 1
    assert writes > 10
    assert checkpoint.load(path)["epoch"] == 2
    count_cases(writes + 3)
