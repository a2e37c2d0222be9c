"""Figures 5 to 8 of the DSN paper, and figures for four questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.paper.archives import published_accuracy
from benchmarks.paper.comparison import by_set, interval, on_one_machine, paired, timed, versus
from benchmarks.paper.tables.cells import counted, wins
from benchmarks.paper.tables.dsn import step_ratios
from benchmarks.paper.times import BATCH
from sparseconv.models import DSN
from sparseconv.report import figures as base

NEAR = 0.98  # of the lower of two final accuracies


def architectures(rows: pd.DataFrame, path: Path, names: Sequence[str]) -> Path | None:
    """Draw figure 5: aeon's critical difference diagram of depths and widths, on common sets.

    Its Wilcoxon tests are one-sided, each at 0.05 / (number of networks - 1).
    """
    import matplotlib.pyplot as plt
    from aeon.visualisation import plot_critical_difference

    scores = accuracies(rows, names)
    if min(scores.shape) < 3:
        return None
    figure, axes = plot_critical_difference(
        scores.to_numpy(), list(scores), correction="holm", alpha=0.05
    )
    axes.set_title(
        f"Mean ranks over {len(scores)} data sets", fontsize=9, color=base.INK, loc="left"
    )
    figure.savefig(path, dpi=170, bbox_inches="tight")
    plt.close(figure)
    return path


def available(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in set(rows["run"])]


def accuracies(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return the available runs' accuracies: a column each, by the data sets that all have."""
    names = available(rows, names)
    both = paired(rows, *names).pivot_table("accuracy", "dataset", "run", sort=False)
    return 100 * both.reindex(columns=names)


def receptive_fields(rows: pd.DataFrame, path: Path, names: Sequence[str]) -> Path | None:
    """Draw figure 6: shares of kernels and paths by effective receptive field.

    The figure uses the data sets and seeds that these runs share.
    """
    names = available(rows, names)
    both = paired(rows, *names)
    kernels = {}
    for name in names:
        held = both[both["run"] == name]
        if layers := mean_layers(held, "kernels_by_size", lambda counts: counts / counts.sum()):
            kernels[f"{name}, {counted(held['dataset'].nunique(), 'data set')}"] = layers
    return base.receptive_fields(kernels, path) if kernels else None


def mean_layers(
    rows: pd.DataFrame, key: str, change: Callable[[Any], Any] = lambda layer: layer
) -> list[Any]:
    """Return an array per layer, the mean over data sets, each counted once."""
    if key not in rows:
        return []
    by_data = rows.dropna(subset=key).groupby("dataset", sort=False)[key]
    of_sets = [
        [np.mean([change(np.array(layer)) for layer in layers], axis=0)
         for layers in zip(*held, strict=True)]
        for _, held in by_data
    ]  # fmt: skip
    return [np.mean(layer, axis=0) for layer in zip(*of_sets, strict=True)]


def growth(rows: pd.DataFrame, path: Path, names: Sequence[str]) -> Path | None:
    """Draw figure 7: dynamic, fixed and gradient-grown patterns against OS-CNN."""
    ours = accuracies(rows, names)
    theirs = published_accuracy("OS-CNN").reindex(ours.index).dropna()
    ours = ours.loc[theirs.index]
    if min(ours.shape) < 2:
        return None
    title = f"Accuracy against OS-CNN, {counted(len(ours), 'data set')}"
    figure = base.new_figure(title, 3 * len(ours.columns), 3.4)
    all_axes = figure.subplots(1, len(ours.columns), sharex=True, sharey=True, squeeze=False)[0]
    low = min(ours.min().min(), theirs.min()) - 2
    for axes, name in zip(all_axes, ours, strict=True):
        result = versus(ours[name], theirs)
        axes.plot([0, 100], [0, 100], color=base.FAINT, linewidth=1)
        axes.scatter(theirs, ours[name], s=14, color=base.BLUE, alpha=0.6, linewidth=0)
        base.style_axes(axes, "OS-CNN, published (%)", f"{name} (%)")
        title = f"wins/ties/losses {wins(result)}"
        axes.set_title(title, fontsize=9, color=base.INK, loc="left")
        axes.set(xlim=(low, 101), ylim=(low, 101), aspect="equal")
    return base.save(figure, path)


