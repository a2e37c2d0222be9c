"""Networks that nobody pruned, with their layers on these kernels where that is faster.

    python -m benchmarks.unpruned

``sc.convert(unpruned=True)`` of each network for training and for inference, compared with the
network as it was, in turns; a row each in a file, of which the documentation makes a table. The
machine should do nothing else: it takes ten minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import sparseconv as sc
from benchmarks.lines import add_line, read_lines
from sparseconv.core.files import check_writable
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate
from sparseconv.pruning import WHC, prune_filters

RESULTS = Path(__file__).with_name("results") / "unpruned.jsonl"
KEYS = ("network", "n_timepoints", "batch", "threads", "training", "inference", "machine")
BATCH, LENGTHS, THREADS, ROUNDS = 16, (150, 500), (1, 2), 15


def half(model: nn.Module) -> nn.Module:
    """The network with half of its filters."""
    return prune_filters(model, torch.zeros(1, 1, LENGTHS[0]), WHC(), ratio=0.5).model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LITE": lambda: sc.models.LITE(1, 2),
    "InceptionTime": lambda: sc.models.InceptionTime(1, 2),
    "InceptionTime, half of its filters": lambda: half(sc.models.InceptionTime(1, 2)),
    "ResNet": lambda: sc.models.ResNet(1, 2),
}


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a line of another kind."""
    if missing := [key for key in KEYS if key not in row]:
        raise ValueError(f"expected {', '.join(KEYS)}, but {', '.join(missing)} is missing")


def measure(path: Path) -> None:
    """Convert and time what the file does not hold yet."""
    rows = read_lines(path, check_row)
    done = {(row["network"], row["n_timepoints"], row["threads"]) for row in rows}
    for name, length, count in tqdm(list(product(NETWORKS, LENGTHS, THREADS))):
        if (name, length, count) in done:
            continue
        torch.manual_seed(0)
        model, x = NETWORKS[name](), torch.randn(BATCH, 1, length)
        with threads(count):
            training = _compared(model.train(), x, "training")
            inference = _compared(model.eval(), x, "inference")
        row = {"network": name, "n_timepoints": length, "batch": BATCH, "threads": count}
        row |= {"training": training, "inference": inference, "machine": measurement_context()}
        add_line(path, row)


def _compared(model: nn.Module, x: torch.Tensor, which: str) -> dict[str, Any]:
    """Which layers are on these kernels now, and how many times faster a pass is."""
    converted, report = sc.convert(
        model, example_input=x, unpruned=True, backward=which == "training", rounds=ROUNDS
    )
    with torch.no_grad():  # no time is written down for something else
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
    chosen = sum(layer.sparse for layer in report.layers)
    found: dict[str, Any] = {"chosen": chosen, "layers": len(report.layers)}
    if chosen:
        found["ratio"] = [round(value, 3) for value in report.times[which].ratio]
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How many times faster each network is."""

    def cells(found: Mapping[str, Any]) -> tuple[str, str]:
        ratio = str(Estimate(*found["ratio"])) if "ratio" in found else "-"
        return f"{found['chosen']} of {found['layers']}", ratio

    header = (
        "network", "length", "threads", "layers, training", "step: torch's / these",
        "layers, inference", "prediction: torch's / these",
    )  # fmt: skip
    return Table(
        header,
        [
            (
                row["network"],
                str(row["n_timepoints"]),
                str(row["threads"]),
                *cells(row["training"]),
                *cells(row["inference"]),
            )
            for row in sorted(rows, key=lambda row: list(NETWORKS).index(row["network"]))
        ],
    )


def section(path: Path = RESULTS) -> str:
    """What was measured, in Markdown."""
    rows = read_lines(path)
    machines = sorted(
        {
            f"{m['cpu']}, {m['isa']}, torch {m['torch']}, {m['date'][:10]}"
            for m in (row["machine"] for row in rows)
        }
    )
    return (
        f"{table(rows).markdown()}\n\n{'; '.join(machines)}. Batches of {BATCH} series of one "
        "channel, float32; ratios above 1: the converted network is faster; medians with 95 % "
        f"intervals of {ROUNDS} pairs in turns.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unpruned")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where rows are added")
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.out)
        read_lines(arguments.out, check_row)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measure(arguments.out)
    print(table(read_lines(arguments.out)).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
