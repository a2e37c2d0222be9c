"""Record what was measured: JSON documents, files to which rows are added, and the machine.

Files of JSON lines are for interruptible measurements, which add rows one by one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sparseconv.core.files import locked, write_whole
from sparseconv.measure.machine import environment_info
from sparseconv.ops.backends import extension


def read(path: Path) -> dict[str, Any]:
    """Read a file that ``write_json`` wrote."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write the document, with one line per list entry for readable diffs."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "]"
        parts.append(f"{json.dumps(key)}: {text}")
    write_whole(path, "{" + ",\n".join(parts) + "}\n")


def rounded(value: Any) -> Any:
    """Round every float in lists and dicts to five significant digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.5g}"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows, even while the file is being written; return none if it does not exist.

    An incomplete last line (still being written, or cut off by a kill) is left out.
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
    days: dict[str, set[str]] = {}
    for machine in (row["machine"] for row in rows):
        name = f"{machine['cpu']}, {machine['isa']}, torch {machine['torch']}"
        days.setdefault(name, set()).add(machine["date"][:10])
    return "; ".join(
        f"{name}, {' and '.join(sorted(found))}" for name, found in sorted(days.items())
    )


def measurement_context() -> dict[str, str]:
    """Return the facts on which times depend, and the date."""
    found = environment_info() | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    del found["threads"]
    isa, isas = ("none", ["none"]) if extension is None else (extension.isa(), extension.isas())
    return found | {"isa": isa, "isas": ", ".join(isas), "commit": commit()}


def commit() -> str:
    """Return the commit of this checkout, marked if sources have changed, or "unknown"."""
    here = Path(__file__)
    git = partial(output, here.parent, "git")
    try:
        if git("ls-files", "--full-name", here.name) != f"benchmarks/{here.name}":
            return "unknown"  # not committed, or of a project that holds a copy
        sources = ("../csrc", "../sparseconv", "../setup.py", ".", ":(exclude)results")
        changed = git("status", "--porcelain", "--", *sources)
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, RuntimeError):
        return "unknown"


def output(folder: Path, *words: str | Path) -> str:
    """Run a command in a folder, and return what it printed, without the last line's end."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        command, said = " ".join(map(str, words))[:300], (done.stderr + done.stdout).strip()
        raise RuntimeError(f"{command} failed with exit code {done.returncode}: {said[-3000:]}")
    return done.stdout.strip()


def _whole(content: bytes) -> int:
    """Return the bytes before a torn last line."""
    size = content.rfind(b"\n") + 1
    try:
        json.loads(content[size:])
    except ValueError:
        return size
    return len(content)