def active_weights(rows: pd.DataFrame, path: Path, name: str) -> Path | None:
    """Draw figure 8: where active weights are after training, by layer and kernel group."""
    held = rows[rows["run"] == name]
    profiles = mean_layers(held, "group_weights")
    if not profiles:
        return None
    network = held["options"].iloc[0]["network"]
    regions = DSN(1, 2, **network).sparse_layers()[0].regions
    return base.group_weights(profiles, regions, path)


def time_to_accuracy(rows: pd.DataFrame, path: Path, sparse: str, dense: str) -> Path | None:
    """Draw question (a): seconds of training until each run is near the lower final accuracy."""
    found = times_to_accuracy(rows, sparse, dense)
    if found.empty:
        return None
    found = found.sort_values(("seconds", dense), kind="stable")
    figure = base.new_figure("Time to a given accuracy", 7, 1.4 + 0.22 * len(found))
    axes = figure.subplots()
    places = range(len(found))
    for y, fast, slow in zip(places, *found["seconds"][[sparse, dense]].T.to_numpy(), strict=True):
        axes.plot([fast, slow], [y, y], color=base.FAINT, linewidth=1, zorder=1)
        if found["bound", dense].iloc[y]:  # it may have been much faster
            continue
        least = "≥ " if found["bound", sparse].iloc[y] else ""
        axes.annotate(
            f"{least}{slow / fast:.1f}x", (max(fast, slow), y), (6, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=base.INK,
        )  # fmt: skip
    for run, colour in ((sparse, base.BLUE), (dense, base.ORANGE)):
        faces = np.where(found["bound", run], "white", colour)
        axes.scatter([], [], s=16, color=colour, label=run)
        axes.scatter(
            found["seconds", run], places, s=16, facecolors=faces, edgecolors=colour, zorder=2
        )
    axes.scatter([], [], s=16, facecolors="white", edgecolors=base.INK, label="a bound")
    counts = found["seeds", sparse]
    seeds = " to ".join(map(str, sorted({counts.min(), counts.max()})))
    seeds += " seed" if counts.max() == 1 else " seeds"
    base.style_axes(
        axes, f"seconds of training to {NEAR:.0%} of the lower final accuracy; {seeds} per set", ""
    )
    axes.set(xscale="log", yticks=places, yticklabels=found.index)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    axes.margins(x=0.1)
    base.legend_above(figure, axes)
    return base.save(figure, path)


def times_to_accuracy(rows: pd.DataFrame, sparse: str, dense: str) -> pd.DataFrame:
    """Find, by data set, when each of two runs came near the lower final accuracy.

    Both runs of a pair have the same seed, machine and day, and a curve. Of these pairs, it uses
    those whose evaluations on the test set began earliest.

    Returns ``seconds`` of training, a mean over ``seeds``, and whether these are a ``bound``: for
    some seed, the first evaluation had the accuracy already, or only the one at the end. Below each
    of these columns is one per run.
    """
    both = on_one_machine(rows[rows["curve"].str.len() > 0], sparse, dense)
    pair = [both["dataset"], both["seed"]]
    begin = both["curve"].map(lambda curve: curve[0][0]).groupby(pair).transform("max")
    targets = NEAR * both["accuracy"].groupby(pair).transform("min")
    at = [reached(row, target) for (_, row), target in zip(both.iterrows(), targets, strict=True)]
    both = both.assign(**pd.DataFrame(at, both.index, ["seconds", "bound"]))
    both = both[begin == begin.groupby(both["dataset"]).transform("min")]
    means = both.groupby(["dataset", "run"]).agg(
        seconds=("seconds", "mean"), bound=("bound", "any"), seeds=("seed", "size")
    )
    return means.unstack("run")


def reached(row: Mapping[str, Any], target: float) -> tuple[float, bool]:
    """Return when an evaluation first had the accuracy, or the end; and if that is a bound."""
    points = zip(row["curve"], row["curve_seconds"], strict=True)
    for look, ((_, accuracy), seconds) in enumerate(points):
        if accuracy >= target:
            return seconds, look == 0
    return row["train_seconds"], True


def differences(
    rows: pd.DataFrame, path: Path, reference: str, others: Sequence[str]
) -> Path | None:
    """Draw questions (b) and (d): other settings' accuracy minus a reference's."""
    found = {other: less(rows, other, reference) for other in others}
    shown = {other: points for other, points in found.items() if len(points) > 1}
    if not shown:
        return None
    figure = base.new_figure(f"Accuracy against {reference}'s", 7, 1.2 + 0.45 * len(shown))
    axes = figure.subplots()
    axes.axvline(0, color=base.FAINT, linewidth=1)
    for y, points in enumerate(shown.values()):
        jitter = np.random.default_rng(y).uniform(-0.18, 0.18, len(points))
        axes.scatter(points, y + jitter, s=6, color=base.FAINT)
        axes.plot(interval(points), [y, y], color=base.BLUE, linewidth=3, solid_capstyle="butt")
        axes.scatter([points.mean()], [y], s=28, color=base.BLUE, zorder=3)
    base.style_axes(axes, f"percentage points above {reference}; mean, its 95 % interval", "")
    labels = [f"{other} ({len(points)} sets)" for other, points in shown.items()]
    axes.set(yticks=range(len(shown)), yticklabels=labels)
    axes.invert_yaxis()
    return base.save(figure, path)


def less(rows: pd.DataFrame, run: str, reference: str) -> pd.Series:
    """Return a run's accuracy minus another's, in percentage points, by data set."""
    both = paired(rows, run, reference)
    ours = by_set(both, run)
    return ours - by_set(both, reference)[ours.index]


def accuracy_by_time(rows: pd.DataFrame, path: Path, names: Sequence[str]) -> Path | None:
    """Draw question (c): accuracy minus the first run's, by the time of a step."""
    found = times_and_accuracies(rows, names)
    if len(found) < 2:
        return None
    first, *_ = found
    figure = base.new_figure("Accuracy by time", 7, 3.6)
    axes = figure.subplots()
    axes.axhline(0, color=base.FAINT, linewidth=1)
    for (name, points), color in zip(found.items(), base.SERIES, strict=False):
        ratios, gains = points["time"], points["gain"]
        time, gain = geometric_mean(ratios), gains.mean()
        axes.plot([time, time], interval(gains), color=color, linewidth=3, alpha=0.5)
        axes.plot([ratios.min(), ratios.max()], [gain, gain], color=color, linewidth=1)
        axes.scatter([time], [gain], s=24, color=color, zorder=3, label=name)
    base.legend_above(figure, axes)
    sets = len(found[first])
    base.style_axes(
        axes, f"time of a step / {first}'s; {sets} data sets", f"accuracy above {first}'s (points)"
    )
    axes.margins(x=0.15)
    return base.save(figure, path)


def times_and_accuracies(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return step times relative to the first run's, and accuracy differences, by run.

    Use the sets where all were measured interleaved; return nothing for fewer than two.
    """
    names = available(rows, names)
    measured = timed(rows, *names)
    if measured["dataset"].nunique() < 2:
        return {}
    both = paired(rows, *names)
    return {
        name: pd.DataFrame({
            "time": step_ratios(measured, name, names[0]),
            "gain": less(both, name, names[0]),
        }).dropna()
        for name in names
    }  # fmt: skip


def pareto(rows: pd.DataFrame, path: Path) -> Path | None:
    """Draw accuracy by prediction time; a line joins the Pareto front.

    Times are geometric means over common sets; accuracies are means over these sets and seeds.
    """
    common = paired(rows, *rows["run"].unique(), by=["dataset"])
    sets = common["dataset"].nunique()
    means = common.groupby(["run", "dataset"])[["forward_ms", "accuracy"]].mean()
    points = means.groupby("run").agg({"forward_ms": geometric_mean, "accuracy": "mean"}).dropna()
    points = points.sort_values(["forward_ms", "accuracy"], ascending=[True, False])
    points["accuracy"] *= 100
    if len(points) < 3:
        return None
    figure = base.new_figure("Accuracy by time of a prediction", 9, 5)
    axes, key = figure.subplots(1, 2, width_ratios=(2, 1))
    best = points[points["accuracy"] > points["accuracy"].cummax().shift(fill_value=0)]
    axes.plot(*best.T.to_numpy(), color=base.FAINT, linewidth=1, drawstyle="steps-post")
    key.axis("off")
    for number, (name, *point) in enumerate(points.itertuples(), 1):
        color = {"LITE": base.BLUE, "InceptionTime": base.ORANGE}.get(name.split(",")[0], base.INK)
        axes.scatter(*point, s=22, color=color, zorder=3)
        axes.annotate(
            str(number), point, (4, 3), textcoords="offset points", fontsize=8, color=color
        )
        key.text(0, 1 - number / (len(points) + 1), f"{number}  {name}", fontsize=8, color=color)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    base.style_axes(
        axes, f"ms per batch of {BATCH} on one thread; data sets: {sets}", "accuracy (%)"
    )
    axes.margins(x=0.1, y=0.1)
    return base.save(figure, path)
