"""The table of all runs, whatever they are."""

from __future__ import annotations

from benchmarks.paper.comparison import Runs
from benchmarks.paper.tables.cells import NONE
from sparseconv.measure.table import Table, with_thousands


def every_run(runs: Runs) -> Table:
    """List every run: how many there are, mean accuracy and size, and CPU seconds of training.

    Of those that have times, with their number where that is not all.
    """
    rows = []
    for name in runs.names():
        by_set = runs.rows(name)
        held = [row for rows in by_set.values() for row in rows]
        sized = all("params" in row for row in held)
        times = [row["train_seconds"] for row in held if row["train_seconds"] is not None]
        of = "" if len(times) == len(held) else f" ({len(times)})"
        rows.append(
            (
                name,
                f"{len(by_set)}, {len(held)}",
                f"{100 * runs.over_sets(name, 'accuracy', by_set):.2f}",
                f"{runs.over_sets(name, 'params', by_set) / 1e3:.2f}" if sized else NONE,
                f"{with_thousands(sum(times))}{of}" if times else NONE,
            )
        )
    return Table(("run", "sets, runs", "accuracy %", "params K", "training s"), rows)
