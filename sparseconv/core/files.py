"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = partial_path(path)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Find out before the work whether its result can be written; missing folders are made.

    Raises:
        ValueError: it cannot, and why.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path(path).touch()
        partial_path(path).unlink()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}); choose another file"
        ) from error
