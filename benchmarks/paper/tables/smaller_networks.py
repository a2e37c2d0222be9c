"""Tables of smaller networks: pruned filters, shared factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, geometric_mean

from benchmarks.paper.comparison import Row, Runs
from benchmarks.paper.tables.cells import DIFFERENCE, NONE, percent, to_whole
from sparseconv.measure.table import Table, with_thousands
from sparseconv.pruning.data import batch_sizes
from sparseconv.training.recipe import Recipe


def smaller_networks(runs: Runs) -> Table:
    """Compare networks with their pruned forms: accuracy, size, time."""
    names = runs.names()
    common = runs.common(*names)
    whole_of = {name: name.split(",")[0] for name in names}
    cells = to_whole(runs, whole_of)
    # Times of the sets of which every run has some.
    together = [
        dataset
        for dataset in common
        if all(any("forward_ms" in row for row in runs.rows(name)[dataset]) for name in names)
    ]
    rows = []
    for name in names if common else []:
        held = [row for dataset in common for row in runs.rows(name)[dataset]]
        mean = partial(runs.over_sets, name, sets=common)
        timed = [row for row in held if "forward_ms" in row and row["dataset"] in together]
        rows.append(
            (
                name,
                f"{len(common)}, {len(held)}",
                percent(100 * mean("accuracy")),
                f"{mean('params') / 1e3:.1f}",
                f"{mean('macs') / 1e6:.2f}",
                *(
                    f"{geometric_mean([row[f'{which}_ms'] for row in timed]):.2f}"
                    if timed else NONE
                    for which in ("forward", "step")
                ),
                _times_less(timed, runs.rows(whole_of[name])),
                *cells[name],
            )
        )  # fmt: skip
    header = (
        "run", "sets, runs", "accuracy %", "params K", "multiply-adds M", "prediction ms",
        "step ms", "times less", "wins/ties/losses", DIFFERENCE, "p, Holm",
    )  # fmt: skip
    return Table(header, rows)


def _times_less(timed: Sequence[Row], whole: Mapping[str, Sequence[Row]]) -> str:
    """Return the ratios of the whole network's multiply-adds and times to the smaller one's.

    Both networks have the same data set and seed.
    """
    pairs = [pair for row in timed for pair in _pairs([row], whole.get(row["dataset"], ()))]
    if not all("forward_ms" in other for _, other in pairs) or not pairs:
        return NONE
    return " / ".join(
        f"{geometric_mean([other[key] / row[key] for row, other in pairs]):.1f}"
        for key in ("macs", "forward_ms", "step_ms")
    )


def _pairs(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pair the rows with the same seed."""
    return [(row, other) for row in rows for other in others if other["seed"] == row["seed"]]


def silenced(runs: Runs) -> Table:
    """List what DSP removed from networks trained to silence filters, by training steps."""
    found = []
    for name in runs.names():
        for dataset, held in runs.rows(f"{name}, DSP").items():
            first, whole = held[0], runs.rows(name)[dataset]
            if not first["options"]["silence"]:
                continue
            recipe = Recipe(**first["options"]["recipe"])
            n_train = first["n_train"]
            batches = batch_sizes(n_train, recipe.batch_size_for(n_train))
            steps = first["epochs"] * len(batches)
            left = fmean(row["params"] / other["params"] for row, other in _pairs(held, whole))
            cells = (
                name, dataset, str(first["n_train"]), with_thousands(steps),
                f"{100 * (1 - left):.0f}",
                *(percent(100 * fmean(row[key] for row in rows))
                  for rows, key in ((whole, "accuracy"), (held, "at_once"), (held, "accuracy"))),
            )  # fmt: skip
            found.append(((name, steps, dataset), cells))
    header = (
        "run", "data set", "series", "steps", "smaller by %", "accuracy before", "at once", "tuned",
    )  # fmt: skip
    return Table(header, [cells for _, cells in sorted(found)], text_columns=2)
