"""Tables of smaller classifiers: pruned random kernels (POCKET), pruned filters, shared factors."""

from __future__ import annotations

from collections.abc import Collection
from statistics import geometric_mean

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
from sparseconv.measure.table import Table, with_thousands
from sparseconv.running import batch_sizes
from sparseconv.training.recipe import Recipe

# Whose published accuracies a run of ours is shown with.
PUBLISHED_ROCKET = {
    "ROCKET": "ROCKET",
    "ROCKET, as published, POCKET, stage 1": "POCKET-1",
    "ROCKET, as published, POCKET": "POCKET-2",
    "ROCKET, ridge by folds, as published, POCKET, stage 1": "POCKET-1",
    "ROCKET, ridge by folds, as published, POCKET": "POCKET-2",
}
BY_FOLDS = ("ROCKET, cross-validated", "ROCKET, ridge by folds")
TIMES = ("macs", "forward_ms", "step_ms")


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


def smaller_networks(rows: pd.DataFrame) -> Table:
    """Compare networks with their pruned forms: accuracy, size, time."""
    names = rows["run"].unique()
    whole_of = {name: name.split(",")[0] for name in names}
    cells = to_whole(rows, whole_of)
    common = paired(rows, *names, by=["dataset"])
    # Times of the sets of which every run has some.
    timed = paired(common.dropna(subset="forward_ms"), *names, by=["dataset"])
    lines = []
    for name, held in common.groupby("run", sort=False):
        mean = {key: by_set(held, name, key).mean() for key in ("accuracy", "params", "macs")}
        own = timed[timed["run"] == name]
        lines.append({
            "run": name,
            "sets, runs": sets_and_rows(held),
            "accuracy %": percent(mean["accuracy"]),
            "params K": f"{mean['params'] / 1e3:.1f}",
            "multiply-adds M": percent(mean["macs"] / 1e6),
            "prediction ms": percent(geometric_mean(own["forward_ms"])) if len(own) else NONE,
            "step ms": percent(geometric_mean(own["step_ms"])) if len(own) else NONE,
            "times less": _times_less(own, rows[rows["run"] == whole_of[name]]),
            **cells[name],
        })  # fmt: skip
    return Table.of(lines)


def _times_less(own: pd.DataFrame, whole: pd.DataFrame) -> str:
    """Return the ratios of the whole network's multiply-adds and times to the smaller one's.

    Both networks have the same data set and seed.
    """
    pairs = own.merge(whole, on=["dataset", "seed"], suffixes=("", "_whole"))
    if pairs.empty or pairs["forward_ms_whole"].isna().any():
        return NONE
    return " / ".join(f"{geometric_mean(pairs[f'{key}_whole'] / pairs[key]):.1f}" for key in TIMES)


def silenced(rows: pd.DataFrame) -> Table:
    """List what DSP removed from networks trained to silence filters, by training steps."""
    lines = []
    for (run, dataset), held in rows[rows["run"].str.endswith(", DSP")].groupby(["run", "dataset"]):
        first, name = held.iloc[0], run.removesuffix(", DSP")
        if not first["options"]["silence"]:
            continue
        recipe, n_train = Recipe(**first["options"]["recipe"]), int(first["n_train"])
        batches = batch_sizes(n_train, recipe.batch_size_for(n_train))
        whole = rows[(rows["run"] == name) & (rows["dataset"] == dataset)]
        pairs = held.merge(whole, on="seed", suffixes=("", "_whole"))
        left = (pairs["params"] / pairs["params_whole"]).mean()
        lines.append({
            "run": name,
            "data set": dataset,
            "series": str(n_train),
            "steps": recipe.epochs * len(batches),
            "smaller by %": f"{100 * (1 - left):.0f}",
            "accuracy before": percent(100 * whole["accuracy"].mean()),
            "at once": percent(100 * held["at_once"].mean()),
            "tuned": percent(100 * held["accuracy"].mean()),
        })  # fmt: skip
    lines.sort(key=lambda line: (line["run"], line["steps"], line["data set"]))
    shown = (line | {"steps": with_thousands(line["steps"])} for line in lines)
    return Table.of(shown, ("run", "data set"))
