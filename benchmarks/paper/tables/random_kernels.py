"""Tables of pruned random kernels: POCKET."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from benchmarks.paper.archives import published_accuracy
from benchmarks.paper.comparison import Versus, by_set, paired, versus
from benchmarks.paper.networks import ROCKETS
from benchmarks.paper.tables.cells import (
    DIFFERENCE,
    NONE,
    WINS,
    P,
    percent,
    result_cells,
    sets_and_rows,
    to_published,
    to_whole,
)
from sparseconv.measure.table import Table

# Whose published accuracies a run of ours is shown with.
PUBLISHED_ROCKET = {
    "ROCKET": "ROCKET",
    "ROCKET, as published, POCKET, stage 1": "POCKET-1",
    "ROCKET, as published, POCKET": "POCKET-2",
    "ROCKET, ridge by folds, as published, POCKET, stage 1": "POCKET-1",
    "ROCKET, ridge by folds, as published, POCKET": "POCKET-2",
}
BY_FOLDS = ("ROCKET, cross-validated", "ROCKET, ridge by folds")


def pruned_kernels(rows: pd.DataFrame) -> Table:
    """Compare pruned ROCKET and MiniROCKET with whole ones and published means."""
    names = rows["run"].unique()
    whole_of = {name: whole for name in names if (whole := _whole(names, name))}
    cells = to_whole(rows, whole_of)
    lines = []
    for name, whole in whole_of.items():
        both = paired(rows, whole, name, by=["dataset"])
        held = both[both["run"] == name]
        peer = PUBLISHED_ROCKET.get(name)
        published = to_published(by_set(rows, name), peer) if peer else None
        us = 1e6 * held["predict_seconds"] / held["n_test"]
        by_data = held.assign(us=us).groupby("dataset")
        lines.append({
            "run": name,
            "sets, fits": sets_and_rows(held),
            "kept": f"{100 * (held['keep'] / held['n_candidates']).mean():.0f} %",
            "accuracy %": percent(by_set(held, name).mean()),
            f"{WINS} against all": cells[name][WINS],
            DIFFERENCE: cells[name][DIFFERENCE],
            P: cells[name][P],
            "published mean, ours":
                f"{published[1]['theirs']}, {published[1]['ours']}" if published else NONE,
            "fit s": percent(by_data["fit_seconds"].mean().median()),
            "features us": NONE if us.isna().any() else f"{by_data['us'].mean().median():.0f}",
        })  # fmt: skip
    return Table.of(lines)


def _whole(names: Collection[str], name: str) -> str | None:
    """Return the run with all kernels of the same draw; None if that run is not shown."""
    model = name.split(",")[0]
    if model not in ROCKETS or model not in names or name in BY_FOLDS:
        return None
    return next((run for run in BY_FOLDS if name.startswith(f"{run}, ")), model)


def choices(rows: pd.DataFrame) -> Table:
    """Compare POCKET's choice with magnitude and chance, refitted."""
    found: dict[tuple[str, str], Versus] = {}
    for name in rows["run"].unique():
        for way in ("magnitude", "random") if name.endswith(", POCKET") else ():
            other = by_set(rows, name.removesuffix("POCKET") + way)
            if result := versus(by_set(rows, name), other):
                found[name, way] = result
    cells = result_cells(found)
    lines = [
        {"run": name, "against": way, "sets": str(result.sets), **cells[name, way]}
        for (name, way), result in found.items()
    ]
    return Table.of(lines, ("run", "against"))


def pruned_kernels_each(rows: pd.DataFrame) -> Table:
    """List each data set's accuracies, whole and pruned, ours and published."""
    names = [name for name in rows["run"].unique() if name.split(",")[0] in ROCKETS]
    columns = {name: by_set(rows, name) for name in names if name not in BY_FOLDS}
    sets = sorted(set().union(*(found.index for found in columns.values())))
    for name in ("ROCKET", "POCKET-1", "POCKET-2"):
        columns[f"published {name}"] = published_accuracy(name)
    return Table.of(
        {"data set": name} | {run: percent(found.get(name)) for run, found in columns.items()}
        for name in sets
    )
