"""Tables 1 to 4 of the DSN paper, and tables for our questions and for every data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean

import pandas as pd
from scipy.stats import hypergeom

from benchmarks.paper.archives import members, published_accuracy
from benchmarks.paper.comparison import PEERS, Versus, by_set, on_one_machine, paired, timed
from benchmarks.paper.tables.cells import (
    COMPARED,
    DIFFERENCE,
    NONE,
    WINS,
    Cells,
    P,
    compared,
    counted,
    p_text,
    percent,
    result_cells,
    sets_and_rows,
    spread,
    to_published,
)
from sparseconv.measure.table import Table, with_thousands

# The paper's wins, ties and losses of DSN over all 85 sets.
PAPER = {"ResNet": (53, 3, 29), "InceptionTime": (40, 5, 40), "OS-CNN": (49, 3, 33)}
BEHIND = 5.0  # percentage points: where DSN is behind


def against_published(rows: pd.DataFrame, run: str = "DSN", archive: str = "ucr85") -> Table:
    """Compare DSN with published networks on the archive's available sets."""
    ours = by_set(rows, run)
    ours = ours[ours.index.isin(members(archive))]
    found = {peer: both for peer in PEERS if (both := to_published(ours, peer))}
    cells = result_cells({peer: result for peer, (result, _) in found.items()})
    return Table.of(
        {
            "published": peer,
            "sets": str(result.sets),
            f"DSN {WINS}": cells[peer][WINS],
            "in the paper, scaled; p":
                _scaled_counts(PAPER[peer], result) if archive == "ucr85" else "",
            "its accuracy %": means["theirs"],
            "DSN's %": means["ours"],
            DIFFERENCE: cells[peer][DIFFERENCE],
            P: cells[peer][P],
        }
        for peer, (result, means) in found.items()
    )  # fmt: skip


