"""A sweep's rows by run and data set; comparisons of classifiers over many sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.stats import rankdata, ttest_1samp, wilcoxon

from benchmarks.paper.archives import published

Row = Mapping[str, Any]
PEERS = ("ResNet", "InceptionTime", "OS-CNN")
TIE = 0.005  # percentage points: equal as printed with two decimals


class Runs:
    """The rows of a sweep (``rows.read_rows``), by run and data set."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            self._rows.setdefault(row["run"], {}).setdefault(row["dataset"], []).append(row)

    def __contains__(self, run: str) -> bool:
        return run in self._rows

    def names(self) -> list[str]:
        return list(self._rows)

    def rows(self, run: str) -> dict[str, list[Row]]:
        """Return a run's rows by data set, one per seed; none for a missing run."""
        return self._rows.get(run, {})

    def accuracy(self, run: str) -> dict[str, float]:
        """Return accuracies in percent by data set, averaged over seeds."""
        return {name: 100 * value for name, value in self.mean(run, "accuracy").items()}

    def mean(self, run: str, key: str | Callable[[Row], float]) -> dict[str, float]:
        """Return a field of the rows by data set, averaged over seeds."""
        return {name: self.over_sets(run, key, [name]) for name in self.rows(run)}

    def count(self, run: str) -> int:
        return sum(map(len, self.rows(run).values()))

    def common(self, *runs: str) -> list[str]:
        """Return the data sets that all these runs have."""
        first, *others = [self.rows(run) for run in runs] or [{}]
        return [name for name in first if all(name in other for other in others)]

    def paired(self, *runs: str) -> Runs:
        """Return these runs' rows for the data sets and seeds that all of them have.

        Runs with equal seeds start alike; a mean over seeds does not match a single seed.
        """
        by_run = [
            {(name, row["seed"]): row for name, held in self.rows(run).items() for row in held}
            for run in runs
        ]
        return Runs(
            row for found in by_run for key, row in found.items()
            if all(key in other for other in by_run)
        )  # fmt: skip

    def among(self, names: Iterable[str]) -> tuple[list[str], Runs, list[str]]:
        """Return the names of available runs, their paired rows, and their common sets."""
        made = [name for name in names if name in self]
        both = self.paired(*made)
        return made, both, both.common(*made)

    def over_sets(self, run: str, key: str | Callable[[Row], float], sets: Iterable[str]) -> float:
        """Return the mean over data sets, each counted once."""
        get = key if callable(key) else lambda row: row[key]
        return fmean(fmean(map(get, self.rows(run)[name])) for name in sets)

    def timed(self, *runs: str) -> Runs:
        """Return the rows of networks measured interleaved, on data sets where all runs were."""
        found = Runs(row for row in chain.from_iterable(map(self._all, runs)) if "step_ms" in row)
        return found.paired(*runs)

    def on_one_machine(self, *runs: str) -> Runs:
        """Return the timed rows for sets and seeds on which one machine trained all these runs.

        A machine is a CPU's name, its instruction sets and a day. In older rows, the name may lack
        the family, and refer to several generations of processors.
        """
        of_machine: dict[tuple[str, ...], list[Row]] = {}
        for row in chain.from_iterable(map(self._all, runs)):
            if row["train_seconds"] is not None:
                of_machine.setdefault(_machine(row), []).append(row)
        paired = [Runs(rows).paired(*runs) for rows in of_machine.values()]
        return Runs(row for held in paired for run in runs for row in held._all(run))

    def _all(self, run: str) -> Iterable[Row]:
        return chain.from_iterable(self.rows(run).values())


def _machine(row: Row) -> tuple[str, ...]:
    machine = row["machine"]
    return machine["cpu"], machine.get("isas", ""), machine["date"].partition(" ")[0]


def published_accuracy(network: str) -> dict[str, float]:
    return {name: float(row[network]) for name, row in published().items() if row[network]}


@dataclass(frozen=True)
class Versus:
    """One classifier against another over their common data sets."""

    wins: int  # data sets; ``TIE`` says what is a tie
    ties: int
    losses: int
    difference: float  # the mean, in percentage points
    interval: tuple[float, float] | None  # of the mean, 95 %; None of a single set
    median: float  # far from the mean where a set or two make that
    p: float | None  # Wilcoxon's, two-sided; None if nothing differs, or of a single set

    @property
    def sets(self) -> int:
        return self.wins + self.ties + self.losses


def versus(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Versus | None:
    """Compare two classifiers' accuracies (%) by data set; None if they share no data set.

    Example:
        >>> found = versus({"a": 90.0, "b": 80.0, "c": 70.0}, {"a": 89.0, "b": 80.0})
        >>> found.wins, found.ties, found.losses, found.difference
        (1, 1, 0, 0.5)
    """
    difference = np.array([ours[name] - theirs[name] for name in ours if name in theirs])
    if not len(difference):
        return None
    p = None
    # Without the noise of means and percents, which would hide equal ranks and ties.
    ranked = np.where(np.abs(difference) < TIE, 0, difference.round(6))
    if ranked.any() and len(ranked) > 1:
        p = _wilcoxon(tuple(ranked.tolist()))
    return Versus(
        wins=int((difference >= TIE).sum()),
        ties=int((np.abs(difference) < TIE).sum()),
        losses=int((difference <= -TIE).sum()),
        difference=float(difference.mean()),
        interval=interval(difference) if len(difference) > 1 else None,
        median=median(difference.tolist()),
        p=p,
    )


def _wilcoxon(differences: tuple[float, ...]) -> float:
    """Return the p-value; with few sets by counting all signs, as scipy does within seconds."""
    if len(differences) > 13:
        return float(wilcoxon(differences).pvalue)
    found = np.array(differences)[np.nonzero(differences)]
    ranks = rankdata(np.abs(found))
    sums = np.zeros(1)  # of the ranks of positive differences, for each choice of signs
    for rank in ranks:
        sums = np.concatenate([sums, sums + rank])
    ours = ranks[found > 0].sum()
    return min(1.0, 2 * float(min((sums <= ours).mean(), (sums >= ours).mean())))


def interval(values: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the 95 % interval of a mean of at least two values, using Student's t.

    A bootstrap interval is too narrow for few values: for three normal values, it contains the true
    mean in 75 % of cases; for twelve, in 91 %.
    """
    values = np.asarray(values, dtype=np.float64)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return float(low), float(high)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct the p-values of several tests with Holm's method; None stays None.

    Example:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
        >>> holm([0.6, 0.9])
        [1.0, 1.0]
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    found: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, i) in enumerate(order):
        largest = max(largest, min(1.0, value * (len(order) - rank)))
        found[i] = largest
    return found
