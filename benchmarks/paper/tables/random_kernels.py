"""Tables of pruned random kernels: POCKET."""

from __future__ import annotations

from statistics import fmean, median

from benchmarks.paper.comparison import Runs, Versus, published_accuracy, versus
from benchmarks.paper.networks import ROCKETS
from benchmarks.paper.tables.cells import (
    DIFFERENCE,
    NONE,
    percent,
    result_cells,
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


def pruned_kernels(runs: Runs) -> Table:
    """Compare pruned ROCKET and MiniROCKET with whole ones and published means."""
    whole_of = {name: whole for name in runs.names() if (whole := _whole(runs, name))}
    cells = to_whole(runs, whole_of)
    rows = []
    for name, whole in whole_of.items():
        common, ours = runs.common(whole, name), runs.accuracy(name)
        held = [row for dataset in common for row in runs.rows(name)[dataset]]
        kept = fmean(row["keep"] / row["n_candidates"] for row in held)
        peer = PUBLISHED_ROCKET.get(name)
        published = to_published(ours, peer) if peer else None
        fit = median(runs.mean(name, "fit_seconds").values())
        features = NONE
        if all(row["predict_seconds"] is not None for row in held):
            us = runs.mean(name, lambda row: 1e6 * row["predict_seconds"] / row["n_test"])
            features = f"{median(us.values()):.0f}"
        rows.append(
            (
                name,
                f"{len(common)}, {len(held)}",
                f"{100 * kept:.0f} %",
                f"{fmean(ours[dataset] for dataset in common):.2f}",
                *cells[name],
                ", ".join(reversed(published[1])) if published else NONE,
                f"{fit:.2f}",
                features,
            )
        )
    header = (
        "run", "sets, fits", "kept", "accuracy %", "wins/ties/losses against all",
        DIFFERENCE, "p, Holm", "published mean, ours", "fit s", "features us",
    )  # fmt: skip
    return Table(header, rows)


def _whole(runs: Runs, name: str) -> str | None:
    """Return the run with all kernels of the same draw; None if that run is not shown."""
    model = name.split(",")[0]
    if model not in ROCKETS or model not in runs or name in BY_FOLDS:
        return None
    return next((run for run in BY_FOLDS if name.startswith(f"{run}, ")), model)


def choices(runs: Runs) -> Table:
    """Compare POCKET's choice with magnitude and chance, refitted."""
    found: dict[tuple[str, str], Versus] = {}
    for name in runs.names():
        for way in ("magnitude", "random") if name.endswith(", POCKET") else ():
            other = runs.accuracy(name.removesuffix("POCKET") + way)
            if result := versus(runs.accuracy(name), other):
                found[name, way] = result
    cells = result_cells(found)
    rows = [(*names, str(result.sets), *cells[names]) for names, result in found.items()]
    header = ("run", "against", "sets", "wins/ties/losses", DIFFERENCE, "p, Holm")
    return Table(header, rows, 2)


def pruned_kernels_each(runs: Runs) -> Table:
    """List each data set's accuracies, whole and pruned, ours and published."""
    names = [name for name in runs.names() if name.split(",")[0] in ROCKETS]
    names = [name for name in names if name not in BY_FOLDS]
    theirs = {name: published_accuracy(name) for name in ("ROCKET", "POCKET-1", "POCKET-2")}
    found = {name: runs.accuracy(name) for name in names}
    sets = sorted({dataset for accuracy in found.values() for dataset in accuracy})
    rows = [
        (
            dataset,
            *(percent(found[name].get(dataset)) for name in names),
            *(percent(theirs[name].get(dataset)) for name in theirs),
        )
        for dataset in sets
    ]
    header = ("data set", *names, *(f"published {name}" for name in theirs))
    return Table(header, rows)
