"""The plots of a benchmark report, as figures; whoever has nothing to show draws nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparseconv.bench.page.svg import GOLD, SHADE, Plot, legend, plain, threads_text, ticks
from sparseconv.report import figures
from sparseconv.report.figures import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

LOST = "#b2182b"  # a frame in it is seen on the cells, whatever the page's colours
COMPUTATIONS = {"fprop": BLUE, "dgrad": ORANGE, "wgrad": GREEN}
RIVALS = {
    "conv1d": BLUE, "conv2d_channels_last": ORANGE, "masked_dense": GREEN, "im2col_csr": PURPLE,
    "fft": GOLD,
}  # fmt: skip
SHAPE = ("batch", "in_channels", "out_channels", "kernel_size", "length", "stride", "dilation",
         "groups", "threads", "density")  # fmt: skip

# Per sweep: the row's key and its axis.
SWEEPS = {
    "density": ("density", "density (%)"),
    "length": ("length", "length L (samples)"),
    "channels": ("in_channels", "input channels"),
    "kernel": ("kernel_size", "kernel size K (taps)"),
    "batch": ("batch", "batch size N"),
}


# Patterns with fewer weights stand for no layer: their case tells what packing takes.
LEAST_DENSITY = 0.01


def main_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows in float32 on the instruction set that most of them ran on: what plots compare."""
    rows = [row for row in rows if row["dtype"] == "float32"]
    isas = Counter(row["isa"] for row in rows)
    return [row for row in rows if row["isa"] == isas.most_common(1)[0][0]]


def layers(rows: Iterable[Row]) -> list[Row]:
    """Those of ``main_rows`` whose patterns a layer may have."""
    return [row for row in main_rows(rows) if row["density"] >= LEAST_DENSITY]


def roofline(rows: Sequence[Row], peaks: Sequence[Row]) -> list[Plot]:
    """One roofline for each measured peak that has rows."""
    plots = []
    for peak in peaks:
        kind = ("threads", "isa", "dtype")
        mine = [row for row in rows if all(row[key] == peak[key] for key in kind)
                and row["share_of_roof"] is not None]  # fmt: skip
        if not mine:
            continue
        figure = figures.new_figure("", 9.0, 4.8)
        ax = figure.subplots()
        figures.style_axes(ax, "executed FLOPs per byte that must be moved", "GFLOP/s")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        intensity = [row["flops"] / row["bytes"] for row in mine]
        ridge = peak["fma_gflops"] / peak["stream_gbs"]
        low, high = min([*intensity, ridge]) / 2, max([*intensity, ridge]) * 2
        ax.plot([low, ridge], [low * peak["stream_gbs"], peak["fma_gflops"]], color=INK,
                linewidth=1.4, linestyle=(0, (8, 2, 1.5, 2)),
                label=f"memory stream, {peak['stream_gbs']:.3g} GB/s")  # fmt: skip
        for key, text, style, start in (
            ("fma_gflops", "FMA from registers", "-", ridge),
            ("l1_gflops", "a load from L1 per FMA", (0, (6, 3)), low),
            ("l2_gflops", "a load from L2 per FMA", (0, (1.5, 2)), low),
        ):
            ax.plot([start, high], [peak[key]] * 2, color=INK, linewidth=1.4, linestyle=style,
                    label=f"{text}, {peak[key]:.0f}")  # fmt: skip
        for computation, colour in COMPUTATIONS.items():
            points = [row for row in mine if row["computation"] == computation]
            if points:
                ax.scatter([row["flops"] / row["bytes"] for row in points],
                           [row["gflops"] for row in points], s=26, color=colour, zorder=3,
                           edgecolor="white", linewidth=0.6, label=computation)  # fmt: skip
        ax.set_xlim(low, high)
        heights = [*(row["gflops"] for row in mine), peak["fma_gflops"], peak["l2_gflops"]]
        ax.set_ylim(min(heights) / 1.5, max(heights) * 1.5)
        plain(ax.xaxis, ax.yaxis)
        legend(figure, ax, columns=4)
        name = f"{threads_text(peak['threads'])}, {peak['isa']}, {peak['dtype']}"
        caption = (
            f"{name}: one point per case and computation. The slanted roof is the memory's, the "
            "flat ones the core's; all of them were measured in the same run."
        )
        plots.append(Plot(figure, f"Roofline, {name}", caption))
    return plots


