"""Tables and the picture of docs/edge.md, from the recorded rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.edge.measure import BUNDLED, USUAL
from benchmarks.edge.targets import TARGETS
from sparseconv.measure.table import Table, with_thousands
from sparseconv.report.figures import BLUE, ORANGE, legend_above, new_figure, style_axes

Row = dict[str, Any]
NATIVE, BOARD = TARGETS[0].name, TARGETS[1].name  # where accuracy and where cost is taken from
FLASH_GOAL, RAM_GOAL = 128_000, 64_000  # bytes


class Rows:
    """The rows by what they are of."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.all = list(rows)

    def one(self, dataset: str, sparsity: float, weights: str, target: str) -> Row | None:
        """The newest such row."""
        wanted = (dataset, sparsity, weights, target)
        for row in reversed(self.all):
            if (row["dataset"], row["sparsity"], row["weights"], row["target"]) == wanted:
                return row
        return None

    def complete(self) -> list[str]:
        """The data sets whose usual network was measured natively in both types."""
        names = dict.fromkeys(row["dataset"] for row in self.all)
        return [
            name for name in names
            if all(self.one(name, USUAL, weights, NATIVE) for weights in ("float32", "int8"))
        ]  # fmt: skip


def section(recorded: Sequence[Row], picture: Path | None) -> str:
    """Everything as Markdown; the picture is drawn where ``picture`` says."""
    rows = Rows(recorded)
    if not rows.complete():
        return "Not measured yet: `make edge` does."
    dates, commits = (
        sorted({row["machine"][key] for row in recorded}) for key in ("date", "commit")
    )
    tools = {
        tool: said for row in recorded for tool, said in row["machine"].get("tools", {}).items()
    }
    parts = [
        "DSN as published but for the training: 100 epochs at a learning rate of 0.001. "
        f"Sparsity {USUAL:.0%} of the weights inside the kernel groups' regions, which hold two "
        f"thirds of all: 13.3 % are active. Sizes and instructions of int8 on {BOARD}; *dense* is "
        "the same network with every tap stored, exported by the same generator and flags (`-O2`).",
        accuracy_table(rows).markdown(), goal_table(rows).markdown(),
    ]  # fmt: skip
    sweep = sweep_table(rows)
    if sweep.rows:
        parts += [f"Networks of {BUNDLED[0]}, {BOARD}:", sweep.markdown()]
        if picture is not None:
            draw(rows, picture)
            caption = (
                f"Instructions and flash of DSN on {BUNDLED[0]}, trained at each sparsity, {BOARD}"
            )
            drawn = f"{picture.parent.name}/{picture.name}"
            parts.append(f"```{{figure}} {drawn}\n:alt: {caption}\n\n{caption}\n```")
    parts.append(
        f"Whole test sets, of how many data sets: {whole_sets(rows)}. All but {NATIVE} emulated "
        f"by QEMU. {dates[-1]}; commits {', '.join(commits)}"
        f"{'; ' if tools else ''}{'; '.join(tools.values())}."
    )
    return "\n\n".join(parts)


def whole_sets(rows: Rows) -> str:
    """On which processors all test series were predicted."""
    found = []
    for weights in ("float32", "int8"):
        counts = {
            target.name: sum(
                row["n_predicted"] == row["n_test"]
                for name in rows.complete()
                if (row := rows.one(name, USUAL, weights, target.name))
            )
            for target in TARGETS
        }
        found.append(f"{weights} {', '.join(f'{n} on {name}' for name, n in counts.items() if n)}")
    return "; ".join(found)


