"""Files of JSON lines, to which interruptible measurements add rows one by one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparseconv.core.files import locked
from sparseconv.measure.machine import measurement_context


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows, even while the file is being written; return none if it does not exist.

    An incomplete last line (still being written, or cut off by a kill) is left out.

    Raises:
        ValueError: a line that is not JSON.
    """
    if not path.exists():
        return []
    found = []
    content = path.read_bytes()
    for number, line in enumerate(content[: _whole(content)].splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}, is not a row: {error}; remove that line to "
                "measure it again"
            ) from error
    return found


def add_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row, replacing a torn last line; the row is on disk on return."""
    # Another process would take a row that is being written for a torn one.
    with locked(path.with_name(path.name + ".lock")), path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        size = _whole(content)
        file.truncate(size)
        begun = b"\n" if size and not content[:size].endswith(b"\n") else b""
        file.write(begun + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def add_missing(
    path: Path, keys: Sequence[str], jobs: Mapping[tuple[Any, ...], Callable[[], dict[str, Any]]]
) -> None:
    """Measure and add the rows that a file lacks, with the machine's description.

    ``jobs`` maps the values of ``keys``, which identify a row, to functions that measure its other
    fields. A ``"machine"`` that they return is added to the description.
    """
    done = {tuple(row[key] for key in keys) for row in read_lines(path)}
    for values, measure in jobs.items():
        if values not in done:
            row = dict(zip(keys, values, strict=True)) | measure()
            row["machine"] = measurement_context() | row.get("machine", {})
            add_line(path, row)
            print(*values, flush=True)


def machines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name what the rows were measured on: processors, instruction sets, versions and days."""
    found = (row["machine"] for row in rows)
    texts = {f"{m['cpu']}, {m['isa']}, torch {m['torch']}, {m['date'][:10]}" for m in found}
    return "; ".join(sorted(texts))


def _whole(content: bytes) -> int:
    """Return the bytes before a torn last line."""
    size = content.rfind(b"\n") + 1
    try:
        json.loads(content[size:])
    except ValueError:
        return size
    return len(content)