def speedup(rows: Sequence[Row], suite: str) -> list[Plot]:
    """Rival's time over the sparse time along one sweep, a panel per computation.

    Of a suite that varies more than one thing, the longest sweep is drawn; of several, the one
    most like all the cases.
    """
    key, label = SWEEPS[suite]
    seen = [_shape(row) for row in rows]
    typical = {k: Counter(shape[k] for shape in seen).most_common(1)[0][0] for k in SHAPE if seen}
    rows = [row for row in layers(rows) if row["suite"] == suite and row["ratio"]]
    plots = []
    for threads in sorted({row["threads"] for row in rows}):
        groups = _alike([row for row in rows if row["threads"] == threads], _varied(suite))
        mine = max(
            groups.values(), key=lambda g: (len({r[key] for r in g}), _alikeness(g[0], typical))
        )
        if len({row[key] for row in mine}) < 2:
            continue
        present = [name for name in COMPUTATIONS if any(r["computation"] == name for r in mine)]
        figure = figures.new_figure("", 3.4 * len(present) + 0.6, 3.9)
        axes = figure.subplots(1, len(present), sharey=True, squeeze=False)[0]
        for i, (ax, computation) in enumerate(zip(axes, present, strict=True)):
            figures.style_axes(ax, label, "rival's time / sparse time" if i == 0 else "")
            ax.set_title(computation, fontsize=9, color=INK, loc="left")
            _sweep(ax, [row for row in mine if row["computation"] == computation], suite)
        _faster_and_slower(axes)
        legend(figure, *axes, columns=6)
        caption = (
            f"{_constant(mine[0], _varied(suite))}: how many times as long as the sparse kernel "
            "each rival takes; bars are 95 % bootstrap intervals of the paired ratios."
        )
        if suite == "density":
            caption += " The dashed line is what FLOPs save, 1 / density."
        name = f"Speedup against {label}, {threads_text(threads)}"
        plots.append(Plot(figure, name, caption))
    return plots


def _varied(suite: str) -> set[str]:
    return {"in_channels", "out_channels"} if suite == "channels" else {SWEEPS[suite][0]}


def _shape(row: Row) -> dict[str, float]:
    """What tells two cases apart; patterns of one density differ by a few weights."""
    return {key: row[key] for key in SHAPE} | {"density": float(f"{row['density']:.2g}")}


def _alike(rows: Iterable[Row], varied: set[str]) -> dict[tuple[float, ...], list[Row]]:
    """Rows that differ in computation and in what is varied only."""
    groups: dict[tuple[float, ...], list[Row]] = {}
    for row in rows:
        same = tuple(value for key, value in _shape(row).items() if key not in varied)
        groups.setdefault(same, []).append(row)
    return groups


def _alikeness(row: Row, typical: Row) -> int:
    shape = _shape(row)
    return sum(shape[key] == value for key, value in typical.items())


def _constant(row: Row, varied: set[str]) -> str:
    """What a sweep keeps fixed, in words."""
    said = [threads_text(row["threads"])]
    for key, text in (
        ("batch", f"N = {row['batch']}"),
        ("in_channels", f"{row['in_channels']} → {row['out_channels']} channels"),
        ("kernel_size", f"K = {row['kernel_size']}"),
        ("length", f"L = {row['length']}"),
        ("density", f"density {row['density']:.0%}"),
    ):
        if key not in varied:
            said.append(text)
    return ", ".join(said)


def _sweep(ax: Axes, rows: Sequence[Row], suite: str) -> None:
    key, _ = SWEEPS[suite]
    scale = 100 if suite == "density" else 1
    ax.set_xscale("log", base=2)
    for rival, colour in RIVALS.items():
        points = sorted((scale * row[key], *row["ratio"][rival])
                        for row in rows if rival in row["ratio"])  # fmt: skip
        if not points:
            continue
        x, middle, low, high = np.array(points).T
        ax.errorbar(x, middle, (middle - low, high - middle), fmt="o", markersize=3.5, color=colour,
                    elinewidth=1, capsize=2, label=rival.replace("_", " "))  # fmt: skip
        places = np.unique(x)  # several patterns of one size share a place
        means = [np.exp(np.log(middle[x == place]).mean()) for place in places]
        ax.plot(places, means, color=colour, linewidth=1.2)
    found = sorted({scale * row[key] for row in rows})
    if suite == "density":
        ax.plot(found, [100 / x for x in found], color=FAINT, linewidth=1, linestyle=(0, (4, 3)),
                label="1 / density")  # fmt: skip
    ticks(ax.xaxis, found, least_gap=0.1)


def _faster_and_slower(axes: Iterable[Axes]) -> None:
    """A logarithmic axis of factors, on which what is below 1 is shaded."""
    axes = list(axes)
    axes[0].set_yscale("log", base=2)
    low = min(0.9, axes[0].get_ylim()[0])
    high = max(2.0, axes[0].get_ylim()[1])
    for ax in axes:
        ax.axhspan(low, 1, color=SHADE, zorder=0, linewidth=0)
        ax.axhline(1, color=FAINT, linewidth=0.8)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        ax.yaxis.set_minor_formatter(lambda *_: "")
    axes[0].set_ylim(low, high)


def break_even(rows: Sequence[Row]) -> list[Plot]:
    """Maps of the speedup over conv1d: density against length, channels or kernel size."""
    plots = []
    rows = [row for row in layers(rows) if "conv1d" in row["ratio"]]
    for suite in ("length", "channels", "kernel"):
        key, label = SWEEPS[suite]
        varied = _varied(suite) | {"density"}
        for group in _alike(rows, varied).values():
            maps = {}
            for computation in COMPUTATIONS:
                mine = [row for row in group if row["computation"] == computation]
                if (grid := _grid(mine, key)) is not None:
                    maps[computation] = grid
            if maps:
                name = f"{label}, {threads_text(group[0]['threads'])}"
                lost = any((grid.ratios < 1).any() for grid in maps.values())
                caption = f"{_constant(group[0], varied)}: time of F.conv1d / sparse time. "
                caption += (
                    "In blue fields sparse is faster, in red frames dense."
                    if lost
                    else "Sparse is faster in every field."
                )
                plots.append(
                    Plot(_maps(maps, label), f"Break-even map: density and {name}", caption)
                )
    return plots


