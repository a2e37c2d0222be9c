"""Tables and the picture of docs/edge.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.edge.measure import BUNDLED, USUAL
from benchmarks.edge.targets import TARGETS
from benchmarks.plots import plain_ticks
from sparseconv.edge.export import WEIGHTS
from sparseconv.measure.table import Table
from sparseconv.report.figures import BLUE, ORANGE, legend_above, new_figure, save, style_axes

Row = dict[str, Any]
NATIVE, BOARD = TARGETS[0].name, TARGETS[1].name  # where accuracy and where cost is taken from


def chosen(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if wanted.items() <= row.items()]


def section(rows: Sequence[Row], picture: Path) -> str:
    """Format what was measured on all processors as Markdown, and draw the picture."""
    usual = chosen(rows, sparsity=USUAL)
    sweep = chosen(rows, dataset=BUNDLED[0], target=BOARD)
    sweep.sort(key=lambda row: (row["weights"] != "int8", row["sparsity"]))
    draw(sweep, picture)
    caption = f"Instructions and flash of DSN for {BUNDLED[0]} on {BOARD}, trained at each sparsity"
    dates, commits = (sorted({row["machine"][key] for row in rows}) for key in ("date", "commit"))
    tools = {tool: said for row in rows for tool, said in row["machine"]["tools"].items()}
    parts = [
        accuracy_table(usual).markdown(),
        agreement(usual),
        f"Networks for {BUNDLED[0]} on {BOARD}:",
        sweep_table(sweep).markdown(),
        f"![{caption}]({picture.parent.name}/{picture.name})\n\n*{caption}*",
        f"Number of data sets whose test series were all predicted: {whole_sets(usual)}. All "
        f"processors except {NATIVE} were emulated with QEMU. {dates[-1]}; "
        f"commits {', '.join(commits)}; {'; '.join(tools.values())}.",
    ]
    return "\n\n".join(parts)


def whole_sets(usual: Sequence[Row]) -> str:
    """Count the data sets whose test series were all predicted, by processor."""
    whole = [row for row in usual if row["n_predicted"] == row["n_test"]]
    counts = Counter((row["weights"], row["target"]) for row in whole)
    names = [target.name for target in TARGETS]
    return "; ".join(
        f"{weights} {', '.join(f'{n} on {name}' for name in names if (n := counts[weights, name]))}"
        for weights in WEIGHTS
    )


def accuracy_table(usual: Sequence[Row]) -> Table:
    lines = []
    for real in chosen(usual, weights="float32", target=NATIVE):
        name = real["dataset"]
        (whole,) = chosen(usual, dataset=name, weights="int8", target=NATIVE)
        (board,) = chosen(usual, dataset=name, weights="int8", target=BOARD)
        lines.append({
            "data set": name,
            "series": f"{real['n_channels']} x {real['n_timepoints']}",
            "test": str(real["n_test"]),
            "PyTorch %": f"{100 * real['accuracy_pytorch']:.2f}",
            "float32 C %": f"{100 * real['accuracy']:.2f}",
            "int8 C %": f"{100 * whole['accuracy']:.2f}",
            **cost_cells(board),
        })  # fmt: skip
    return Table.of(lines)


def cost_table(rows: Sequence[Row]) -> Table:
    lines = (
        {
            "data set": row["dataset"],
            "sparsity": f"{row['sparsity']:.0%}",
            "weights": row["weights"],
            "processor": row["target"],
            "series": f"{row['n_predicted']} of {row['n_test']}",
            "PyTorch %": f"{100 * row['accuracy_pytorch']:.2f}",
            "C %": f"{100 * row['accuracy']:.2f}",
            **cost_cells(row),
        }
        for row in rows
    )
    return Table.of(lines, ("data set", "sparsity", "weights", "processor"))


def sweep_table(sweep: Sequence[Row]) -> Table:
    lines = (
        {
            "weights": row["weights"],
            "sparsity": f"{row['sparsity']:.0%}" if row["sparsity"] else "dense",
            **cost_cells(row),
            "in sparse layers": f"{ratio(row, True):.2f}",
            "plain loops / layer":
                f"{row['straightforward'] / row['instructions'][str(sparse_layers(row)[1])]:.2f}",
            "flash of dense": f"{row['size']['text'] / row['dense']['size']['text']:.1%}",
        }
        for row in sweep
    )  # fmt: skip
    return Table.of(lines, ("weights", "sparsity"))


def agreement(usual: Sequence[Row]) -> str:
    """Describe how the usual networks agree with PyTorch, and with each other."""
    real, whole = (chosen(usual, weights=weights, target=NATIVE) for weights in WEIGHTS)
    used = max(row["of_bound"] for row in real)
    unlike, unlike8 = (sum(row["labels_differ"] for row in some) for some in (real, whole))
    change = 100 * fmean(row["accuracy"] - row["accuracy_pytorch"] for row in whole)
    bits = [
        {row["bits"] for row in chosen(usual, dataset=one["dataset"], weights="int8")}
        for one in whole
    ]
    return (
        f"Of {sum(row['n_test'] for row in real)} test series, float32 classifies {unlike} "
        f"differently from PyTorch, and int8 {unlike8}. int8 changes the mean accuracy by "
        f"{change:+.2f} points. The float32 errors of layers are at most {used:.2f} times "
        "the bound. int8 scores are bit-identical on all processors for "
        f"{sum(len(found) == 1 for found in bits)} of the {len(bits)} data sets."
    )


def draw(sweep: Sequence[Row], path: Path) -> None:
    figure = new_figure("Cost of one prediction", 8.4, 3.5)
    axes = figure.subplots(1, 2)
    for weights, colour in (("int8", BLUE), ("float32", ORANGE)):
        found = chosen(sweep, weights=weights)
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


def cost_cells(row: Row) -> dict[str, str]:
    """Return the cells of a program's sizes and, where they were counted, of its instructions."""
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
