"""Tables 1 to 4 of the DSN paper, and tables for our questions and for every data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean, geometric_mean

from scipy.stats import hypergeom

from benchmarks.paper.archives import members
from benchmarks.paper.comparison import PEERS, Runs, Versus, published_accuracy
from benchmarks.paper.tables.cells import (
    COMPARED,
    DIFFERENCE,
    NONE,
    compared,
    counted,
    p_text,
    percent,
    result_cells,
    spread,
    to_published,
)
from sparseconv.measure.table import Table, with_thousands

# The paper's wins, ties and losses of DSN over all 85 sets.
PAPER = {"ResNet": (53, 3, 29), "InceptionTime": (40, 5, 40), "OS-CNN": (49, 3, 33)}
BEHIND = 5.0  # percentage points: where DSN is behind


def against_published(runs: Runs, run: str = "DSN", archive: str = "ucr85") -> Table:
    """Compare DSN with published networks on the archive's available sets."""
    sets = set(members(archive))
    ours = {name: value for name, value in runs.accuracy(run).items() if name in sets}
    found = {peer: both for peer in PEERS if (both := to_published(ours, peer))}
    cells = result_cells({peer: result for peer, (result, _) in found.items()})
    rows = []
    for peer, (result, means) in found.items():
        counts, *others = cells[peer]
        papers = [_scaled_counts(PAPER[peer], result)] if archive == "ucr85" else []
        rows.append((peer, str(result.sets), counts, *papers, *reversed(means), *others))
    header = (
        "published", "sets", "DSN wins/ties/losses",
        *(["in the paper, scaled; p"] if archive == "ucr85" else []), "its accuracy %", "DSN's %",
        DIFFERENCE, "p, Holm",
    )  # fmt: skip
    return Table(header, rows)


def reproduced(runs: Runs, names: Sequence[str]) -> Table:
    """Compare others' networks, trained here, with their published results."""
    found = {name: both for name in names if (both := to_published(runs.accuracy(name), name))}
    cells = result_cells({name: result for name, (result, _) in found.items()})
    rows = [
        (name, f"{result.sets}, {_counted_rows(runs, name)}", *means, *cells[name])
        for name, (result, means) in found.items()
    ]
    header = (
        "network", "sets, runs", "ours %", "published %", "our wins/ties/losses", DIFFERENCE,
        "p, Holm",
    )  # fmt: skip
    return Table(header, rows)


def _counted_rows(runs: Runs, name: str) -> int:
    published = published_accuracy(name)
    return sum(len(rows) for dataset, rows in runs.rows(name).items() if dataset in published)


def _scaled_counts(counts: Sequence[int], result: Versus) -> str:
    """Scale the paper's counts to our number of sets; add a p-value for our wins.

    The p-value assumes that our sets are a sample of the paper's, with its results. It is too
    small, because training also varies.
    """
    total = sum(counts)
    drawn = hypergeom(total, counts[0], result.sets)
    p = min(1.0, 2 * min(drawn.cdf(result.wins), drawn.sf(result.wins - 1)))
    scaled = "/".join(f"{count * result.sets / total:.1f}" for count in counts)
    return f"{scaled}; {p_text(float(p))}"


def costs(runs: Runs, names: Sequence[str], reference: str = "DSN") -> Table:
    """Compare runs' parameters, FLOPs and times with the reference's.

    Means are over the data sets and seeds of both. Times are geometric means over the sets where
    both were measured interleaved. Return no rows without a run to compare.
    """
    found = compared(runs, names, reference)
    rows = []
    for name in (name for name in names if name == reference or name in found) if found else ():
        pair = (name,) if name == reference else (name, reference)
        both, timed = runs.paired(*pair), runs.timed(*pair)
        sets, ratios = both.common(*pair), step_ratios(timed, name, reference)
        rows.append(
            (
                name,
                f"{len(sets)}, {both.count(name)}",
                _means(both, pair, sets, "accuracy", 100, 2),
                *found.get(name, [NONE] * len(COMPARED)),
                _means(both, pair, sets, "params", 1e-3, 2),
                _means(both, pair, sets, "flops_paper", 1e-6, 2),
                _means(both, pair, sets, "macs", 1e-6, 2),
                _joined(timed, pair, "forward_ms", _milliseconds),
                _joined(timed, pair, "step_ms", _milliseconds),
                f"{geometric_mean(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] "
                f"({len(ratios)})" if ratios and name != reference else NONE,
                # CPU seconds of whole trainings, of the sets that one machine trained for both.
                _joined(runs.on_one_machine(*pair), pair, "train_seconds", _seconds)
                if name != reference else NONE,
            )
        )  # fmt: skip
    header = (
        "run", "sets, runs", "accuracy %", *COMPARED, "params K", "FLOPs M (paper's)",
        "multiply-adds M", "prediction ms", "step ms", f"step / {reference}'s (sets)", "training s",
    )  # fmt: skip
    return Table(header, rows)


def _joined(
    runs: Runs, names: Sequence[str], key: str, write: Callable[[Collection[float]], str]
) -> str:
    """Format each run's mean over data sets, with commas; empty if a run has no numbers."""
    values = [runs.mean(name, key).values() for name in names]
    return ", ".join(map(write, values)) if all(values) else NONE