class _Grid(NamedTuple):
    across: list[float]
    up: list[float]
    ratios: NDArray[np.float64]  # one row per density; NaN where nothing was measured


def _grid(rows: Sequence[Row], key: str) -> _Grid | None:
    cells: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        place = _shape(row)["density"], row[key]
        cells.setdefault(place, []).append(row["ratio"]["conv1d"][0])
    up, across = _crossing(set(cells))
    if min(len(across), len(up)) < 2:
        return None
    return _Grid(across, up, np.array([[_mean(cells.get((y, x))) for x in across] for y in up]))


def _crossing(places: set[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The rows and columns that make a map: each is measured at more than half of its places.

    Sweeps cross the map and leave most of their row or column empty: those with the fewest go.
    """
    while places:
        lines = [{place[i] for place in places} for i in (0, 1)]
        found = {
            (side, value): sum(place[side] == value for place in places)
            for side in (0, 1)
            for value in lines[side]
        }
        if all(2 * count > len(lines[1 - side]) for (side, _), count in found.items()):
            return sorted(lines[0]), sorted(lines[1])
        side, value = min(found, key=lambda line: (found[line], line))
        places = {place for place in places if place[side] != value}
    return [], []


def _mean(ratios: Sequence[float] | None) -> float:
    return float(np.exp(np.log(ratios).mean())) if ratios else np.nan


def _maps(maps: Mapping[str, _Grid], label: str) -> Figure:
    wide, high = (max(len(side) for side in sides) for sides in zip(
        *((grid.across, grid.up) for grid in maps.values()), strict=True))  # fmt: skip
    figure = figures.new_figure("", 1.6 + len(maps) * (0.5 + 0.42 * wide), 1.3 + 0.34 * high)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    logs = {name: np.log2(grid.ratios) for name, grid in maps.items()}
    least, most = (
        float(pick([pick(values) for values in logs.values()])) for pick in (np.nanmin, np.nanmax)
    )
    # Both colours down to a factor of 2 at least: a loss of 3 % must not look like a disaster.
    norm = _colors().TwoSlopeNorm(0, min(least, -1.0), max(most, 1.0))
    for i, (ax, (name, grid)) in enumerate(zip(axes, maps.items(), strict=True)):
        figures.style_axes(ax, label, "density (%)" if i == 0 else "", grid=False)
        ax.set_title(name, fontsize=9, color=INK, loc="left")
        image = ax.pcolormesh(logs[name], cmap="RdBu", norm=norm,
                              edgecolor="white", linewidth=1)  # fmt: skip
        for (y, x), value in np.ndenumerate(grid.ratios):
            if not np.isnan(value):
                dark = abs(norm(logs[name][y, x]) - 0.5) > 0.3
                text = f"{value:.2f}" if value < 2 else f"{value:.1f}"
                ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7.5,
                        color="#fefefe" if dark else "#111111")  # fmt: skip
        for y, x in np.argwhere(grid.ratios < 1):
            ax.plot([x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color=LOST, linewidth=1.8,
                    clip_on=False)  # fmt: skip
        ax.set_xticks(np.arange(len(grid.across)) + 0.5, [f"{x:g}" for x in grid.across])
        ax.set_yticks(np.arange(len(grid.up)) + 0.5, [f"{100 * y:g}" for y in grid.up])
    bar = figure.colorbar(image, ax=list(axes), pad=0.02)
    bar.set_ticks(np.arange(np.ceil(norm.vmin), norm.vmax).tolist())
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{2**value:g}x")
    bar.ax.tick_params(labelsize=8, colors=FAINT)
    bar.outline.set_visible(False)
    return figure


def _colors() -> Any:
    from matplotlib import colors

    return colors


def saved(rows: Sequence[Row]) -> list[Plot]:
    """Time saved against FLOPs saved, over F.conv1d."""
    plots = []
    rows = [row for row in layers(rows) if "conv1d" in row["ratio"] and row["flops"]]
    for threads in sorted({row["threads"] for row in rows}):
        points = [
            figures.SpeedupPoint(row["computation"], "", row["dense_flops"] / row["flops"],
                           row["ratio"]["conv1d"][0])
            for row in rows if row["threads"] == threads
        ]  # fmt: skip
        points.sort(key=lambda point: list(COMPUTATIONS).index(point.series))
        plots.append(
            Plot(figures.speedup_figure(points, ""),
                 f"Time saved against FLOPs saved, {threads_text(threads)}",
                 f"{threads_text(threads)}: one point per case. Above the diagonal, more time was "
                 f"saved than arithmetic. Patterns below {LEAST_DENSITY:.0%} are left out.")
        )  # fmt: skip
    return plots
