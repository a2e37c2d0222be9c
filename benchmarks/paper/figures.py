"""Figures 5 to 8 of the DSN paper, and figures for four questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any, NamedTuple

import numpy as np

from benchmarks.paper.comparison import Row, Runs, interval, published_accuracy, versus
from benchmarks.paper.tables.cells import counted, wins
from benchmarks.paper.tables.dsn import step_ratios
from benchmarks.paper.times import BATCH
from sparseconv.models import DSN
from sparseconv.report import figures as base

NEAR = 0.98  # of the lower of two final accuracies


def architectures(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Draw figure 5: aeon's critical difference diagram of depths and widths, on common sets.

    Its Wilcoxon tests are one-sided, each at 0.05 / (number of networks - 1).
    """
    import matplotlib.pyplot as plt
    from aeon.visualisation import plot_critical_difference

    names, runs, common = runs.among(names)
    if len(names) < 3 or len(common) < 3:
        return None
    ours = [runs.accuracy(name) for name in names]
    scores = np.array([[accuracy[dataset] for accuracy in ours] for dataset in common])
    figure, axes = plot_critical_difference(scores, names, correction="holm", alpha=0.05)
    axes.set_title(
        f"Mean ranks over {len(common)} data sets", fontsize=9, color=base.INK, loc="left"
    )
    figure.savefig(path, dpi=170, bbox_inches="tight")
    plt.close(figure)
    return path


