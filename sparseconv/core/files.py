"""Write files atomically, and let only one writer at a time use a folder."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

LOCK_NAME = "training.lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())  # by this thread


def partial_files(path: Path) -> list[Path]:
    """List the unfinished files of writers of ``path`` that are still running or were killed."""
    return list(path.parent.glob(f"{glob.escape(path.name)}.*partial"))


def _target(path: Path) -> Path:
    """Follow links to the file to replace; reject a folder, device or pipe."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder, a device or a pipe, not a file", str(path))
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces ``path`` once all its bytes are on the disk.

    If the process is killed, either the old file or the new one is left. If writing fails, OSError
    is raised and the old file is kept.
    """
    path = _target(path)
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        # torch's writer turns a failed write into a RuntimeError.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        advice = "; make room on its disk, or choose another path" if cause.errno in _FULL else ""
        text = f"{cause.strerror or cause}; {path} was not written{advice}"
        raise OSError(cause.errno, text) from error
    folder = os.open(path.parent, os.O_RDONLY)  # the new name must reach the disk as well
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Defer SIGINT to the end of the block, because C++ code may not survive an interruption."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:  # also while another error is raised, which then is the interruption's context
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically; escape what UTF-8 cannot encode."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


@contextlib.contextmanager
def _refusing(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}); choose another {kind}"
        ) from error


def check_writable(path: Path) -> None:
    """Create the folder of a file to be written later; raise ValueError if writing would fail."""
    with _refusing(path, "file"):
        folder = _target(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write all files into a new or empty folder, or none of them."""
    with _refusing(folder, "folder"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, text in files.items():
                write_whole(folder / name, text)
        except OSError:
            for name in files:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
            raise


def claimed(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Create a results folder and keep other runs out; raise ValueError if one is using it."""
    with _refusing(folder, "folder"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    busy = f"another run is writing to {folder}; wait for it, or choose another folder"
    return locked(folder / LOCK_NAME, busy)


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Lock ``path``, a file used only for this lock, until the block or the process ends.

    If another process or thread holds the lock, wait, or raise ValueError with the text ``busy`` if
    one is passed. The lock is reentrant. On a file system without locks, nothing is locked. The
    file is removed at the end of the block.
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
    import fcntl  # Windows lacks it, but needs this module

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            os.close(file)
            raise ValueError(busy) from None
        except OSError:  # the file system has no locks
            return file
        with contextlib.suppress(FileNotFoundError):  # the former holder may have removed it
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)
