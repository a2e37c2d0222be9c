"""Figures 5 to 8 of the DSN paper and those of four questions, from the rows of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from benchmarks.paper.comparison import Runs, interval, published_accuracy, versus
from benchmarks.paper.tables.cells import wins
from sparseconv.models import DSN
from sparseconv.report.figures import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    draw_group_weights,
    draw_receptive_fields,
    legend_above,
    new_figure,
    style_axes,
)


def architectures(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Figure 5: critical difference diagram of depths and widths (aeon's), on common sets."""
    import matplotlib.pyplot as plt
    from aeon.visualisation import plot_critical_difference

    names = [name for name in names if name in runs]
    common = runs.common(*names) if names else []
    if len(names) < 3 or len(common) < 3:
        return None
    scores = np.array([[runs.accuracy(name)[dataset] for name in names] for dataset in common])
    figure, _ = plot_critical_difference(scores, names, correction="holm")
    figure.savefig(path, dpi=170, bbox_inches="tight")
    plt.close(figure)
    return path


def receptive_fields(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Figure 6: shares of kernels and of paths with an effective receptive field, of all sets."""
    kernels = {}
    for name in names:
        rows = [row for held in runs.rows(name).values() for row in held]
        found = [row["kernels_by_size"] for row in rows if "kernels_by_size" in row]
        if found:
            kernels[name] = [np.sum(layers, axis=0) for layers in zip(*found, strict=True)]
    return draw_receptive_fields(kernels, path) if kernels else None


def growth(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Figure 7: dynamic, fixed and gradient-grown patterns, each against OS-CNN."""
    theirs = published_accuracy("OS-CNN")
    found = {name: versus(runs.accuracy(name), theirs) for name in names if name in runs}
    compared = {name: result for name, result in found.items() if result is not None}
    if not compared:
        return None
    figure = new_figure("Accuracy against OS-CNN", 3 * len(compared), 3.4)
    all_axes = figure.subplots(1, len(compared), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, result) in zip(all_axes, compared.items(), strict=True):
        ours = runs.accuracy(name)
        pairs = np.array([(theirs[x], ours[x]) for x in ours if x in theirs])
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1)
        axes.scatter(*pairs.T, s=12, color=BLUE)
        style_axes(axes, "OS-CNN, published (%)", f"{name} (%)")
        axes.set_title(f"{name}: {wins(result)}", fontsize=9, color=INK, loc="left")
        low = pairs.min() - 2
        axes.set(xlim=(low, 101), ylim=(low, 101), aspect="equal")
    return _save(figure, path)


def active_weights(runs: Runs, path: Path, name: str) -> Path | None:
    """Figure 8: where the active weights are after training, by layer and kernel group."""
    rows = [row for held in runs.rows(name).values() for row in held if "group_weights" in row]
    if not rows:
        return None
    regions = DSN(1, 2, **rows[0]["options"]["network"]).sparse_layers()[0].regions
    layers = zip(*(row["group_weights"] for row in rows), strict=True)
    profiles = [np.mean(layer, axis=0) for layer in layers]
    return draw_group_weights(profiles, regions, path)


def time_to_accuracy(runs: Runs, path: Path, sparse: str, dense: str) -> Path | None:
    """Question (a): seconds of training until the test accuracy of the weaker one is near."""
    timed = runs.on_one_cpu(sparse, dense)
    common = timed.common(sparse, dense)
    pairs = []
    for dataset in common:
        target = NEAR * min(runs.accuracy(name)[dataset] for name in (sparse, dense)) / 100
        times = [seconds_to(timed, name, dataset, target) for name in (sparse, dense)]
        if None not in times:
            pairs.append((dataset, *times))
    if not pairs:
        return None
    pairs.sort(key=lambda pair: pair[2])
    title = f"Time to a given accuracy: {len(pairs)} of {len(common)} data sets reach it"
    figure = new_figure(title, 7, 1.4 + 0.22 * len(pairs))
    axes = figure.subplots()
    for y, (_, fast, slow) in enumerate(pairs):
        axes.plot([fast, slow], [y, y], color=FAINT, linewidth=1, zorder=1)
        axes.annotate(
            f"{slow / fast:.1f}x", (max(fast, slow), y), (6, 0), textcoords="offset points",
            va="center", fontsize=7.5, color=INK,
        )  # fmt: skip
    for index, (name, colour) in enumerate(((sparse, BLUE), (dense, ORANGE)), 1):
        axes.scatter([p[index] for p in pairs], range(len(pairs)), s=16, color=colour, label=name)
    style_axes(axes, f"seconds of training to {NEAR:.0%} of the lower final accuracy", "")
    axes.set(xscale="log", yticks=range(len(pairs)), yticklabels=[pair[0] for pair in pairs])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    axes.margins(x=0.1)
    legend_above(figure, axes)
    return _save(figure, path)


