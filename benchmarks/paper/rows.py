"""The rows of a sweep: a line for each job that is done, checked as they are read."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import add_line, read_lines
from benchmarks.paper import kinds
from benchmarks.paper.archives import Archive, Shape
from benchmarks.paper.plan import DEFAULTS, Job, check_options, differing
from benchmarks.paper.pruned_filters import VARIANT, is_pruned_filters
from benchmarks.paper.rocket import is_pruned_kernels
from sparseconv.models import DSN

ROWS_NAME, LOCK_NAME = "rows.jsonl", "lock"
Key = tuple[str, str, int]  # run, data set, seed
SIZES = tuple(field.name for field in fields(Shape))
DSN_DEFAULTS = inspect.signature(DSN).parameters


def _options(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= DEFAULTS.keys():
        return False
    try:
        check_options(DEFAULTS | value)  # a row of an earlier version may lack some
    except (ValueError, TypeError):
        return False
    return True


def _point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and kinds.count(value[0])
        and kinds.share(value[1])
    )


_MATRIX = kinds.list_of(kinds.list_of(kinds.number, 1), 1)
_MACHINE = dict.fromkeys(("cpu", "torch", "commit", "date"), kinds.text)
_GPU = kinds.table(gpu=kinds.text)
_CPU_SECONDS = dict.fromkeys(("train_seconds", "predict_seconds"), kinds.known_seconds)
_LAPS = dict.fromkeys(("draw_seconds", "prepare_seconds", "transform_seconds"), kinds.seconds)
_OF_KERNELS = {
    **dict.fromkeys(("way", "share"), kinds.text), "keep": kinds.count, "accuracy": kinds.share,
    "select_seconds": kinds.seconds,
}  # fmt: skip
# What a row holds at least: of another version, or of another program, it may not.
KEYS: Mapping[str, kinds.Kind] = {
    "run": kinds.text, "dataset": kinds.text, "seed": kinds.whole, "options": _options,
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
# What only some rows hold.
OPTIONAL: Mapping[str, kinds.Kind] = {
    "data": kinds.text, "flops_paper": kinds.number, "kernels_by_size": _MATRIX,
    "group_weights": kinds.list_of(_MATRIX, 1), "picked": lambda value: value is True,
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
    wrong = kinds.wrong(row, expected)
    wrong += [key for key, kind in OPTIONAL.items() if key in row and not kind(row[key])]
    wrong += ["machine"] if "gpu" in row["machine"] and not _GPU(row["machine"]) else []
    wrong += [key for key, shape in _shapes(row).items() if not _is_of(row[key], shape)]
    wrong += ["variants"] if expected is TRAINED and "variants" in row else []
    kinds.refuse(row, wrong)
    if expected is TRAINED and len(row["curve"]) != len(row["curve_seconds"]):
        raise ValueError("its curve and curve_seconds have different lengths")
    if (row["train_seconds"] is None) != (row["predict_seconds"] is None):
        raise ValueError("it has only one of train_seconds and predict_seconds")
    recipe = row["options"].get("recipe", {})
    if "epochs" in row and row["epochs"] != recipe.get("epochs", row["epochs"]):
        raise ValueError(f"its epochs are {row['epochs']}, but its recipe says {recipe['epochs']}")


def _shapes(row: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes that a DSN's ``kernels_by_size`` and ``group_weights`` must have."""
    if row["options"].get("model", "DSN") != "DSN":
        return {}
    depth, taps, groups = (
        row["options"].get("network", {}).get(name, DSN_DEFAULTS[name].default)
        for name in ("depth", "kernel_size", "n_groups")
    )
    found = {"kernels_by_size": (depth, taps + 1), "group_weights": (depth, groups, taps)}
    return {key: shape for key, shape in found.items() if key in row}


def _is_of(layers: Any, shape: tuple[int, ...]) -> bool:
    try:
        found = np.array(layers)
    except ValueError:  # ragged
        return False
    return found.shape == shape and bool(found.any())


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
