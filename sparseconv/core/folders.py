"""Folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from sparseconv.core.files import write_whole


def check_new_or_empty(folder: Path) -> None:
    """ValueError if the folder is a file or holds any."""
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"the folder {folder} is a file; choose another")
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"expected a new or empty folder, but {folder} holds files; choose another"
            )
    except OSError as error:
        raise _cannot_write(folder, error) from error


def write_folder(folder: Path, files: dict[str, str]) -> None:
    """All files or none, and no new folder but with them.

    A new folder is written beside, and renamed as a whole. One that exists stays what it is: it may
    be a link, a mount, or the current one.
    """
    with ExitStack() as undo:
        try:
            for parent in [x for x in reversed(folder.parents) if not x.exists()]:
                parent.mkdir()
                undo.callback(_remove_empty, parent)
            target = folder
            if not folder.exists():
                # Not mkdtemp, whose folders nobody else may read.
                target = folder.with_name(f".{folder.name}.{uuid4().hex}")
                target.mkdir()
                undo.callback(shutil.rmtree, target, ignore_errors=True)
            for name, text in files.items():
                undo.callback((target / name).unlink, missing_ok=True)
                write_whole(target / name, text)
            if target != folder:
                os.replace(target, folder)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        undo.pop_all()


def _cannot_write(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{folder} cannot be written ({error.strerror or error}); choose another folder"
    )


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else has put something there
        folder.rmdir()
