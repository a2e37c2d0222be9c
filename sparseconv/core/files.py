"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_FULL = (errno.ENOSPC, errno.EDQUOT)


def _partial_path(path: Path) -> Path:
    """Name a new file in the folder of ``path``."""
    return path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")


def partial_files(path: Path) -> list[Path]:
    """List what writers of ``path`` have not finished: they are at work, or were killed."""
    return list(path.parent.glob(f"{glob.escape(path.name)}.*partial"))


def _target(path: Path) -> Path:
    """The file that is to be replaced, which a link names; OSError if no file can be."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder, a device or a pipe, not a file", str(path))
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces ``path`` once all its bytes are on the disk.

    Whenever the process is killed, ``path`` holds the old file or the new one; if writing fails,
    the old one, and OSError says so.
    """
    path = _target(path)
    partial = _partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        # torch's writer, when a write fails, raises a RuntimeError of its own.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        advice = "; make room on its disk, or choose another" if cause.errno in _FULL else ""
        text = f"{cause.strerror or cause}; {path} was not written{advice}"
        raise OSError(cause.errno, text) from error
    folder = os.open(path.parent, os.O_RDONLY)  # the new name must reach the disk as well
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Defer SIGINT to the end of the block: C++ code may not survive it halfway.

    Only the main thread receives one.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(*came[0])


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all; a name that is no UTF-8 is escaped in it."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def check_writable(path: Path) -> None:
    """Check before the work that its result can be written, else ValueError; make its folder."""
    try:
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial_path(target)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}); choose another file"
        ) from error
