"""A disk that is full at any moment of a save."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


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


def check_every_write(save: Callable[[], object], path: Path) -> int:
    """Each write of a save fails in turn, then the way to the disk, then the new name.

    Every time it raises, and leaves the older file as it was, alone in its folder. The last save
    succeeds; returns how many failed.
    """
    whole, opened = path.read_bytes(), builtins.open

    def fails(replacement: Any, *place: Any) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*place, replacement)
            try:
                save()
            except (OSError, RuntimeError):
                pass
            else:
                return False
        assert path.read_bytes() == whole
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        return True

    def no_space(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place in ((os, "fsync"), (Path, "replace"), (Path, "open")):
        assert fails(no_space, *place)
    writes = 0
    while fails(lambda self, mode, n=writes: _Full(opened(self, mode), n), Path, "open"):
        writes += 1
    return writes + 3
