"""Tables and the picture of docs/edge.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.edge.measure import BUNDLED, SPARSITIES, USUAL
from benchmarks.edge.targets import TARGETS
from benchmarks.plots import plain_ticks
from sparseconv.edge.export import WEIGHTS
from sparseconv.measure.table import Table
from sparseconv.report.figures import BLUE, ORANGE, legend_above, new_figure, save, style_axes

Row = dict[str, Any]
NATIVE, BOARD = TARGETS[0].name, TARGETS[1].name  # where accuracy and where cost is taken from


class Rows:
    """The newest row of each data set, sparsity, weight type and processor."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.newest = {
            (row["dataset"], row["sparsity"], row["weights"], row["target"]): row for row in rows
        }
        # The data sets whose usual network was measured natively in both types.
        self.names = [
            name for name in dict.fromkeys(row["dataset"] for row in rows)
            if all((name, USUAL, weights, NATIVE) in self.newest for weights in WEIGHTS)
        ]  # fmt: skip

    def usual(self, weights: str, target: str) -> list[Row]:
        """Return the rows of the usual network, one per data set."""
        found = (self.newest.get((name, USUAL, weights, target)) for name in self.names)
        return [row for row in found if row is not None]

    def sweep(self, weights: str) -> list[Row]:
        """Return the first data set's rows on the board, by sparsity."""
        found = (self.newest.get((BUNDLED[0], sparsity, weights, BOARD)) for sparsity in SPARSITIES)
        return [row for row in found if row is not None]


def section(recorded: Sequence[Row], picture: Path | None) -> str:
    """Format everything as Markdown; draw the picture to the path ``picture``, if any."""
    rows = Rows(recorded)
    if not rows.names:
        return "Not measured yet; run `make edge`."
    dates, commits = (
        sorted({row["machine"][key] for row in recorded}) for key in ("date", "commit")
    )
    tools = {
        tool: said for row in recorded for tool, said in row["machine"].get("tools", {}).items()
    }
    parts = [
        "DSN as published, except for training: 100 epochs at a learning rate of 0.001. "
        f"{100 * USUAL:.0f} % of the weights inside the kernel groups' regions are inactive; these "
        "regions contain two thirds of all weights, so 13.3 % are active. Sizes and instruction "
        f"counts are for int8 on {BOARD}; *dense* is the same network with every tap stored, from "
        "the same generator with the same flags (`-O2`).",
        accuracy_table(rows).markdown(),
        agreement(rows),
    ]
    if rows.sweep("int8"):  # the board's emulator was there
        parts += [f"Networks for {BUNDLED[0]} on {BOARD}:", sweep_table(rows).markdown()]
    if picture is not None:
        draw(rows, picture)
        caption = (
            f"Instructions and flash of DSN for {BUNDLED[0]} on {BOARD}, trained at each sparsity"
        )
        drawn = f"{picture.parent.name}/{picture.name}"
        parts.append(f"![{caption}]({drawn})\n\n*{caption}*")
    parts.append(
        f"Number of data sets whose test series were all predicted: {whole_sets(rows)}. All "
        f"processors except {NATIVE} were emulated with QEMU. {dates[-1]}; "
        f"commits {', '.join(commits)}; {'; '.join(tools.values())}."
    )
    return "\n\n".join(parts)


def whole_sets(rows: Rows) -> str:
    """Count the data sets whose test series were all predicted, by processor."""
    found = []
    for weights in WEIGHTS:
        counts = {
            target.name: sum(
                row["n_predicted"] == row["n_test"] for row in rows.usual(weights, target.name)
            )
            for target in TARGETS
        }
        found.append(f"{weights} {', '.join(f'{n} on {name}' for name, n in counts.items() if n)}")
    return "; ".join(found)


def accuracy_table(rows: Rows) -> Table:
    """Tabulate each usual network's accuracy, and its cost on the board in int8."""
    lines = []
    for name in rows.names:
        real, whole = (rows.newest[name, USUAL, weights, NATIVE] for weights in WEIGHTS)
        lines.append({
            "data set": name,
            "series": f"{real['n_channels']} x {real['n_timepoints']}",
            "test": str(real["n_test"]),
            "PyTorch %": f"{100 * real['accuracy_pytorch']:.2f}",
            "float32 C %": f"{100 * real['accuracy']:.2f}",
            "int8 C %": f"{100 * whole['accuracy']:.2f}",
            **cost_cells(rows.newest.get((name, USUAL, "int8", BOARD))),
        })  # fmt: skip
    return Table.of(lines)


