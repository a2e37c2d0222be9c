"""Folders that are written by one process at a time, or from new."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path

from sparseconv.core.files import write_whole

LOCK_NAME = "training.lock"
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())  # by this thread


def check_new_or_empty(folder: Path) -> None:
    """Raise ValueError if the folder is a file or holds any."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(
            f"expected a new or empty folder, but {folder} is a file or holds files; choose another"
        )


def write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write all files into a new or empty folder; where one cannot be written, leave none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(folder / name, text)
    except OSError as error:
        for name in files:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{folder} cannot be written ({error.strerror or error}); choose another folder"
    )


def claimed(folder: Path) -> AbstractContextManager[None]:
    """Make a results folder, and keep other runs out of it; ValueError if one is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if not os.access(folder, os.W_OK):  # nor can others write there
        return contextlib.nullcontext()
    busy = f"another run is writing to {folder}; wait for it, or choose another folder"
    return locked(folder / LOCK_NAME, busy)


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it ends.

    If another process or thread holds it: wait, or raise ValueError with ``busy``. Who holds it may
    take it again. Nothing is locked where the file system knows no locks.

    Args:
        path: a file for this lock only, removed at the end; a killed process leaves it there.
    """
    path = path.absolute()
    if path in _held.get():
        yield
        return
    file = _lock(path, busy)
    before = _held.set(_held.get() | {path})
    try:
        yield
    finally:
        _held.reset(before)
        path.unlink(missing_ok=True)
        os.close(file)


def _lock(path: Path, busy: str | None) -> int:
    import fcntl  # which Windows lacks: the layers can be imported there

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            os.close(file)
            raise ValueError(busy) from None
        except OSError:  # the file system knows none
            return file
        with contextlib.suppress(FileNotFoundError):  # who held it has removed it
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)
