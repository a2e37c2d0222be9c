"""The rows of a sweep: a line for each job that is done, checked as they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.lines import add_line, read_lines
from benchmarks.paper import kinds
from benchmarks.paper.archives import Archive, Shape
from benchmarks.paper.plan import Job, differing
from benchmarks.paper.pruned_filters import VARIANT, is_pruned_filters
from benchmarks.paper.rocket import is_pruned_kernels

ROWS_NAME, LOCK_NAME = "rows.jsonl", "lock"
Key = tuple[str, str, int]  # run, data set, seed
SIZES = tuple(field.name for field in fields(Shape))


def _point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and kinds.count(value[0])
        and kinds.share(value[1])
    )


_MACHINE = dict.fromkeys(("cpu", "torch", "commit", "date"), kinds.text)
_CPU_SECONDS = dict.fromkeys(("train_seconds", "predict_seconds"), kinds.known_seconds)
_LAPS = dict.fromkeys(("draw_seconds", "prepare_seconds", "transform_seconds"), kinds.seconds)
_OF_KERNELS = {
    **dict.fromkeys(("way", "share"), kinds.text), "keep": kinds.count, "accuracy": kinds.share,
    "select_seconds": kinds.seconds,
}  # fmt: skip
# What a row holds at least: of another version, or of another program, it may not.
KEYS: Mapping[str, kinds.Kind] = {
    "run": kinds.text, "dataset": kinds.text, "seed": kinds.whole, "options": kinds.table(),
    "machine": kinds.table(**_MACHINE), "accuracy": kinds.share, **_CPU_SECONDS,
    **dict.fromkeys(SIZES, kinds.count),
}  # fmt: skip
NETWORK: Mapping[str, kinds.Kind] = dict.fromkeys(("params", "macs", "epochs"), kinds.count)
DRAWN: Mapping[str, kinds.Kind] = {
    **_LAPS, "n_candidates": kinds.count, "variants": kinds.list_of(kinds.table(**_OF_KERNELS)),
}  # fmt: skip
FILTERED: Mapping[str, kinds.Kind] = {
    **NETWORK, "variants": kinds.list_of(kinds.table(**VARIANT)),
}  # fmt: skip
TRAINED: Mapping[str, kinds.Kind] = {
    **NETWORK, "curve": kinds.list_of(_point), "curve_seconds": kinds.list_of(kinds.seconds),
}  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of finished jobs, also while the sweep runs.

    Raises:
        ValueError: a line that is no row of a sweep, a job's second one, or two of one run with
            different options, or of different data under one name, whose mean would say nothing.
    """
    rows = read_lines(path, _check)
    for key, count in Counter(map(key_of, rows)).items():
        if count > 1:
            raise ValueError(
                f"{path} holds {', '.join(map(str, key))} {count} times; remove all but one line"
            )
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        here = first.setdefault(row["run"], row)
        for name, one, other in differing(here["options"], row["options"]):
            raise ValueError(
                f"{path} has the run {row['run']} with {name} {one!r} on {here['dataset']} and "
                f"{other!r} on {row['dataset']}; give one of them another name"
            )
    _check_data(path, rows)
    return rows


def _check_data(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows of one data set that are of different data."""
    first: dict[tuple[str, str, str], Any] = {}
    for row in rows:
        checksum = {"data": row["data"]} if "data" in row else {}  # an earlier version had none
        split = row["options"].get("split", "own")
        for key, value in ({name: row[name] for name in SIZES} | checksum).items():
            there = first.setdefault((row["dataset"], split, key), value)
            if there != value:
                raise ValueError(
                    f"{path} has rows of {row['dataset']} with {key} {there!r} and {value!r}; keep "
                    "those of one archive, and move the others to another folder"
                )


def key_of(row: Mapping[str, Any]) -> Key:
    """What names the row's job."""
    return row["run"], row["dataset"], row["seed"]


def _check(row: Mapping[str, Any]) -> None:
    kinds.refuse(row, kinds.wrong(row, KEYS))
    expected = DRAWN if is_pruned_kernels(row) else TRAINED
    expected = FILTERED if is_pruned_filters(row) else expected
    kinds.refuse(row, kinds.wrong(row, expected))


class Rows:
    """The results file: a row for each job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = {key_of(row): row for row in read_rows(path)}

    def check(self, jobs: Sequence[Job], archive: Archive) -> None:
        """Refuse jobs beside rows of the same run with other options, or of other data."""
        runs = {row["run"]: row["options"] for row in self.found.values()}
        for job in jobs:
            for name, there, here in differing(runs.get(job.run, job.options), job.options):
                raise ValueError(
                    f"{self.path} has {job.run} with {name} {there!r}, but the plan says {here!r}; "
                    "give the run another name, or choose another folder"
                )
        self._check_picked(jobs)
        sets = {job.dataset for job in jobs}
        for row in (row for row in self.found.values() if row["dataset"] in sets):
            sizes = asdict(archive.shapes[row["dataset"]])
            there = {key: row[key] for key in sizes}
            if row["options"].get("split", "own") == "own" and there != sizes:
                raise ValueError(
                    f"{self.path} has {row['dataset']} with {there}, but the archive's has "
                    f"{sizes}; choose another folder"
                )
            checksum = archive.checksums[row["dataset"]]
            if row.get("data", checksum) != checksum:
                raise ValueError(
                    f"{self.path} has rows of {row['dataset']} with other values than the "
                    "archive's; choose another folder"
                )

    def _check_picked(self, jobs: Sequence[Job]) -> None:
        """Refuse jobs beside rows of their own that are picked, or not, against the plan."""
        done = [job for job in jobs if job.key in self.found]
        for picked, change in ((True, "add {} to"), (False, "remove {} from")):
            wrong = [
                str(job)
                for job in done
                if job.picked == picked != self.found[job.key].get("picked", False)
            ]
            if wrong:
                change = change.format('"picked": true')
                raise ValueError(
                    f"{self.path} has {'; '.join(wrong)} with picked {not picked}, but the plan "
                    f"says {picked}; {change} these lines, or change the plan"
                )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to the file; ValueError if that could not be read again."""
        _check(row)
        add_line(self.path, row)
        self.found[key_of(row)] = dict(row)
