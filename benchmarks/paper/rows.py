"""The rows of a sweep, one per finished job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.archives import Archive
from benchmarks.paper.plan import DEFAULTS, Job, difference
from benchmarks.recording import read_lines

ROWS_NAME, LOCK_NAME = "rows.jsonl", "lock"
Key = tuple[str, str, int]  # run, data set, seed


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read each finished job's last row, even while the sweep is running."""
    rows = {key_of(row): row for row in read_lines(path)}
    for row in rows.values():
        row["options"] = DEFAULTS | row["options"]  # older rows lack later options
        row.setdefault("post_hoc", row.get("picked", False))  # its name in older rows
    return list(rows.values())


def key_of(row: Mapping[str, Any]) -> Key:
    return row["run"], row["dataset"], row["seed"]


def done_jobs(path: Path, jobs: Sequence[Job], archive: Archive) -> set[Key]:
    """Return the keys of the jobs that have a row; reject rows of other options or data."""
    rows = read_rows(path)
    options = {row["run"]: row["options"] for row in rows}
    for job in jobs:
        if change := difference(options.get(job.run, job.options), job.options):
            raise ValueError(
                f"{path} has {job.run} with {change} as in the plan; rename the run, or choose "
                "another folder"
            )
    checksums = {job.dataset: archive.checksums[job.dataset] for job in jobs}
    for row in rows:
        there = checksums.get(row["dataset"])
        if there is not None and row.get("data", there) != there:  # older rows have none
            raise ValueError(
                f"{path} has rows of {row['dataset']} whose values differ from the archive's; "
                "choose another folder"
            )
    return set(map(key_of, rows))
