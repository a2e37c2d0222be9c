"""``python -m benchmarks.readme``: put the recorded results into README.md.

The section between the two markers is made of the files in ``benchmarks/results/``, so no figure in
it is typed by hand; ``--check`` only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy, gpu_tables, readme_tables
from sparseconv.bench import goals, tables

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")
BEGIN = "<!-- results: written by `python -m benchmarks.readme`, not by hand -->\n"
END = "<!-- end of results -->"


def section(results: Path = RESULTS) -> str:
    """The measured part of the README, in Markdown.

    Raises:
        ValueError: the recorded run did not reach its end, or is of no GPU.
    """
    bench = _read(results / "bench.json")
    if not bench.get("complete", True):
        raise ValueError(f"{results / 'bench.json'} is of a run that was stopped; make bench anew")
    parts = [
        f"One run of `python -m sparseconv bench` on {_where(bench['machine'])}. Calls take turns "
        "in one process; ratios are another's time over the sparse one: medians of the pairs, with "
        "their 95 % bootstrap interval where there is room. All of it, with all suites, is in "
        "[bench.json](benchmarks/results/bench.json)."
    ]
    for text, table in (
        (
            "**Kernels.** One layer of the network on 16 series of L samples: 47 → 141 channels, "
            "K = 39, 34 459 of 258 453 weights active (13.3 %), float32. *Of peak*: of the same "
            "multiply-adds from registers, timed in turns with the kernel.",
            readme_tables.kernels(bench["rows"]),
        ),
        (
            "**Where it pays least**: of every suite the worst row. Below 1, dense is faster.",
            readme_tables.worst(bench["rows"]),
        ),
        (
            "**The whole network** (DSN, S = 80 %, batch 16; latency: 1), beside the same network "
            "with dense weights: *masked* as public codes run it, *best* under PyTorch's fastest "
            "settings, *compiled* by `torch.compile`. A training step is zero_grad, forward, loss, "
            "backward, Adam and masks; an update also prunes and grows; inference is in eval mode "
            "after `optimize_for_inference`.",
            readme_tables.whole_network(bench["network"]),
        ),
        (
            "**Where the time goes**, in ms.",
            readme_tables.where_time_goes(bench["network"]),
        ),
        ("**Goals**, each judged by the worst of its rows.", goals.table(bench)),
        (
            "**The machine's own peaks**, measured in the same run: GFLOP/s with operands in "
            "registers, with one load per multiply-add from L1 and from L2, and GB/s of a stream.",
            tables.peaks_table(bench["peaks"]),
        ),
    ):
        if table.rows:
            parts += [text, table.markdown()]
    runs = accuracy.finished(results / "accuracy.jsonl")
    parts += [
        "**Accuracy** in percent: mean over seeds ± their standard deviation (number of seeds), "
        "the recipe's constants but for the epochs; published means of the peers, their own full "
        f"training. First run: {_where(runs[0]['machine'])}; the file names each run's own.",
        accuracy.table(runs).markdown(),
        *gpu_tables.section(results / "gpu.json"),
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    head, rest = before.split(BEGIN)
    try:
        measured = section()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    after = head + BEGIN + "\n" + measured + "\n" + END + rest.split(END)[1]
    if arguments.check:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
