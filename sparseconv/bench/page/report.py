"""The benchmark's document as one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparseconv.bench.page import cost_plots, plots
from sparseconv.bench.page.svg import Plot, threads_text
from sparseconv.bench.tables import peaks_table
from sparseconv.measure.table import Table, with_thousands
from sparseconv.report import figures
from sparseconv.report.page import render

SCHEMA = 1
SUITES = {
    "layer": "Layers of the Dynamic Sparse Network",
    "published": "Published configurations",
    "trained": "Patterns of a trained network",
    "length": "Series from short to long",
    "density": "From sparse to dense",
    "channels": "Channels",
    "kernel": "Kernel sizes",
    "break_even": "Cases of the break-even maps",
    "batch": "Batch sizes",
    "options": "Stride, dilation, groups, padding",
    "adversarial": "Adversarial patterns",
    "dtype": "Other dtypes",
    "isa": "Other instruction sets",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One section of the page; a table with a name can be folded away."""

    title: str
    text: str = ""
    plots: Sequence[Plot] = ()
    tables: Sequence[tuple[str, Table]] = ()


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write the report of a benchmark run as one self-contained HTML file.

    Sections for which the document has nothing are left out.

    Args:
        document: as ``python -m sparseconv bench --json`` writes it: ``schema``, ``machine``,
            ``peaks``, ``rows``, ``growth``, ``network`` and, if goals were set, ``goals``.
        path: the file; its folder is made if missing.

    Raises:
        ValueError: the document has another schema, or none.
        RuntimeError: matplotlib or jinja2 is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.html"
        >>> write({"schema": 1, "machine": {"cpu": "any"}, "rows": []}, path)
        >>> "<h2>Machine</h2>" in path.read_text()
        True
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(
            f"expected a benchmark document of schema {SCHEMA}, but its schema is "
            f"{document.get('schema')!r}; write it with this release's `python -m sparseconv bench`"
        )
    figures.require_matplotlib()
    rows, peaks = document.get("rows", []), document.get("peaks", [])
    network = document.get("network", [])
    parts = [
        _goals(document.get("goals", [])),
        Part("Roofline", plots=plots.roofline(rows, peaks)),
        Part("Time saved against FLOPs saved", plots=plots.saved(rows)),
        Part("Break-even", plots=plots.break_even(rows)),
        _network(network),
        Part("How cost grows", plots=cost_plots.growth(document.get("growth", []))),
        *(_suite(suite, title, rows) for suite, title in SUITES.items()),
        _machine(document.get("machine", {}), peaks),
    ]
    machine = document.get("machine", {})
    render(
        path,
        __package__,
        "report.html",
        title="Benchmarks of sparseconv",
        subtitle=", ".join(machine[key] for key in ("cpu", "date", "commit") if key in machine),
        highlights=_highlights(document),
        sections=[part for part in parts if part.plots or part.tables],
    )