def accuracy_table(rows: Rows) -> Table:
    lines = []
    for name in rows.complete():
        real, whole = (rows.one(name, USUAL, w, NATIVE) for w in ("float32", "int8"))
        board = rows.one(name, USUAL, "int8", BOARD)
        assert real is not None
        assert whole is not None
        cost = ("", "", "", "")
        if board is not None:
            count, dense = board["instructions"]["all"], board["dense"]["instructions"]["all"]
            size = board["size"]
            cost = (kilobytes(size["text"]), kilobytes(size["bss"] + size["data"]),
                    f"{count / 1e6:.1f}", f"{dense / count:.2f}")  # fmt: skip
        lines.append((
            name, f"{real['n_channels']} x {real['n_timepoints']}", str(real["n_test"]),
            *(f"{100 * x:.2f}" for x in (real["accuracy_pytorch"], real["accuracy"],
                                         whole["accuracy"])), *cost,
        ))  # fmt: skip
    header = ("data set", "series", "test", "PyTorch %", "float32 C %", "int8 C %", "flash kB",
              "RAM kB", "M instructions", "dense / sparse")  # fmt: skip
    return Table(header, lines)


def cost_table(rows: Sequence[Row]) -> Table:
    """Accuracy and cost of one run, a line for each row."""
    lines = []
    for row in rows:
        size, counts = row["size"], row.get("instructions")
        cells = ("", "")
        if counts:
            cells = f"{counts['all'] / 1e6:.1f}", f"{ratio(row):.2f}"
        lines.append((
            row["weights"], row["target"], f"{row['n_predicted']} of {row['n_test']}",
            *(f"{100 * row[key]:.2f}" for key in ("accuracy_pytorch", "accuracy")),
            kilobytes(size["text"]), kilobytes(size["bss"] + size["data"]), *cells,
        ))  # fmt: skip
    header = ("weights", "processor", "series", "PyTorch %", "C %", "flash kB", "RAM kB",
              "M instructions", "dense / sparse")  # fmt: skip
    return Table(header, lines, text_columns=2)


def sweep_table(rows: Rows) -> Table:
    lines = []
    for weights in ("int8", "float32"):
        for row in _of_board(rows, weights):
            count, size = row["instructions"], row["size"]
            plain = row.get("straightforward")
            layer = str(sparse_layers(row)[1])
            lines.append((
                weights, f"{row['sparsity']:.0%}" if row["sparsity"] else "dense",
                kilobytes(size["text"]), kilobytes(size["bss"] + size["data"]),
                f"{count['all'] / 1e6:.1f}", f"{ratio(row):.2f}", f"{ratio(row, True):.2f}",
                f"{plain / count[layer]:.2f}" if plain else "",
                f"{flash_share(row):.1%}",
            ))  # fmt: skip
    header = ("weights", "sparsity", "flash kB", "RAM kB", "M instructions", "dense / sparse",
              "in sparse layers", "plain loops / layer", "flash of dense")  # fmt: skip
    return Table(header, lines, text_columns=2)