NEAR = 0.98  # of the lower of two final accuracies


def seconds_to(runs: Runs, name: str, dataset: str, target: float) -> float | None:
    """Mean over seeds of the training time until the target is seen; None if it is not by all.

    Rows without a curve do not count.
    """
    found = []
    for row in runs.rows(name)[dataset]:
        if not row["curve"]:
            continue
        points = zip(row["curve"], row["curve_seconds"], strict=True)
        reached = [seconds for (_, accuracy), seconds in points if accuracy >= target]
        if not reached:
            return None
        found.append(reached[0])
    return float(np.mean(found)) if found else None


def differences(runs: Runs, path: Path, reference: str, others: Sequence[str]) -> Path | None:
    """Questions (b) and (d): accuracy of other settings less that of a reference."""
    base = runs.accuracy(reference)
    shown = []
    for other in others:
        theirs = runs.accuracy(other)
        found = [theirs[name] - base[name] for name in theirs if name in base]
        if len(found) > 1:
            shown.append((f"{other} ({len(found)} sets)", found))
    if not shown:
        return None
    figure = new_figure(f"Accuracy less that of {reference}", 7, 1.2 + 0.45 * len(shown))
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, linewidth=1)
    for y, (_, found) in enumerate(shown):
        jitter = np.random.default_rng(y).uniform(-0.18, 0.18, len(found))
        axes.scatter(found, y + jitter, s=6, color=FAINT)
        axes.plot(interval(found), [y, y], color=BLUE, linewidth=3, solid_capstyle="butt")
        axes.scatter([np.mean(found)], [y], s=28, color=BLUE, zorder=3)
    style_axes(axes, "percentage points; mean and its 95 % bootstrap interval", "")
    axes.set(yticks=range(len(shown)), yticklabels=[name for name, _ in shown])
    axes.invert_yaxis()
    return _save(figure, path)


def accuracy_by_time(runs: Runs, path: Path, names: Sequence[str]) -> Path | None:
    """Question (c): accuracy less that of the first run, against measured training time."""
    names = [name for name in names if name in runs]
    timed = runs.on_one_cpu(*names)
    common = timed.common(*names) if names else []
    if len(names) < 2 or len(common) < 2:
        return None
    figure = new_figure(f"Accuracy less that of {names[0]}, by time of training", 7, 3.6)
    axes = figure.subplots()
    axes.axhline(0, color=FAINT, linewidth=1)
    base = runs.accuracy(names[0])
    for name in names:
        found = [runs.accuracy(name)[dataset] - base[dataset] for dataset in common]
        seconds = sum(timed.mean(name, "train_seconds")[dataset] for dataset in common)
        axes.plot([seconds, seconds], interval(found), color=BLUE, linewidth=3, alpha=0.5)
        axes.scatter([seconds], [np.mean(found)], s=24, color=BLUE, zorder=3)
        axes.annotate(
            name, (seconds, np.mean(found)), (6, 3), textcoords="offset points", fontsize=8
        )
    style_axes(axes, f"seconds of training, {len(common)} data sets", "percentage points")
    axes.margins(x=0.15)
    return _save(figure, path)


def pareto(runs: Runs, path: Path) -> Path | None:
    """Accuracy against the time of a prediction; a line joins what nothing is better than in both.

    Times are geometric means over the sets of all runs, accuracies means over seeds as well.
    """
    names = runs.names()
    common = runs.common(*names) if names else []
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
    figure = new_figure("Accuracy by time of a prediction", 9, 5)
    axes, key = figure.subplots(1, 2, width_ratios=(2, 1))
    best = [
        p for p in sorted(points.values())
        if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points.values())
    ]  # fmt: skip
    axes.plot(*zip(*best, strict=True), color=FAINT, linewidth=1, drawstyle="steps-post")
    key.axis("off")
    for number, (name, point) in enumerate(sorted(points.items(), key=lambda item: item[1]), 1):
        color = {"LITE": BLUE, "InceptionTime": ORANGE}.get(name.split(",")[0], INK)
        axes.scatter(*point, s=22, color=color, zorder=3)
        axes.annotate(
            str(number), point, (4, 3), textcoords="offset points", fontsize=8, color=color
        )
        key.text(0, 1 - number / (len(points) + 1), f"{number}  {name}", fontsize=8, color=color)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    style_axes(axes, f"ms of a batch of 16 on one thread; data sets: {len(common)}", "accuracy (%)")
    axes.margins(x=0.1, y=0.1)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=170)
    return path
