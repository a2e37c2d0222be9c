"""Cells that several tables share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TypeVar

from benchmarks.paper.comparison import Runs, Versus, holm, published_accuracy, versus

Name = TypeVar("Name")
NONE = "-"
DIFFERENCE = "difference, 95 % interval; median"
COMPARED = ("wins/ties/losses", DIFFERENCE, "p, Holm", "to all seeds (sets)")


def counted(number: int, noun: str) -> str:
    """Write a number and a noun, in the plural unless the number is 1.

    Example:
        >>> counted(1, "job"), counted(2, "job")
        ('1 job', '2 jobs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def spread(percents: Sequence[float], digits: int = 2) -> str:
    """Format mean ± standard deviation (count), ``"-"`` for none."""
    if not percents:
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


def result_cells(found: Mapping[Name, Versus | None]) -> dict[Name, tuple[str, ...]]:
    """Format wins, difference and the Holm-corrected p of a table's comparisons."""
    compared = {name: result for name, result in found.items() if result}
    corrected = holm([result.p for result in compared.values()])
    return dict.fromkeys(found, (NONE, NONE, NONE)) | {
        name: (wins(result), difference(result), p_text(p))
        for (name, result), p in zip(compared.items(), corrected, strict=True)
    }


def to_published(ours: Mapping[str, float], peer: str) -> tuple[Versus, list[str]] | None:
    """Compare accuracies with published ones; also return both means over common sets."""
    theirs = published_accuracy(peer)
    result = versus(ours, theirs)
    if result is None:
        return None
    common = [name for name in ours if name in theirs]
    means = [fmean(accuracy[name] for name in common) for accuracy in (ours, theirs)]
    return result, [f"{mean:.2f}" for mean in means]


def to_whole(runs: Runs, whole_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Compare each run with its whole form; a whole run has no result."""
    results = {
        name: versus(runs.accuracy(name), runs.accuracy(whole)) if name != whole else None
        for name, whole in whole_of.items()
    }
    return result_cells(results)


def compared(runs: Runs, others: Sequence[str], reference: str) -> dict[str, tuple[str, ...]]:
    """Format cells of ``COMPARED``, for runs that share a set and seed with the reference."""
    found: dict[str, Versus] = {}
    for other in others:
        both = runs.paired(other, reference)
        result = versus(both.accuracy(other), both.accuracy(reference))
        if result and other != reference:
            found[other] = result
    cells = result_cells(found)
    return {other: (*cells[other], _to_all_seeds(runs, other, reference)) for other in found}


def _to_all_seeds(runs: Runs, run: str, reference: str) -> str:
    """Compare with all the reference's seeds, on data sets where it has more."""
    ours, theirs = runs.rows(run), runs.rows(reference)
    means = runs.accuracy(run)
    fewer = [name for name in runs.common(run, reference) if len(theirs[name]) > len(ours[name])]
    result = versus({name: means[name] for name in fewer}, runs.accuracy(reference))
    return f"{difference(result)} ({result.sets})" if result else NONE


def p_text(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"
