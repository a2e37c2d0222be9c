"""Cells that several tables share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, stdev
from typing import TypeVar

import pandas as pd

from benchmarks.paper.archives import published_accuracy
from benchmarks.paper.comparison import Versus, by_set, holm, paired, versus

Name = TypeVar("Name")
Cells = dict[str, str]  # of a row, by the title of their column
NONE = "-"
WINS, DIFFERENCE, P = "wins/ties/losses", "difference, 95 % interval; median", "p, Holm"
RESULT = dict.fromkeys((WINS, DIFFERENCE, P), NONE)
COMPARED = {**RESULT, "to all seeds (sets)": NONE}


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(value: float | None) -> str:
    """Format with two decimals; ``"-"`` for None and NaN."""
    return NONE if pd.isna(value) else f"{value:.2f}"


def sets_and_rows(rows: pd.DataFrame) -> str:
    return f"{rows['dataset'].nunique()}, {len(rows)}"


def spread(percents: Collection[float], digits: int = 2) -> str:
    """Format mean ± standard deviation (count), ``"-"`` for none."""
    if not len(percents):
        return NONE
    deviation = f" ± {stdev(percents):.{digits}f}" if len(percents) > 1 else ""
    return f"{fmean(percents):.{digits}f}{deviation} ({len(percents)})"


def wins(result: Versus) -> str:
    return f"{result.wins}/{result.ties}/{result.losses}"


def difference(result: Versus) -> str:
    """Format a cell of ``DIFFERENCE``; for a single set, it has only the difference."""
    if result.interval is None:
        return f"{result.difference:+.2f}"
    low, high = result.interval
    return f"{result.difference:+.2f} [{low:+.2f}, {high:+.2f}]; {result.median:+.2f}"


def result_cells(found: Mapping[Name, Versus | None]) -> dict[Name, Cells]:
    """Format a table's comparisons, with p-values corrected for their number."""
    results = {name: result for name, result in found.items() if result}
    corrected = holm([result.p for result in results.values()])
    return dict.fromkeys(found, RESULT) | {
        name: {WINS: wins(result), DIFFERENCE: difference(result), P: p_text(p)}
        for (name, result), p in zip(results.items(), corrected, strict=True)
    }


def to_published(ours: pd.Series, peer: str) -> tuple[Versus, Cells] | None:
    """Compare accuracies with published ones; also return both means over common sets."""
    theirs = published_accuracy(peer)
    result = versus(ours, theirs)
    if result is None:
        return None
    both = pd.DataFrame({"ours": ours, "theirs": theirs}).dropna()
    return result, {side: percent(fmean(both[side])) for side in both}


def to_whole(rows: pd.DataFrame, whole_of: Mapping[str, str]) -> dict[str, Cells]:
    """Compare each run with its whole form; a whole run has no result."""
    return result_cells({
        name: versus(by_set(rows, name), by_set(rows, whole)) if name != whole else None
        for name, whole in whole_of.items()
    })  # fmt: skip


def compared(rows: pd.DataFrame, others: Sequence[str], reference: str) -> dict[str, Cells]:
    """Format ``COMPARED``, for runs that share a set and seed with the reference."""
    found: dict[str, Versus] = {}
    for other in others:
        both = paired(rows, other, reference)
        result = versus(by_set(both, other), by_set(both, reference))
        if result and other != reference:
            found[other] = result
    cells = result_cells(found)
    return {
        other: cells[other] | {"to all seeds (sets)": _to_all_seeds(rows, other, reference)}
        for other in found
    }


def _to_all_seeds(rows: pd.DataFrame, run: str, reference: str) -> str:
    """Compare with all the reference's seeds, on data sets where it has more."""
    seeds = rows.groupby(["run", "dataset"]).size()
    fewer = seeds[run].lt(seeds[reference])
    result = versus(by_set(rows, run)[fewer.index[fewer]], by_set(rows, reference))
    return f"{difference(result)} ({result.sets})" if result else NONE


def p_text(p: float | None) -> str:
    if pd.isna(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"