def receptive_fields(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Draw figure 6: shares of kernels and paths by effective receptive field.

    The figure uses the data sets and seeds that these runs share.
    """
    names, both, _ = runs.among(names)
    kernels = {
        f"{name}, {counted(len(both.rows(name)), 'data set')}": layers
        for name in names
        if (layers := _mean_layers(both, name, _shares))
    }
    return base.receptive_fields(kernels, path) if kernels else None


def _shares(row: Row) -> list[Any]:
    return [np.divide(counts, np.sum(counts)) for counts in row.get("kernels_by_size", ())]


def _mean_layers(runs: Runs, name: str, layers_of: Callable[[Row], list[Any]]) -> list[Any]:
    """Return an array per layer, the mean over data sets, each counted once."""
    of_sets = []
    for held in runs.rows(name).values():
        if found := [layers for row in held if (layers := layers_of(row))]:
            of_sets.append([np.mean(layer, axis=0) for layer in zip(*found, strict=True)])
    return [np.mean(layer, axis=0) for layer in zip(*of_sets, strict=True)]


def growth(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Draw figure 7: dynamic, fixed and gradient-grown patterns against OS-CNN."""
    theirs = published_accuracy("OS-CNN")
    compared = of_common_sets(runs, names, theirs)
    sets = next(iter(compared.values()), {}).keys()
    if len(compared) < 2 or len(sets) < 2:
        return None
    title = f"Accuracy against OS-CNN, {counted(len(sets), 'data set')}"
    figure = base.new_figure(title, 3 * len(compared), 3.4)
    all_axes = figure.subplots(1, len(compared), sharex=True, sharey=True, squeeze=False)[0]
    lowest = (min(ours[name], theirs[name]) for ours in compared.values() for name in ours)
    low = min(lowest) - 2
    for axes, (name, ours) in zip(all_axes, compared.items(), strict=True):
        result = versus(ours, theirs)
        assert result is not None
        axes.plot([0, 100], [0, 100], color=base.FAINT, linewidth=1)
        published = [theirs[dataset] for dataset in ours]
        axes.scatter(published, list(ours.values()), s=14, color=base.BLUE, alpha=0.6, linewidth=0)
        base.style_axes(axes, "OS-CNN, published (%)", f"{name} (%)")
        title = f"wins/ties/losses {wins(result)}"
        axes.set_title(title, fontsize=9, color=base.INK, loc="left")
        axes.set(xlim=(low, 101), ylim=(low, 101), aspect="equal")
    return base.save(figure, path)


def of_common_sets(
    runs: Runs, names: Sequence[str], theirs: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return accuracies by run and set, for the published sets that all runs have."""
    names, both, common = runs.among(names)
    ours = {run: both.accuracy(run) for run in names}
    sets = [name for name in common if name in theirs]
    return {run: {name: ours[run][name] for name in sets} for run in names}


def active_weights(runs: Runs, path: Path, name: str) -> Path | None:
    """Draw figure 8: where active weights are after training, by layer and kernel group."""
    profiles = _mean_layers(runs, name, lambda row: row.get("group_weights", []))
    if not profiles:
        return None
    network = next(iter(runs.rows(name).values()))[0]["options"]["network"]
    regions = DSN(1, 2, **network).sparse_layers()[0].regions
    return base.group_weights(profiles, regions, path)


def time_to_accuracy(runs: Runs, path: Path, sparse: str, dense: str) -> Path | None:
    """Draw question (a): seconds of training until each run is near the lower final accuracy."""
    by_set = times_to_accuracy(runs, sparse, dense)
    if not by_set:
        return None
    rows = sorted(by_set.items(), key=lambda item: item[1][1].seconds)
    figure = base.new_figure("Time to a given accuracy", 7, 1.4 + 0.22 * len(rows))
    axes = figure.subplots()
    for y, (_, (fast, slow)) in enumerate(rows):
        ends = fast.seconds, slow.seconds
        axes.plot(ends, [y, y], color=base.FAINT, linewidth=1, zorder=1)
        if slow.bound:  # it may have been much faster
            continue
        least = "≥ " if fast.bound else ""
        axes.annotate(
            f"{least}{slow.seconds / fast.seconds:.1f}x", (max(ends), y), (6, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=base.INK,
        )  # fmt: skip
    for index, (name, colour) in enumerate(((sparse, base.BLUE), (dense, base.ORANGE))):
        found = [pair[index] for _, pair in rows]
        faces = ["white" if one.bound else colour for one in found]
        axes.scatter([], [], s=16, color=colour, label=name)
        axes.scatter(
            [one.seconds for one in found], range(len(found)), s=16, facecolors=faces,
            edgecolors=colour, zorder=2,
        )  # fmt: skip
    axes.scatter([], [], s=16, facecolors="white", edgecolors=base.INK, label="a bound")
    counts = sorted({fast.seeds for fast, _ in by_set.values()})
    seeds = " to ".join(map(str, counts[:1] + counts[1:][-1:]))
    seeds += " seed" if counts == [1] else " seeds"
    base.style_axes(
        axes, f"seconds of training to {NEAR:.0%} of the lower final accuracy; {seeds} per set", ""
    )
    axes.set(xscale="log", yticks=range(len(rows)), yticklabels=[name for name, _ in rows])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    axes.margins(x=0.1)
    base.legend_above(figure, axes)
    return base.save(figure, path)


class Reached(NamedTuple):
    """When training runs reached an accuracy: means over seeds."""

    seconds: float  # of training
    bound: bool  # some seed had it at the first look or was only tested at the end: maybe earlier
    seeds: int = 1


def times_to_accuracy(runs: Runs, sparse: str, dense: str) -> dict[str, tuple[Reached, Reached]]:
    """Find, by data set, when each of two runs came near the lower final accuracy.

    Both runs of a pair have the same seed, machine and day, and a curve. Of these pairs, it uses
    those whose evaluations on the test set began earliest.
    """
    timed = runs.on_one_machine(sparse, dense)
    found = {}
    for dataset in timed.common(sparse, dense):
        pairs = [
            (row, other)
            for row in timed.rows(sparse)[dataset]
            for other in timed.rows(dense)[dataset]
            if row["seed"] == other["seed"] and row["curve"] and other["curve"]
        ]
        if pairs:
            begins = [max(row["curve"][0][0] for row in pair) for pair in pairs]
            pairs = [pair for pair, at in zip(pairs, begins, strict=True) if at == min(begins)]
            targets = [NEAR * min(row["accuracy"] for row in pair) for pair in pairs]
            fast, slow = (
                _mean_reached(map(reached, rows, targets)) for rows in zip(*pairs, strict=True)
            )
            found[dataset] = fast, slow
    return found


def reached(row: Row, target: float) -> Reached:
    """Return when an evaluation first reached the target, or otherwise the end of training."""
    points = zip(row["curve"], row["curve_seconds"], strict=True)
    for look, ((_, accuracy), seconds) in enumerate(points):
        if accuracy >= target:
            return Reached(seconds, look == 0)
    return Reached(row["train_seconds"], True)


def _mean_reached(found: Iterable[Reached]) -> Reached:
    seconds, bounds, seeds = zip(*found, strict=True)
    return Reached(fmean(seconds), any(bounds), sum(seeds))


def differences(runs: Runs, path: Path, reference: str, others: Sequence[str]) -> Path | None:
    """Draw questions (b) and (d): other settings' accuracy minus a reference's."""
    shown = {
        other: found
        for other in others
        if len(found := list(less(runs, other, reference).values())) > 1
    }
    if not shown:
        return None
    figure = base.new_figure(f"Accuracy against {reference}'s", 7, 1.2 + 0.45 * len(shown))
    axes = figure.subplots()
    axes.axvline(0, color=base.FAINT, linewidth=1)
    for y, found in enumerate(shown.values()):
        jitter = np.random.default_rng(y).uniform(-0.18, 0.18, len(found))
        axes.scatter(found, y + jitter, s=6, color=base.FAINT)
        axes.plot(interval(found), [y, y], color=base.BLUE, linewidth=3, solid_capstyle="butt")
        axes.scatter([np.mean(found)], [y], s=28, color=base.BLUE, zorder=3)
    base.style_axes(axes, f"percentage points above {reference}; mean, its 95 % interval", "")
    labels = [f"{other} ({len(found)} sets)" for other, found in shown.items()]
    axes.set(yticks=range(len(shown)), yticklabels=labels)
    axes.invert_yaxis()
    return base.save(figure, path)


def less(runs: Runs, run: str, reference: str) -> dict[str, float]:
    """Return a run's accuracy minus another's, in percentage points, by data set."""
    both = runs.paired(run, reference)
    ours, theirs = both.accuracy(run), both.accuracy(reference)
    return {name: ours[name] - theirs[name] for name in ours}


def accuracy_by_time(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Draw question (c): accuracy minus the first run's, by the time of a step."""
    found = times_and_accuracies(runs, names)
    if len(found) < 2:
        return None
    first, *_ = found
    figure = base.new_figure("Accuracy by time", 7, 3.6)
    axes = figure.subplots()
    axes.axhline(0, color=base.FAINT, linewidth=1)
    for (name, (ratios, gains)), color in zip(found.items(), base.SERIES, strict=False):
        time, gain = geometric_mean(ratios), np.mean(gains)
        axes.plot([time, time], interval(gains), color=color, linewidth=3, alpha=0.5)
        axes.plot([min(ratios), max(ratios)], [gain, gain], color=color, linewidth=1)
        axes.scatter([time], [gain], s=24, color=color, zorder=3, label=name)
    base.legend_above(figure, axes)
    sets = len(found[first][1])
    base.style_axes(
        axes, f"time of a step / {first}'s; {sets} data sets", f"accuracy above {first}'s (points)"
    )
    axes.margins(x=0.15)
    return base.save(figure, path)


def times_and_accuracies(
    runs: Runs, names: Sequence[str]
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return step times relative to the first run's, and accuracy differences, by run.

    Use the sets where all were measured interleaved; return nothing for fewer than two.
    """
    names, both, _ = runs.among(names)
    timed = runs.timed(*names)
    common = timed.common(*names)
    if len(common) < 2:
        return {}
    gains = {name: less(both, name, names[0]) for name in names}
    return {
        name: (step_ratios(timed, name, names[0]), [gains[name][dataset] for dataset in common])
        for name in names
    }


def pareto(runs: Runs, path: Path) -> Path | None:
    """Draw accuracy by prediction time; a line joins the Pareto front.

    Times are geometric means over common sets; accuracies are means over these sets and seeds.
    """
    names = runs.names()
    common = runs.common(*names)
    points = {}
    for name in names:
        rows = [row for dataset in common for row in runs.rows(name)[dataset]]
        timed = {row["dataset"]: row["forward_ms"] for row in rows if "forward_ms" in row}
        if rows and len(timed) == len(common):
            points[name] = (
                geometric_mean(timed.values()),
                100 * runs.over_sets(name, "accuracy", common),
            )
    if len(points) < 3:
        return None
    figure = base.new_figure("Accuracy by time of a prediction", 9, 5)
    axes, key = figure.subplots(1, 2, width_ratios=(2, 1))
    best = [
        p for p in sorted(points.values())
        if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points.values())
    ]  # fmt: skip
    axes.plot(*zip(*best, strict=True), color=base.FAINT, linewidth=1, drawstyle="steps-post")
    key.axis("off")
    for number, (name, point) in enumerate(sorted(points.items(), key=lambda item: item[1]), 1):
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
        axes, f"ms per batch of {BATCH} on one thread; data sets: {len(common)}", "accuracy (%)"
    )
    axes.margins(x=0.1, y=0.1)
    return base.save(figure, path)
