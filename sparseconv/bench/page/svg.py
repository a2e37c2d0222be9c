"""Figures for a page: house style, and inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparseconv.report import figures
from sparseconv.report.figures import BLUE, FAINT, GREEN, GRID, INK, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GOLD, SKY = "#E69F00", "#56B4E9"
SHADE = "#f4f1ee"  # behind what is slower than dense

# What follows the page's colours, light or dark, instead of its own.
THEME = {INK: "ink", FAINT: "faint", GRID: "line", SHADE: "shade", "#ffffff": "card", BLUE: "blue",
         ORANGE: "orange", GREEN: "green", PURPLE: "purple", GOLD: "gold", SKY: "sky"}  # fmt: skip


class Plot(NamedTuple):
    """A figure, what it is (read aloud instead of it) and what to see in it."""

    figure: Figure
    name: str
    caption: str

    def svg(self) -> str:
        """Inline SVG in the page's colours."""
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None})
        text = file.getvalue()
        text = text[text.index("<svg") :]
        head, rest = text.split(">", 1)
        box = re.search(r'viewBox="[^"]+"', head)
        assert box is not None
        for colour, name in THEME.items():
            rest = re.sub(rf"(?<=: ){colour}\b", f"var(--{name})", rest, flags=re.IGNORECASE)
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {spaces} {box[0]} role="img" aria-label="{escape(self.name)}">{rest}'


def threads_text(count: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} thread{'s' if count > 1 else ''}"


def ticks(axis: Any, values: Sequence[float], least_gap: float) -> None:
    """Ticks at measured places, where they lie ``least_gap`` of the axis apart."""
    logs = np.log(values)
    span = max(logs[-1] - logs[0], 1e-9)
    kept: list[float] = []
    for value, at in zip(values, logs, strict=True):
        if not kept or at - np.log(kept[-1]) >= least_gap * span:
            kept.append(value)
    axis.set_major_locator(_matplotlib("ticker").FixedLocator(kept))
    axis.set_minor_locator(_matplotlib("ticker").NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:.3g}" if value < 1000 else f"{value:.0f}")


def decades(axis: Any) -> None:
    """Ticks of a logarithmic axis in plain numbers: 1, 10, 100, or 1, 2, 5 on a short one."""
    low, high = axis.get_view_interval()
    ticker = _matplotlib("ticker")
    axis.set_major_locator(ticker.LogLocator(subs=(1.0,) if high / low > 1e3 else (1.0, 2.0, 5.0)))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace(",", " "))


def plain(*axes: Any) -> None:
    """Plain numbers instead of powers."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{value:.4g}")


def _matplotlib(module: str) -> Any:
    """A module of matplotlib, imported when a figure is drawn."""
    figures.require_matplotlib()
    return importlib.import_module(f"matplotlib.{module}")


def legend(figure: Figure, *axes: Axes, columns: int) -> None:
    """One legend above, an entry per name."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside upper left", fontsize=8.5,
                  ncols=min(columns, len(entries)), frameon=False, labelcolor=INK,
                  handlelength=1.8)  # fmt: skip