def _milliseconds(values: Collection[float]) -> str:
    return f"{geometric_mean(values):.2f}"


def _seconds(values: Collection[float]) -> str:
    return with_thousands(fmean(values))


def step_ratios(timed: Runs, run: str, reference: str) -> list[float]:
    """Return the ratios of a run's training step times to another's, by data set."""
    ours, theirs = timed.mean(run, "step_ms"), timed.mean(reference, "step_ms")
    return [ours[name] / theirs[name] for name in timed.common(run, reference)]


def _means(
    runs: Runs,
    names: Sequence[str],
    sets: Sequence[str],
    key: str,
    scale: float,
    digits: int,
) -> str:
    """Format runs' means over data sets, with commas, if all rows of a run have the number."""
    known = [all(key in row for s in sets for row in runs.rows(name)[s]) for name in names]
    return ", ".join(
        f"{scale * runs.over_sets(name, key, sets):.{digits}f}" if has else NONE
        for name, has in zip(names, known, strict=True)
    )


def multivariate(runs: Runs) -> Table:
    """Make table 2: DSN and published networks on multivariate sets."""
    rows = []
    for run in ["UEA", *(name for name in runs.names() if name.startswith("Daily Sports"))]:
        for name, accuracy in sorted(runs.accuracy(run).items()):
            theirs = [published_accuracy(peer).get(name) for peer in PEERS]
            held = runs.rows(run)[name]
            rows.append(
                (
                    name if run == "UEA" else run,
                    f"{accuracy:.2f} ({len(held)})",
                    *map(percent, theirs),
                    f"{fmean(row['params'] for row in held) / 1e3:.2f}",
                )
            )
    return Table(("data set", "DSN % (seeds)", *PEERS, "params K"), rows)


def against(runs: Runs, reference: str, others: Sequence[str]) -> Table:
    """Compare runs' accuracies with the reference's, on common sets and seeds."""
    rows = []
    for other, cells in compared(runs, others, reference).items():
        both = runs.paired(other, reference)
        means = [f"{fmean(both.accuracy(run).values()):.2f}" for run in (other, reference)]
        counts = f"{len(both.rows(other))}, {both.count(other)}"
        rows.append((other, counts, *means, *cells))
    return Table(("run", "sets, runs", "accuracy %", f"{reference} %", *COMPARED), rows)


def each_set(runs: Runs, names: Sequence[str]) -> Table:
    """List some runs' univariate sets: mean, deviation, published accuracies."""
    peers: Mapping[str, Mapping[str, float]] = {peer: published_accuracy(peer) for peer in PEERS}
    rows = []
    for run in names:
        seconds = runs.on_one_machine(run).mean(run, "train_seconds")
        for name, accuracy in sorted(runs.accuracy(run).items()):
            theirs = [peers[peer].get(name) for peer in PEERS]
            gap = to_the_best(name, accuracy)
            rows.append(
                (
                    name,
                    run,
                    _spread_of(runs, run, name),
                    *map(percent, theirs),
                    NONE if gap is None else f"{gap:+.2f}",
                    with_thousands(seconds[name]) if name in seconds else NONE,
                )
            )
    header = ("data set", "run", "% ± sd (seeds)", *PEERS, "to the best", "training s")
    return Table(header, rows, text_columns=2)


def behind(runs: Runs, names: Sequence[str]) -> Table:
    """List the sets where DSN is at least ``BEHIND`` points below the best published network.

    The table names the other runs that are higher there.
    """
    sets = sorted(
        (gap, name, run)
        for run in names
        for name, ours in runs.accuracy(run).items()
        if (gap := to_the_best(name, ours)) is not None and gap <= -BEHIND
    )
    rows = [
        (
            name if run == names[0] else f"{name} ({run})",
            f"{gap:+.2f}",
            _spread_of(runs, run, name),
            _higher(runs, run, name, [other for other in runs.names() if other not in names]),
        )
        for gap, name, run in sets
    ]
    header = ("data set", "to the best", "DSN % ± sd (seeds)", "higher runs")
    return Table(header, rows, text_columns=len(header))


def _higher(runs: Runs, run: str, dataset: str, others: Sequence[str]) -> str:
    """Name the runs that are better than one on a data set, best first; count the rest."""
    means = {other: runs.accuracy(other).get(dataset) for other in others}
    known = {other: mean for other, mean in means.items() if mean is not None}
    least = runs.accuracy(run)[dataset]
    above = sorted((-mean, other) for other, mean in known.items() if mean > least)
    said = [f"{other} {_spread_of(runs, other, dataset)}" for _, other in above]
    if count := len(known) - len(above):
        said.append(f"{counted(count, 'other')} not")
    return "; ".join(said) or NONE


def to_the_best(dataset: str, percent: float) -> float | None:
    """Return the difference to the best published accuracy in points, or None."""
    theirs = [found[dataset] for found in map(published_accuracy, PEERS) if dataset in found]
    return round(percent - max(theirs), 2) if theirs else None


def _spread_of(runs: Runs, run: str, dataset: str) -> str:
    return spread([100 * row["accuracy"] for row in runs.rows(run).get(dataset, ())])
