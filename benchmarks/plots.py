"""The benchmark's plots: time against arithmetic saved, where dense wins, speed by density."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.bench.run import COMPUTATIONS
from benchmarks.bench.tables import BEST, Row, ratio
from sparseconv.report import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

AGAINST = {"conv1d": "F.conv1d", BEST: "the fastest baseline"}
LEAST_DENSITY = 0.01  # a case with fewer weights measures the packing, not a layer


class Map(NamedTuple):
    """Density against one size, with the rest fixed."""

    label: str
    sizes: tuple[int, ...]
    size: Callable[[Row], int]
    others: dict[str, Any]  # the fields that are fixed


DENSITIES = (0.13, 0.3, 0.6, 1.0)
LAYER = {"in_channels": 47, "out_channels": 141, "kernel_size": 39, "length": 128}
MAPS = (
    Map("length L (time steps)", (24, 128, 512), lambda r: r["length"],
        {k: v for k, v in LAYER.items() if k != "length"}),
    Map("channels in and out", (8, 32, 128),
        lambda r: r["in_channels"] if r["in_channels"] == r["out_channels"] else 0,
        {"kernel_size": 39, "length": 64}),
    Map("kernel size K (taps)", (3, 9, 39), lambda r: r["kernel_size"],
        {k: v for k, v in LAYER.items() if k != "kernel_size"}),
)  # fmt: skip
PLAIN = {"batch": 16, "stride": 1, "dilation": 1, "groups": 1}


def main_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of float32 layers with the most frequent instruction set."""
    rows = [
        row for row in rows
        if row["dtype"] == "float32" and row["density"] >= LEAST_DENSITY and ratio(row)
        and row["case"] != "tiny_module"  # of older documents, a layer and not its kernels
    ]  # fmt: skip
    isas = Counter(row["isa"] for row in rows)
    return [row for row in rows if row["isa"] == isas.most_common(1)[0][0]]


def saved(rows: Sequence[Row]) -> Figure:
    """Plot the time and FLOPs saved, compared with ``F.conv1d`` and with the fastest baseline.

    Above the line y = x, the sparse kernel also uses the machine better than the dense one. Below
    1, dense is faster.
    """
    rows = main_rows(rows)
    figure = figures.new_figure("", 9.0, 4.6)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    drawn = [(2.0, 1.0), (2.0, 2.0)]  # what the axes show at least
    for ax, (against, spelled) in zip((left, right), AGAINST.items(), strict=True):
        label = "" if ax is right else "time: other / sparse"
        figures.style_axes(ax, "FLOPs: dense / executed", label)
        ax.axhspan(1e-3, 1.0, color="#f4f1ee", zorder=0, linewidth=0)
        ax.plot([0.5, 128], [0.5, 128], color=figures.FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for name, colour in zip(COMPUTATIONS, figures.SERIES, strict=False):
            points = [
                (row["dense_flops"] / row["flops"], found.median) for row in rows
                if row["computation"] == name and (found := ratio(row, against))
            ]  # fmt: skip
            ax.scatter(*np.transpose(points), s=14, color=colour, edgecolor="white",
                       linewidth=0.4, zorder=3, label=name)  # fmt: skip
            drawn += points
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}x")
        ax.set_title(f"against {spelled}", fontsize=9, color=figures.INK, loc="left")
    flops, times = np.transpose(drawn)
    left.set_xlim(0.9, 1.2 * flops.max())
    left.set_ylim(0.8 * times.min(), 1.3 * times.max())
    figures.legend_above(figure, left)
    return figure


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2, 5, 10, ..., not only at powers of ten."""
    axis.get_major_locator().set_params(subs=(1, 2, 5))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def networks_by_density(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Draw networks' speeds, sparser to the right, with the break-even."""
    figure = figures.new_figure("", 9.0, 3.8)
    ax = figure.subplots()
    figures.style_axes(ax, "density: weights that are active", "times as fast as dense")
    ax.tick_params(labelsize=10)
    ax.xaxis.label.set_size(10)
    ax.yaxis.label.set_size(10)
    shares = sorted({density for points in lines.values() for density, _ in points})
    speeds = [speed for points in lines.values() for _, speed in points]
    ax.set_xscale("log")
    ax.set_yscale("log", base=2)
    ax.set_xlim(1.05 * shares[-1], 0.62 * shares[0])  # with room for the labels
    ax.set_ylim(min(0.6, 0.8 * min(speeds)), max(2.0, 1.4 * max(speeds)))
    ax.set_xticks(shares, [f"{share:.0%}" for share in shares])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ax.axhspan(1e-3, 1.0, color="#f4ece4", zorder=0, linewidth=0)
    ax.axhline(1.0, color=figures.INK, linewidth=1.2)
    ax.text(0.99, 0.96, "below the line, dense is faster", va="top", ha="right", fontsize=10,
            color=figures.FAINT, transform=ax.get_yaxis_transform())  # fmt: skip
    floor = -np.inf  # of the next label, so that none covers another
    room = 0.06 * np.log(np.divide(*reversed(ax.get_ylim())))
    ends = {name: min(points) for name, points in lines.items()}
    colours = (*figures.SERIES, "#7a5c2e", figures.INK)
    for colour, name in zip(colours, sorted(lines, key=ends.__getitem__), strict=False):
        ax.plot(*np.transpose(sorted(lines[name])), "-o", color=colour, markersize=5)
        density, speed = ends[name]
        floor = max(floor + room, np.log(speed))
        ax.annotate(f"{name}, {speed:.1f}x", (density, np.exp(floor)), (9, 0), va="center",
                    textcoords="offset points", fontsize=11, color=colour)  # fmt: skip
    return figure


