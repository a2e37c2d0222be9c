"""What pages include of everything that was measured, from ``benchmarks/results``.

No figure on the site is typed by hand: a page that speaks of one includes a file made here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import readme, readme_tables
from benchmarks.paper import published_networks
from sparseconv.bench.page import plots, report
from sparseconv.bench.page.svg import Plot
from sparseconv.measure.table import Table

ROOT = Path(__file__).parent.parent


def write_all(folder: Path) -> None:
    """Write every file that a page includes; the same results give the same files."""
    bench = json.loads((readme.RESULTS / "bench.json").read_text())
    (folder / "extra").mkdir(parents=True, exist_ok=True)
    report.write(bench, folder / "extra" / "bench.html")
    parts: dict[str, Callable[[], str]] = {
        "measured": measured,
        "accuracy": readme.accuracies,
        "machine": lambda: _machine(bench["machine"]),
        "break_even": lambda: "\n\n".join(map(plot, plots.break_even(bench["rows"]))),
        "saved": lambda: "\n\n".join(map(plot, plots.saved(bench["rows"]))),
        "dense_wins": lambda: dense_wins(bench["rows"]).markdown(),
        "published_networks": networks,
    }
    for name, make in parts.items():
        _write(folder / f"{name}.md", make())


def measured() -> str:
    """Every table of the recorded results, with links that hold on the site."""
    return readme.section().replace(
        "[bench.json](benchmarks/results/bench.json)", "`benchmarks/results/bench.json`"
    )


def plot(drawn: Plot) -> str:
    """A plot of the benchmark report with its caption."""
    inches = drawn.figure.get_figwidth()
    return _figure(f'<div class="plot" style="--inches: {inches:.2f}">{drawn.svg()}</div>'
                   f"<figcaption>{drawn.caption}</figcaption>")  # fmt: skip


def dense_wins(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every measured row in which some dense way was faster, slowest first."""
    fastest = readme_tables.fastest_dense
    lost = [row for row in rows if row["ratio"] and fastest(row)[0] < 1]
    lost.sort(key=fastest)
    return Table(
        ("case", "", "threads", "N", "channels", "K", "L", "density", "dense / sparse", "dense by"),
        [
            (
                row["case"], row["computation"], str(row["threads"]), str(row["batch"]),
                f"{row['in_channels']} → {row['out_channels']}", str(row["kernel_size"]),
                str(row["length"]), f"{row['density']:.0%}",
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"][fastest(row)[1]]), fastest(row)[1],
            )
            for row in lost
        ],
    )  # fmt: skip


def networks() -> str:
    """Networks of other packages, pruned and converted."""
    if not published_networks.RESULTS.exists():
        return "Not measured yet: `python -m benchmarks.paper.published_networks` does."
    return published_networks.table()


def _machine(machine: Mapping[str, str]) -> str:
    return (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['isa']}, torch "
        f"{machine['torch']}, {machine['date']}, commit {machine['commit']}."
    )


def _figure(content: str) -> str:
    return f'```{{raw}} html\n<figure class="drawn">{content}</figure>\n```'


def _write(path: Path, text: str) -> None:
    text = text.rstrip() + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is kept
        path.write_text(text, encoding="utf-8")
