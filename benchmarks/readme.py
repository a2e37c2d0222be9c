"""``python -m benchmarks.readme``: put the recorded results into README.md.

The section between the two markers is made of the files in ``benchmarks/results/``, so no figure in
it is typed by hand; ``--check`` only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy
from sparseconv.bench import goals, network, tables

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")
BEGIN = "<!-- results: written by `python -m benchmarks.readme`, not by hand -->\n"
END = "<!-- end of results -->"


def section(results: Path = RESULTS) -> str:
    """The measured part of the README, in Markdown."""
    parts = []
    bench = _read(results / "bench.json")
    parts += [
        "**Kernels.** One layer of the network on 16 series: 47 → 141 channels, K = 39, 34 459 of "
        "258 453 weights active (13.3 %), float32. Rivals: their time over the sparse one; "
        "masked dense multiplies by its mask, what a rival can prepare is not timed. "
        + _how(bench["machine"]),
        tables.rows_table(
            [row for row in bench["rows"] if row["case"].startswith("dsn_evolved")]
        ).markdown(),
        "The peaks of the same machine in the same run:",
        tables.peaks_table(bench["peaks"]).markdown(),
        "**Goals.** Each is judged by the worst of its rows.",
        goals.table(bench).markdown(),
    ]
    if bench["growth"]:
        parts += [
            "**Growth.** Time and memory of the layer grow like the quantity to this power, from "
            "the smallest size to the largest.",
            tables.growth_table(bench["growth"]).markdown(),
        ]
    network_runs = _read(results / "network.json")
    parts += [
        "**A training step** of the whole univariate network (zero gradients, forward, loss, "
        "backward, Adam, masks), S = 80 %, beside the same network with masked dense weights, as "
        "public codes train it, with `F.conv1d`. A step in which the pattern changes, one in five "
        "epochs, costs more. " + _how(network_runs["machine"]),
        network.table(
            [row for row in network_runs["network"] if row["mode"] == "train"]
        ).markdown(),
    ]
    runs = accuracy.finished(results / "accuracy.jsonl")
    parts += [
        "**Accuracy** in percent: mean over seeds ± their standard deviation (number of seeds), "
        "the recipe's constants but for the epochs; published means of the peers, their own full "
        f"training. First run: {_where(runs[0]['machine'])}; the file names each run's own.",
        accuracy.table(runs).markdown(),
    ]
    return "\n\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _where(machine: Mapping[str, str]) -> str:
    isa = machine["cpp"].removeprefix("available (CPU, ").removesuffix(")")
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {isa}, torch {machine['torch']}, "
        f"{machine['date']}, commit {machine['commit']}"
    )


def _how(machine: Mapping[str, str]) -> str:
    return (
        "Medians of calls interleaved in one process; ratio: median of the pairs and its 95 % "
        f"bootstrap interval. {_where(machine)}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    head, rest = before.split(BEGIN)
    after = head + BEGIN + "\n" + section() + "\n" + END + rest.split(END)[1]
    if arguments.check:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
