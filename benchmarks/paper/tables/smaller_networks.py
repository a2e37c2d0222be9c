"""Tables of smaller networks: pruned filters, shared factors."""

from __future__ import annotations

from statistics import geometric_mean

import pandas as pd

from benchmarks.paper.comparison import by_set, paired
from benchmarks.paper.tables.cells import NONE, percent, sets_and_rows, to_whole
from sparseconv.measure.table import Table, with_thousands
from sparseconv.running import batch_sizes
from sparseconv.training.recipe import Recipe

TIMES = ("macs", "forward_ms", "step_ms")


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