def break_even(rows: Sequence[Row], threads: int) -> Figure:
    """Map the ratio of the fastest baseline's time to the sparse time."""
    rows = [row for row in main_rows(rows) if row["threads"] == threads]
    figure = figures.new_figure("", 9.0, 6.6)
    grid = figure.subplots(len(MAPS), len(COMPUTATIONS), sharey=True)
    for line, each in enumerate(MAPS):
        for ax, name in zip(grid[line], COMPUTATIONS, strict=True):
            figures.style_axes(ax, each.label, "density" if name == "fprop" else "", grid=False)
            if line == 0:
                ax.set_title(name, fontsize=9, color=figures.INK, loc="left")
            _draw(ax, map_of([row for row in rows if row["computation"] == name], each))
            ax.set_xticks(np.arange(len(each.sizes)) + 0.5, list(map(str, each.sizes)))
            ax.set_yticks(np.arange(len(DENSITIES)) + 0.5, [f"{d:.0%}" for d in DENSITIES])
    return figure


def map_of(rows: Iterable[Row], each: Map) -> NDArray[np.float64]:
    """Return mean ratios by density and size; NaN where not measured."""
    fixed = each.others | PLAIN
    cells = [
        {"density": float(f"{row['density']:.2g}"), "size": each.size(row), "ratio": ratio(row)[0]}
        for row in rows
        if fixed.items() <= row.items()
    ]
    frame = pd.DataFrame(cells, columns=["density", "size", "ratio"])
    means = frame.pivot_table("ratio", "density", "size", aggfunc=geometric_mean)
    return means.reindex(index=DENSITIES, columns=each.sizes).to_numpy()


def _draw(ax: Axes, ratios: NDArray[np.float64]) -> None:
    # Both colours down to a factor of 8: a loss of 3 % must not look like a disaster.
    ax.pcolormesh(np.log2(ratios), cmap="RdBu", vmin=-3, vmax=3, edgecolor="white", linewidth=1)
    for (y, x), value in np.ndenumerate(ratios):
        if not np.isnan(value):
            ax.text(x + 0.5, y + 0.5, f"{value:.2f}" if value < 2 else f"{value:.1f}", ha="center",
                    va="center", fontsize=8, weight="bold" if value < 1 else "normal",
                    color="#111111" if 1 / 4 < value < 4 else "#fefefe")  # fmt: skip


def captions(rows: Sequence[Row]) -> dict[str, str]:
    """Describe what the plots show, by name."""
    timed: dict[str, set[str]] = {}
    for row in main_rows(rows):
        timed.setdefault(row["case"], set()).update(row["ratio"])
    every = set().union(*timed.values())
    some = sorted({name for names in timed.values() for name in every - names})
    note = f" Not timed in every case: {', '.join(some)}." if some else ""
    return {
        "saved": "One point per case, computation and number of threads; above the dashed line, "
        f"more time was saved than arithmetic; below 1, dense is faster.{note}",
        "break_even": "The fastest baseline's time divided by the sparse time: in blue "
        f"fields, sparse is faster; in red fields, the baseline is.{note}",
    }


def write_all(document: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``time-saved.svg`` and, per number of threads, ``break-even-1.svg``."""
    rows = document["rows"]
    made = {"time-saved": saved(rows)}
    for threads in sorted({row["threads"] for row in rows}):
        made[f"break-even-{threads}"] = break_even(rows, threads)
    return [figures.save(figure, folder / f"{name}.svg") for name, figure in made.items()]
