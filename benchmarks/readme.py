"""``python -m benchmarks.readme``: put the recorded results into README.md and its picture.

The lines between the two markers are made of ``benchmarks/results/bench.json``, so no figure in
them is typed by hand; ``--check`` only says whether they are up to date. The documentation has all
tables, by ``section``.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import readme_tables
from benchmarks.gpu import tables as gpu_tables
from benchmarks.paper import accuracy
from sparseconv.bench import goals, tables
from sparseconv.bench.page import plots

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")
PICTURE = ROOT / "docs" / "static" / "time-saved.svg"
BEGIN = "<!-- results: written by `python -m benchmarks.readme`, not by hand -->\n"
END = "<!-- end of results -->"


def short(results: Path = RESULTS) -> str:
    """The measured lines of the README, in Markdown."""
    bench = _complete(results / "bench.json")
    from_density = readme_tables.break_even(bench["rows"])
    fastest = [readme_tables.fastest_dense(row)[0] for row in bench["rows"] if row["ratio"]]
    lost = sum(ratio < 1 for ratio in fastest)
    return (
        f"{readme_tables.when_it_pays(bench).markdown()}\n\n"
        "Ratios: dense time over sparse time, the worse of one and two threads; below 1 dense is "
        "faster. *Plain dense* is `F.conv1d` for the layer, `weight * mask` for the network; "
        "*fastest dense* is the best of all dense ways that were timed. Some dense way wins in "
        f"[{lost} of {len(fastest)} measured rows](docs/when-it-pays.md): at high densities, "
        f"for this layer from {from_density:.0%} on (FFT), and in tiny calls. "
        f"{_where(bench['machine'])}.\n"
    )


def section(results: Path = RESULTS) -> str:
    """Every table of the recorded results, in Markdown.

    Raises:
        ValueError: the recorded run did not reach its end, or is of no GPU.
    """
    bench = _complete(results / "bench.json")
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
            "with dense weights: *masked*, `weight * mask` as in published code; *best*, PyTorch's "
            "fastest settings; *compiled*, `torch.compile`. A training step is zero_grad, forward, "
            "loss, backward, Adam and masks; an update also prunes and grows; inference is in "
            "eval mode after `optimize_for_inference`.",
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
    parts += gpu_tables.section(results / "gpu.json")
    return "\n\n".join(parts) + "\n"


def accuracies() -> str:
    """Accuracy of the network beside published ones, in Markdown."""
    runs = accuracy.finished(accuracy.RESULTS)
    return (
        "Accuracy in percent: mean over seeds ± their standard deviation (number of seeds), "
        "default recipe, fewer epochs; published means of the peers, their own full "
        f"training. First run: {_where(runs[0]['machine'])}; `accuracy.jsonl` names each run's "
        f"own.\n\n{accuracy.table(runs).markdown()}\n"
    )


def _complete(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    if not content.get("complete", True):
        raise ValueError(f"{path} is of a run that was stopped; run make bench again")
    return content


def picture(bench: Mapping[str, Any]) -> str:
    """Time saved against FLOPs saved on one thread, as SVG on a white ground."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sparseconv", "svg.fonttype": "none"}):
        figure = plots.saved(bench["rows"])[0].figure
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


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
        measured = short()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    after = head + BEGIN + "\n" + measured + "\n" + END + rest.split(END)[1]
    if arguments.check:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    PICTURE.write_text(picture(_complete(RESULTS / "bench.json")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