def _highlights(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    if goals := document.get("goals", []):
        judged = [goal for goal in goals if goal["verdict"] != "stated"]
        met = sum(goal["verdict"] == "met" for goal in judged)
        found.append((f"{met} of {len(judged)}", "goals met"))
    rows = document.get("rows", [])
    layers = [r for r in plots.main_rows(rows) if r["suite"] == "layer" and "conv1d" in r["ratio"]]
    for threads in sorted({row["threads"] for row in layers}):
        medians = [row["ratio"]["conv1d"][0] for row in layers if row["threads"] == threads]
        found.append(
            (
                f"{np.median(medians):.1f}x",
                f"as fast as F.conv1d: median over the network's layers, {threads_text(threads)} "
                f"({min(medians):.1f}x to {max(medians):.1f}x)",
            )
        )
    found += _network_highlights(document.get("network", []))
    if rows:
        found.append(
            (with_thousands(len(rows)), "rows, each checked for correctness in the same run")
        )
    return found


def _network_highlights(network: Sequence[Row]) -> list[tuple[str, str]]:
    found = []
    for mode, what in (("train", "training step"), ("inference", "inference")):
        spans = {}
        for rival in ("masked_dense", "dense_best"):
            medians = [r["ratio"][rival][0] for r in network if r["mode"] == mode
                       and rival in r["ratio"]]  # fmt: skip
            if medians:
                spans[rival] = f"{min(medians):.1f}x to {max(medians):.1f}x"
        if "masked_dense" in spans:
            text = f"as fast as masked dense: the whole network's {what}"
            if "dense_best" in spans:
                text += f" ({spans['dense_best']} the best dense)"
            found.append((spans["masked_dense"], text))
    return found


def _goals(goals: Sequence[Row]) -> Part:
    if not goals:
        return Part("Goals")
    sign = {"met": "✓ ", "stated": ""}
    lines = [
        (sign.get(goal["verdict"], "✗ ") + goal["verdict"], goal["goal"], goal["measured"])
        for goal in goals
    ]
    return Part("Goals", tables=[("", Table(("", "goal", "measured"), lines, text_columns=3))])


def _suite(suite: str, title: str, rows: Sequence[Row]) -> Part:
    mine = [row for row in rows if row["suite"] == suite]
    drawn = plots.speedup(rows, suite) if suite in plots.SWEEPS else []
    named = []
    for threads in sorted({row["threads"] for row in mine}):
        table = _row_table([row for row in mine if row["threads"] == threads])
        named.append((f"{len(table.rows)} rows, {threads_text(threads)}", table))
    return Part(title, plots=drawn, tables=named)


def _row_table(rows: Sequence[Row]) -> Table:
    """One line per case and computation; columns that would say the same in every line are out."""
    rivals = [name for name in plots.RIVALS if any(name in row["ratio"] for row in rows)]
    kinds = [key for key in ("dtype", "isa") if len({row[key] for row in rows}) > 1]
    header = ["case", "computation", *kinds, "N", "channels x taps", "L", "density", "ms"]
    header += [f"{rival.replace('_', ' ')} / sparse" for rival in rivals]
    header += ["GFLOP/s", "of peak", "of roof", "drift"]
    lines = []
    for row in rows:
        line = [row["case"], row["computation"], *(row[key] for key in kinds), str(row["batch"])]
        line += [
            f"{row['in_channels']} → {row['out_channels']} x {row['kernel_size']}",
            str(row["length"]),
            f"{row['density']:.2%}",
            f"{row['ms']['sparse']:.4g}",
            *(_interval(row["ratio"].get(rival)) for rival in rivals),
            f"{row['gflops']:.1f}",
            _share(row["share_of_peak"]),
            _share(row["share_of_roof"]),
            f"{row['drift']:.2f}",
        ]
        lines.append(line)
    return Table(header, lines, text_columns=2 + len(kinds))


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _interval(ratio: Sequence[float] | None) -> str:
    return "" if ratio is None else f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def _network(network: Sequence[Row]) -> Part:
    if not network:
        return Part("The whole network")
    ways = list(dict.fromkeys(way for row in network for way in row["ms"]))
    rivals = list(dict.fromkeys(rival for row in network for rival in row["ratio"]))
    spelled = {way: way.replace("_", " ") for way in (*ways, *rivals)}
    header = [
        "network",
        "mode",
        "threads",
        "N",
        "channels",
        "L",
        *(f"{spelled[w]} ms" for w in ways),
    ]
    header += [f"{spelled[rival]} / sparse" for rival in rivals]
    header += [f"{spelled[way]} MB" for way in ways]
    header += [f"{spelled[way]} by" for way in ways]
    lines = []
    for row in network:
        line = [row["model"], row["mode"] + (f" ({row['data']})" if "data" in row else "")]
        line += [str(row[key]) for key in ("threads", "batch", "in_channels", "length")]
        line += [f"{row['ms'][way]:.4g}" if way in row["ms"] else "" for way in ways]
        line += [_interval(row["ratio"].get(rival)) for rival in rivals]
        memory = row.get("peak_bytes", {})
        line += [f"{memory[way] / 1e6:.3g}" if way in memory else "" for way in ways]
        line += [row.get("settings", {}).get(way, "") for way in ways]
        lines.append(line)
    shown = [i for i in range(len(header)) if any(line[i] for line in lines)]
    header, lines = [header[i] for i in shown], [[line[i] for i in shown] for line in lines]
    return Part(
        "The whole network",
        plots=cost_plots.step_parts(network),
        tables=[(f"{len(lines)} measurements", Table(header, lines, text_columns=2))],
    )


def _machine(machine: Mapping[str, str], peaks: Sequence[Row]) -> Part:
    tables = []
    if machine:
        facts = Table(("", "value"), [(k, str(v)) for k, v in machine.items()], text_columns=2)
        tables.append(("", facts))
    if peaks:
        tables.append(("", peaks_table(peaks)))
    return Part("Machine", tables=tables)