def goal_table(rows: Rows) -> Table:
    """What was to be reached, and what was."""
    names, lines = rows.complete(), []

    def line(what: str, goal: str, measured: str, met: bool) -> None:
        lines.append((what, goal, measured, "yes" if met else "no"))

    real = [row for name in names if (row := rows.one(name, USUAL, "float32", NATIVE))]
    whole = [row for name in names if (row := rows.one(name, USUAL, "int8", NATIVE))]
    used = max(row["of_bound"] for row in real)
    line(
        f"float32, S = {USUAL:.0%}: share of the bound of a sum that is used",
        "<= 1",
        f"{used:.2f}",
        used <= 1,
    )
    differ = sum(row["labels_differ"] for row in real)
    line(f"float32: labels unlike PyTorch's, {sum(row['n_test'] for row in real)} series", "0",
         str(differ), differ == 0)  # fmt: skip
    lost = fmean(row["accuracy_pytorch"] - row["accuracy"] for row in whole)
    differ = sum(row["labels_differ"] for row in whole)
    line(f"int8: points of accuracy lost, mean of {len(whole)} data sets ({differ} series differ)",
         "<= 0.5", f"{100 * lost:.2f}", 100 * lost <= 0.5)  # fmt: skip
    bits = [
        {row["bits"] for row in rows.all
         if (row["dataset"], row["sparsity"], row["weights"]) == (name, USUAL, "int8")}
        for name in names
    ]  # fmt: skip
    same = sum(len(found) == 1 for found in bits)
    line("int8: data sets with the same bits on all processors", f"{len(bits)}", str(same),
         same == len(bits))  # fmt: skip
    for sparsity, layers, network, flash in ((0.8, 5.0, 4.0, 0.30), (0.9, None, 8.0, 0.17)):
        for weights in ("int8", "float32"):
            row = rows.one(BUNDLED[0], sparsity, weights, BOARD)
            if row is None:
                continue
            label = f"{BUNDLED[0]}, S = {sparsity:.0%}, {weights}"
            if layers is not None:
                line(f"{label}: dense / sparse in sparse layers", f">= {layers:g}",
                     f"{ratio(row, True):.2f}", ratio(row, True) >= layers)  # fmt: skip
            line(f"{label}: dense / sparse of the network", f">= {network:g}",
                 f"{ratio(row):.2f}", ratio(row) >= network)  # fmt: skip
            line(f"{label}: flash of dense", f"<= {flash:.0%}", f"{flash_share(row):.1%}",
                 flash_share(row) <= flash)  # fmt: skip
    if row := rows.one(BUNDLED[0], 0.9, "int8", BOARD):
        size = row["size"]
        for what, bytes, goal in (
            ("flash of weights and positions", row["weight_bytes"], FLASH_GOAL),
            ("RAM", size["bss"] + size["data"], RAM_GOAL),
        ):
            line(f"{BUNDLED[0]}, S = 90%, int8: {what}, bytes", f"<= {with_thousands(goal)}",
                 with_thousands(bytes), bytes <= goal)  # fmt: skip
    return Table(("figure", "goal", "measured", "met"), lines)


def draw(rows: Rows, path: Path) -> None:
    """Instructions and flash against sparsity, of the networks in ``sweep_table``."""
    figure = new_figure("Cost of one prediction", 8.4, 3.5)
    axes = figure.subplots(1, 2)
    for weights, colour in (("int8", BLUE), ("float32", ORANGE)):
        found = _of_board(rows, weights)
        x = [100 * row["sparsity"] for row in found]
        for ax, take in zip(axes, (_millions, _flash), strict=True):
            ax.plot(x, [take(row) for row in found], "o-", color=colour, label=weights)
    for ax, title in zip(axes, ("million instructions", "flash, kB"), strict=True):
        style_axes(ax, "sparsity, %", title)
        ax.set_yscale("log")
    legend_above(figure, axes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=170)


def _of_board(rows: Rows, weights: str) -> list[Row]:
    sparsities = sorted({row["sparsity"] for row in rows.all if row["dataset"] == BUNDLED[0]})
    found = [rows.one(BUNDLED[0], sparsity, weights, BOARD) for sparsity in sparsities]
    return [row for row in found if row is not None]


def _millions(row: Row) -> float:
    return float(row["instructions"]["all"]) / 1e6


def _flash(row: Row) -> float:
    return float(row["size"]["text"]) / 1e3


def sparse_layers(row: Row) -> list[int]:
    """Which layers of a DSN's program are sparse: every second, up to the mean and the head."""
    return list(range(row["n_channels"] > 1, len(row["instructions"]) - 3, 2))


def ratio(row: Row, in_sparse_layers: bool = False) -> float:
    """Instructions dense over sparse."""
    names = list(map(str, sparse_layers(row))) if in_sparse_layers else ["all"]
    dense = row["dense"]["instructions"]
    return float(sum(dense[x] for x in names) / sum(row["instructions"][x] for x in names))


def flash_share(row: Row) -> float:
    return float(row["size"]["text"] / row["dense"]["size"]["text"])


def kilobytes(bytes: int) -> str:
    return f"{bytes / 1000:.1f}"
