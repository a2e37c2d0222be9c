"""The rows of a sweep: a line for each job that is done, checked as they are read."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import add_line, read_lines
from benchmarks.paper.archives import Archive
from benchmarks.paper.plan import DEFAULTS, Job, check_options, differing
from benchmarks.paper.pruned_filters import is_pruned_filters
from benchmarks.paper.rocket import is_pruned_kernels
from sparseconv.models import DSN

ROWS_NAME = "rows.jsonl"
Key = tuple[str, str, int]  # run, data set, seed
Kind = Callable[[Any], bool]
DSN_DEFAULTS = inspect.signature(DSN).parameters


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _seconds(value: Any) -> bool:
    return _number(value) and value >= 0


def _known_seconds(value: Any) -> bool:
    return value is None or _seconds(value)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _list_of(kind: Kind, least: int = 0) -> Kind:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(kind, value))


def _table(**kinds: Kind) -> Kind:
    return lambda value: isinstance(value, dict) and not _wrong(value, kinds)


def _options(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= DEFAULTS.keys():
        return False
    try:
        check_options(DEFAULTS | value)  # a row of an earlier version may lack some
    except (ValueError, TypeError):
        return False
    return True


def _point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _count(value[0]) and _share(value[1])


def _wrong(row: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[str]:
    return [key for key, kind in kinds.items() if key not in row or not kind(row[key])]


_MATRIX = _list_of(_list_of(_number, 1), 1)
# What a row holds at least: of another version, or of another program, it may not.
KEYS: Mapping[str, Kind] = {
    "run": _text, "dataset": _text, "seed": lambda value: type(value) is int,
    "options": _options, "machine": _table(cpu=_text, torch=_text, commit=_text, date=_text),
    "accuracy": _share,
    **dict.fromkeys(("train_seconds", "predict_seconds"), _known_seconds),  # CPU seconds
    **dict.fromkeys(("n_train", "n_test", "n_channels", "n_timepoints", "n_classes"), _count),
}  # fmt: skip
NETWORK: Mapping[str, Kind] = dict.fromkeys(("params", "macs", "epochs"), _count)
DRAWN: Mapping[str, Kind] = {
    **dict.fromkeys(("draw_seconds", "prepare_seconds", "transform_seconds"), _seconds),
    "n_candidates": _count,
    "variants": _list_of(
        _table(way=_text, share=_text, keep=_count, accuracy=_share, select_seconds=_seconds)
    ),
}
FILTERED: Mapping[str, Kind] = {
    **NETWORK,
    "variants": _list_of(
        _table(name=_text, params=_count, macs=_count, accuracy=_share, at_once=_share,
               tune_seconds=_seconds)
    ),
}  # fmt: skip
TRAINED: Mapping[str, Kind] = {
    **NETWORK, "curve": _list_of(_point), "curve_seconds": _list_of(_seconds),
}  # fmt: skip
# What only some rows hold.
OPTIONAL: Mapping[str, Kind] = {
    "data": _text, "flops_paper": _number, "kernels_by_size": _MATRIX,
    "group_weights": _list_of(_MATRIX, 1),
}  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of finished jobs, also while the sweep runs.

    Raises:
        ValueError: a line that is no row of a sweep, a job's second one, or two of one run with
            different options, whose mean would say nothing.
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
    return rows


def key_of(row: Mapping[str, Any]) -> Key:
    """What names the row's job."""
    return row["run"], row["dataset"], row["seed"]


def _check(row: Mapping[str, Any]) -> None:
    kinds: Mapping[str, Kind] = {}
    wrong = _wrong(row, KEYS)
    if not wrong:
        kinds = DRAWN if is_pruned_kernels(row) else TRAINED
        kinds = FILTERED if is_pruned_filters(row) else kinds
        wrong = _wrong(row, kinds)
        wrong += [key for key, kind in OPTIONAL.items() if key in row and not kind(row[key])]
        wrong += [key for key, shape in _shapes(row).items() if not _is_of(row[key], shape)]
        wrong += ["variants"] if kinds is TRAINED and "variants" in row else []
    if wrong:
        raise ValueError(f"it has no usable {', '.join(dict.fromkeys(wrong))}")
    if kinds is TRAINED and len(row["curve"]) != len(row["curve_seconds"]):
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

    def append(self, row: Mapping[str, Any]) -> None:
        add_line(self.path, row)
        self.found[key_of(row)] = dict(row)