def reproduced(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    """Compare others' networks, trained here, with their published results."""
    found = {name: both for name in names if (both := to_published(by_set(rows, name), name))}
    cells = result_cells({name: result for name, (result, _) in found.items()})
    lines = []
    for name, (_, means) in found.items():
        both = rows[(rows["run"] == name) & rows["dataset"].isin(published_accuracy(name).index)]
        lines.append({
            "network": name,
            "sets, runs": sets_and_rows(both),
            "ours %": means["ours"],
            "published %": means["theirs"],
            f"our {WINS}": cells[name][WINS],
            DIFFERENCE: cells[name][DIFFERENCE],
            P: cells[name][P],
        })  # fmt: skip
    return Table.of(lines)


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


def costs(rows: pd.DataFrame, names: Sequence[str], reference: str = "DSN") -> Table:
    """Compare runs' parameters, FLOPs and times with the reference's.

    Means are over the data sets and seeds of both. Times are geometric means over the sets where
    both were measured interleaved. Return no rows without a run to compare.
    """
    found = compared(rows, names, reference)
    lines = []
    for name in (name for name in names if name == reference or name in found) if found else ():
        pair = (name,) if name == reference else (name, reference)
        both, measured = paired(rows, *pair), timed(rows, *pair)
        ratios = step_ratios(measured, name, reference)
        lines.append({
            "run": name,
            "sets, runs": sets_and_rows(both[both["run"] == name]),
            "accuracy %": _joined(both, pair, "accuracy"),
            **found.get(name, COMPARED),
            "params K": _joined(both, pair, "params", 1e-3),
            "FLOPs M (paper's)": _joined(both, pair, "flops_paper", 1e-6),
            "multiply-adds M": _joined(both, pair, "macs", 1e-6),
            "prediction ms": _joined(measured, pair, "forward_ms", mean=geometric_mean),
            "step ms": _joined(measured, pair, "step_ms", mean=geometric_mean),
            f"step / {reference}'s (sets)": NONE if name == reference or ratios.empty else
                f"{geometric_mean(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}] "
                f"({len(ratios)})",
            # CPU seconds of whole trainings, of the sets that one machine trained for both.
            "training s": NONE if name == reference else _joined(
                on_one_machine(rows, *pair), pair, "train_seconds", write=with_thousands
            ),
        })  # fmt: skip
    return Table.of(lines)


def _joined(
    rows: pd.DataFrame,
    runs: Sequence[str],
    key: str,
    scale: float = 1,
    mean: Callable[[pd.Series], float] = fmean,
    write: Callable[[float], str] = percent,
) -> str:
    """Format runs' means over data sets, each counted once, with commas; ``"-"`` for no rows."""
    if rows.empty:
        return NONE
    return ", ".join(write(scale * mean(by_set(rows, run, key))) for run in runs)


def step_ratios(measured: pd.DataFrame, run: str, reference: str) -> pd.Series:
    """Return the ratios of a run's training step times to another's, by data set."""
    return by_set(measured, run, "step_ms") / by_set(measured, reference, "step_ms")


def multivariate(rows: pd.DataFrame) -> Table:
    """Make table 2: DSN and published networks on multivariate sets."""
    runs = rows["run"].unique()
    return Table.of(
        {
            "data set": name if run == "UEA" else run,
            "DSN % (seeds)": f"{100 * held['accuracy'].mean():.2f} ({len(held)})",
            **_published_cells(name),
            "params K": f"{held['params'].mean() / 1e3:.2f}",
        }
        for run in ["UEA", *(name for name in runs if name.startswith("Daily Sports"))]
        for name, held in rows[rows["run"] == run].groupby("dataset")
    )  # fmt: skip


def _published_cells(dataset: str) -> Cells:
    return {peer: percent(published_accuracy(peer).get(dataset)) for peer in PEERS}


def against(rows: pd.DataFrame, reference: str, others: Sequence[str]) -> Table:
    """Compare runs' accuracies with the reference's, on common sets and seeds."""
    lines = []
    for other, cells in compared(rows, others, reference).items():
        both = paired(rows, other, reference)
        lines.append({
            "run": other,
            "sets, runs": sets_and_rows(both[both["run"] == other]),
            "accuracy %": _joined(both, [other], "accuracy"),
            f"{reference} %": _joined(both, [reference], "accuracy"),
            **cells,
        })  # fmt: skip
    return Table.of(lines)


def each_set(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    """List some runs' univariate sets: mean, deviation, published accuracies."""
    lines = []
    for run in names:
        seconds = by_set(on_one_machine(rows, run), run, "train_seconds")
        for name, accuracy in by_set(rows, run).sort_index().items():
            gap = to_the_best(name, accuracy)
            lines.append({
                "data set": name,
                "run": run,
                "% ± sd (seeds)": _spread_of(rows, run, name),
                **_published_cells(name),
                "to the best": NONE if gap is None else f"{gap:+.2f}",
                "training s": with_thousands(seconds[name]) if name in seconds else NONE,
            })  # fmt: skip
    return Table.of(lines, ("data set", "run"))


def behind(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    """List the sets where DSN is at least ``BEHIND`` points below the best published network.

    The table names the other runs that are higher there.
    """
    sets = sorted(
        (gap, name, run)
        for run in names
        for name, ours in by_set(rows, run).items()
        if (gap := to_the_best(name, ours)) is not None and gap <= -BEHIND
    )
    lines = [
        {
            "data set": name if run == names[0] else f"{name} ({run})",
            "to the best": f"{gap:+.2f}",
            "DSN % ± sd (seeds)": _spread_of(rows, run, name),
            "higher runs": _higher(rows, run, name, names),
        }
        for gap, name, run in sets
    ]
    return Table.of(lines, tuple(lines[0]) if lines else ())


def _higher(rows: pd.DataFrame, run: str, dataset: str, but: Sequence[str]) -> str:
    """Name the runs that are better than one on a data set, best first; count the rest."""
    held = rows[rows["dataset"] == dataset]
    means = held.groupby("run")["accuracy"].mean()
    known = means.drop(list(but), errors="ignore")
    above = known[known > means[run]]
    names = above.sort_index().sort_values(ascending=False, kind="stable").index
    said = [f"{name} {_spread_of(rows, name, dataset)}" for name in names]
    if count := len(known) - len(above):
        said.append(f"{counted(count, 'other')} not")
    return "; ".join(said) or NONE


def to_the_best(dataset: str, percent: float) -> float | None:
    """Return the difference to the best published accuracy in points, or None."""
    theirs = [found[dataset] for found in map(published_accuracy, PEERS) if dataset in found]
    return round(percent - max(theirs), 2) if theirs else None


def _spread_of(rows: pd.DataFrame, run: str, dataset: str) -> str:
    held = rows[(rows["run"] == run) & (rows["dataset"] == dataset)]
    return spread((100 * held["accuracy"]).tolist())