def cost_table(rows: Sequence[Row]) -> Table:
    """Tabulate accuracy and cost of one run, a line per row."""
    lines = (
        {
            "weights": row["weights"],
            "processor": row["target"],
            "series": f"{row['n_predicted']} of {row['n_test']}",
            "PyTorch %": f"{100 * row['accuracy_pytorch']:.2f}",
            "C %": f"{100 * row['accuracy']:.2f}",
            **cost_cells(row),
        }
        for row in rows
    )
    return Table.of(lines, ("weights", "processor"))


def sweep_table(rows: Rows) -> Table:
    """Tabulate the cost of the first data set's networks by sparsity."""
    lines = []
    for weights in ("int8", "float32"):
        for row in rows.sweep(weights):
            layer, plain = str(sparse_layers(row)[1]), row["straightforward"]
            lines.append({
                "weights": weights,
                "sparsity": f"{row['sparsity']:.0%}" if row["sparsity"] else "dense",
                **cost_cells(row),
                "in sparse layers": f"{ratio(row, True):.2f}",
                "plain loops / layer": f"{plain / row['instructions'][layer]:.2f}",
                "flash of dense": f"{row['size']['text'] / row['dense']['size']['text']:.1%}",
            })  # fmt: skip
    return Table.of(lines, ("weights", "sparsity"))


def agreement(rows: Rows) -> str:
    """Describe how the usual networks agree with PyTorch, and with each other."""
    real, whole = (rows.usual(weights, NATIVE) for weights in WEIGHTS)
    used = max(row["of_bound"] for row in real)
    unlike, unlike8 = (sum(row["labels_differ"] for row in some) for some in (real, whole))
    change = 100 * fmean(row["accuracy"] - row["accuracy_pytorch"] for row in whole)
    bits = [
        {row["bits"] for key, row in rows.newest.items() if key[:3] == (name, USUAL, "int8")}
        for name in rows.names
    ]
    return (
        f"Of {sum(row['n_test'] for row in real)} test series, float32 classifies {unlike} "
        f"differently from PyTorch, and int8 {unlike8}. int8 changes the mean accuracy by "
        f"{change:+.2f} points. The float32 errors of layers are at most {used:.2f} times "
        "the bound. int8 scores are bit-identical on all processors for "
        f"{sum(len(found) == 1 for found in bits)} of the {len(bits)} data sets."
    )


def draw(rows: Rows, path: Path) -> None:
    """Draw instructions and flash against sparsity, as in ``sweep_table``."""
    figure = new_figure("Cost of one prediction", 8.4, 3.5)
    axes = figure.subplots(1, 2)
    for weights, colour in (("int8", BLUE), ("float32", ORANGE)):
        found = rows.sweep(weights)
        x = [100 * row["sparsity"] for row in found]
        millions = [row["instructions"]["all"] / 1e6 for row in found]
        flash = [row["size"]["text"] / 1e3 for row in found]
        for ax, y in zip(axes, (millions, flash), strict=True):
            ax.plot(x, y, "o-", color=colour, label=weights)
    for ax, title in zip(axes, ("million instructions", "flash, kB"), strict=True):
        style_axes(ax, "sparsity, %", title)
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
    legend_above(figure, axes[0])
    save(figure, path)


def cost_cells(row: Row | None) -> dict[str, str]:
    """Return the cells of a program's sizes and, where they were counted, of its instructions."""
    if row is None:
        return {}
    size, counts = row["size"], row.get("instructions")
    cells = {
        "flash kB": f"{size['text'] / 1000:.1f}",
        "RAM kB": f"{(size['bss'] + size['data']) / 1000:.1f}",
    }
    if counts:
        cells["M instructions"] = f"{counts['all'] / 1e6:.1f}"
        cells["dense / sparse"] = f"{ratio(row):.2f}"
    return cells


def sparse_layers(row: Row) -> list[int]:
    """Find a DSN program's sparse layers: every second, up to the mean and the head."""
    return list(range(row["n_channels"] > 1, len(row["instructions"]) - 3, 2))


def ratio(row: Row, in_sparse_layers: bool = False) -> float:
    """Return the ratio of dense to sparse instructions."""
    names = list(map(str, sparse_layers(row))) if in_sparse_layers else ["all"]
    dense = row["dense"]["instructions"]
    return float(sum(dense[x] for x in names) / sum(row["instructions"][x] for x in names))
