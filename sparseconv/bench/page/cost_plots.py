"""The plots beside the kernels' own: how cost grows, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseconv.bench.network import parts
from sparseconv.bench.page.plots import COMPUTATIONS
from sparseconv.bench.page.svg import GOLD, SKY, Plot, decades, legend, threads_text, ticks
from sparseconv.report import figures
from sparseconv.report.figures import BLUE, GREEN, INK, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = {
    "nnz": "active weights (nnz)",
    "batch": "batch size N",
    "length": "length L (samples)",
    "in_channels": "input channels",
}
# One for each of parts.ORDER.
PARTS = (BLUE, SKY, GREEN, ORANGE, GOLD, PURPLE, "#8a6fd1", "#b5c334", "#8c6d31", "#b03a5b",
         "#4f7f86", "#5b6b7a", "#b4bac1")  # fmt: skip
WAYS = {"masked_dense": "before: masked dense", "sparse": "after: sparse"}


def growth(fits: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Time and memory against each quantity on log axes, with the fitted exponents."""
    plots = []
    for quantity in dict.fromkeys(fit["quantity"] for fit in fits):
        mine = [fit for fit in fits if fit["quantity"] == quantity]
        label = QUANTITIES.get(quantity, quantity)
        figure = figures.new_figure("", 9.0, 3.6 + 0.15 * len(mine))
        time, memory = figure.subplots(1, 2)
        for ax, unit in ((time, "time (ms)"), (memory, "peak memory (MB)")):
            figures.style_axes(ax, label, unit)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
        for fit in sorted(
            mine, key=lambda f: (f["threads"], list(COMPUTATIONS).index(f["computation"]))
        ):
            x, ms, peak = np.array(fit["points"], dtype=float).T
            colour, dashed = COMPUTATIONS[fit["computation"]], fit["threads"] > 1
            name = f"{fit['computation']}, {threads_text(fit['threads'])}"
            low, high = fit["exponent_range"]
            _fitted(time, x, ms, fit["exponent"], colour, dashed,
                    f"{name}: exponent {fit['exponent']:.2f} [{low:.2f}, {high:.2f}]")  # fmt: skip
            _fitted(memory, x, peak / 1e6, fit["memory_exponent"], colour, dashed,
                    f"{name}: exponent {fit['memory_exponent']:.2f}")  # fmt: skip
        places = sorted({point[0] for fit in mine for point in fit["points"]})
        for ax in (time, memory):
            ticks(ax.xaxis, places, least_gap=0.12)
            decades(ax.yaxis)
            ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), fontsize=8, frameon=False,
                      labelcolor=INK, borderaxespad=0.2)  # fmt: skip
        plots.append(
            Plot(figure, f"How cost grows with {label}",
                 "Points are measured, lines are powers of the fitted exponent through their mean; "
                 "an exponent of 1 means that cost grows in proportion.")
        )  # fmt: skip
    return plots


def _fitted(
    ax: Axes, x: Any, y: Any, exponent: float, colour: str, dashed: bool, label: str
) -> None:
    middle = np.log(y).mean() - exponent * np.log(x).mean()
    ax.plot(x, np.exp(middle + exponent * np.log(x)), color=colour, linewidth=1.1, label=label,
            linestyle=(0, (4, 3)) if dashed else "-")  # fmt: skip
    ax.scatter(x, y, s=20, color="white" if dashed else colour, edgecolor=colour, zorder=3)


def step_parts(network: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Stacked bars of where the time goes, masked dense above sparse; a panel per length."""
    rows = [row for row in network if row.get("parts")]
    plots = []
    for model, mode, threads in dict.fromkeys((r["model"], r["mode"], r["threads"]) for r in rows):
        mine = [r for r in rows if (r["model"], r["mode"], r["threads"]) == (model, mode, threads)]
        mine.sort(key=lambda row: (row["length"], row["batch"]))
        there = dict.fromkeys(n for row in mine for w in WAYS for n in row["parts"].get(w, {}))
        # The same colour in every plot.
        colours = {
            name: PARTS[i % len(PARTS)]
            for i, name in enumerate(dict.fromkeys((*parts.ORDER, *there)))
            if name in there
        }
        figure = figures.new_figure("", 9.0, 0.9 + 1.25 * len(mine))
        for ax, row in zip(figure.subplots(len(mine), 1, squeeze=False)[:, 0], mine, strict=True):
            figures.style_axes(ax, "ms" if row is mine[-1] else "", "")
            shape = f"L = {row['length']}, batch {row['batch']}, {row['in_channels']} input channel"
            shape += "s" if row["in_channels"] > 1 else ""
            ax.set_title(shape, fontsize=9, color=INK, loc="left")
            _stack(ax, row["parts"], colours)
        legend(figure, *figure.axes, columns=4)
        plots.append(
            Plot(figure, f"Where the time goes: {model}, {mode}, {threads_text(threads)}",
                 f"{model}, {mode}, {threads_text(threads)}: time of each part, before and after.")
        )  # fmt: skip
    return plots


def _stack(ax: Axes, parts: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> None:
    ways = [way for way in WAYS if way in parts]
    longest = max(sum(parts[way].values()) for way in ways)
    for y, way in enumerate(ways):
        left = 0.0
        for name, colour in colours.items():
            width = parts[way].get(name, 0.0)
            ax.barh(y, width, left=left, color=colour, edgecolor="white", linewidth=0.6, label=name)
            left += width
        ax.annotate(f"{left:.3g} ms", (left, y), (5, 0), textcoords="offset points", va="center",
                    fontsize=8, color=INK)  # fmt: skip
    ax.set_yticks(range(len(ways)), [WAYS[way] for way in ways])
    ax.set_ylim(len(ways) - 0.4, -0.6)
    ax.set_xlim(0, 1.12 * longest)
    ax.grid(visible=False, axis="y")
