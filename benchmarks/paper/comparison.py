"""A sweep's rows as a table, and comparisons of classifiers over many sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, ttest_1samp, wilcoxon

PEERS = ("ResNet", "InceptionTime", "OS-CNN")
TIE = 0.005  # percentage points: equal as printed with two decimals
# What a row may lack, which is NaN then.
NUMBERS = (
    "accuracy", "params", "macs", "flops_paper", "forward_ms", "step_ms", "train_seconds",
    "predict_seconds",
)  # fmt: skip


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Make a table of a sweep's rows (``rows.read_rows``)."""
    found = pd.DataFrame(rows)
    columns = dict.fromkeys([*found, *NUMBERS])
    return found.reindex(columns=list(columns)).astype(dict.fromkeys(NUMBERS, float))


def by_set(rows: pd.DataFrame, run: str, key: str = "accuracy") -> pd.Series:
    """Return a run's means over seeds, by data set; of accuracies in percent."""
    means = rows[rows["run"] == run].groupby("dataset", sort=False)[key].mean()
    return 100 * means if key == "accuracy" else means


def paired(rows: pd.DataFrame, *runs: str, by: Sequence[str] = ("dataset", "seed")) -> pd.DataFrame:
    """Return these runs' rows for the data sets and seeds that all of them have.

    Runs with equal seeds start alike; a mean over seeds does not match a single seed.
    """
    held = rows[rows["run"].isin(runs)]
    return held[held.groupby(list(by))["run"].transform("nunique") == len(set(runs))]


def timed(rows: pd.DataFrame, *runs: str) -> pd.DataFrame:
    """Return the paired rows of networks that were measured interleaved."""
    return paired(rows.dropna(subset="step_ms"), *runs)


def on_one_machine(rows: pd.DataFrame, *runs: str) -> pd.DataFrame:
    """Return the timed rows for sets and seeds on which one machine trained all these runs.

    A machine is a CPU's name, its instruction sets and a day. In older rows, the name may lack
    the family, and refer to several generations of processors.
    """
    trained = rows.dropna(subset="train_seconds")
    names = [(its["cpu"], its["isas"], its["date"].partition(" ")[0]) for its in trained["machine"]]
    return paired(trained.assign(machine=names), *runs, by=("dataset", "seed", "machine"))


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


def versus(ours: pd.Series, theirs: pd.Series) -> Versus | None:
    """Compare two classifiers' accuracies (%) by data set; None if they share no data set."""
    difference = (ours - theirs).dropna().to_numpy()
    if not len(difference):
        return None
    p = None
    # Without the noise of means and percents, which would hide equal ranks and ties.
    ranked = np.where(np.abs(difference) < TIE, 0, difference.round(6))
    if ranked.any() and len(ranked) > 1:
        p = _wilcoxon(ranked)
    return Versus(
        wins=int((difference >= TIE).sum()),
        ties=int((np.abs(difference) < TIE).sum()),
        losses=int((difference <= -TIE).sum()),
        difference=float(difference.mean()),
        interval=interval(difference) if len(difference) > 1 else None,
        median=float(np.median(difference)),
        p=p,
    )


def _wilcoxon(differences: np.ndarray[Any, Any]) -> float:
    """Return the p-value; with few sets by counting all signs, as scipy does within seconds."""
    if len(differences) > 13:
        return float(wilcoxon(differences).pvalue)
    found = differences[differences != 0]
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


def holm(p: Sequence[float | None]) -> list[float]:
    """Correct the p-values of several tests with Holm's method; None becomes NaN."""
    known = pd.Series(p, dtype=float).dropna().sort_values()
    corrected = (known * np.arange(len(known), 0, -1)).clip(upper=1).cummax()
    return corrected.reindex(range(len(p))).tolist()
