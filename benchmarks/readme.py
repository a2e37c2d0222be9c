"""``python -m benchmarks.readme``: put the recorded results into README.md, with its picture.

The lines between the two markers are made of ``benchmarks/results/bench.json``, so no figure in
them is typed by hand; ``--check`` only says whether they are up to date. The documentation has all
tables, by ``section``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.gpu import tables as gpu_tables
from sparseconv.bench import document, tables
from sparseconv.bench.cases import SUITES
from sparseconv.bench.suite import ROUNDS

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")
PICTURE = ROOT / "docs" / "static" / "time-saved.svg"
BEGIN = "<!-- results: written by `python -m benchmarks.readme`, not by hand -->\n"
END = "<!-- end of results -->"
BASELINES = (
    "`F.conv1d` and `F.conv2d` on channels-last memory (both also of series that `F.pad` padded), "
    "`torch.sparse` on im2col columns, and FFT convolution: *fft* computes the spectrum of the "
    "weights in the call, as training must, and *fft, prepared* has it prepared, as inference can"
)


def short() -> str:
    """The measured lines of the README, in Markdown."""
    bench = recorded()
    timed = sum(document.best_baseline(row) is not None for row in bench["rows"])
    lost = tables.lost(bench["rows"])
    full = sum(row["density"] > 0.5 for row in lost)
    few = [row["kernel_size"] for row in lost if row["density"] < 0.15]
    sizes = ", ".join(map(str, sorted(set(few))))
    return (
        f"{tables.when_it_pays(bench).markdown()}\n\n"
        "- Ratios: dense time over sparse time, the worse of one and two threads; below 1 sparse "
        "is slower. fprop computes the output, dgrad the gradient of the input, wgrad that of the "
        "weights. *Layer*: 47 to 141 channels, 39 taps, the pattern of a trained DSN.\n"
        "- *Plain dense*: `F.conv1d` for the layer, `weight * mask` for the network. *Fastest*: "
        f"for the layer, the best of {BASELINES}; for the network, the best of PyTorch's "
        "settings.\n"
        "- *Worst row*: a row of its own for each of the two figures. A dense way wins in "
        f"[{len(lost)} of {timed} measured rows](docs/when-it-pays.md) by the median, {full} of "
        "them with more than half of the weights active"
        f"{f', {len(few)} with less than 15 % (kernels of {sizes} taps)' if few else ''}.\n"
        f"- {where(bench['machine'])}.\n"
    )


def section() -> str:
    """Every table of the recorded results, in Markdown."""
    bench = recorded()
    parts = [
        f"One run of `python -m sparseconv bench` on {where(bench['machine'])}. Calls take turns "
        "in one process; ratios are another's time over the sparse one: medians of the pairs, with "
        "their 95 % interval where there is room. All of it, with all suites, is in "
        "`benchmarks/results/bench.json`."
    ]
    for text, table in (
        (
            "**Kernels.** One layer of the network on 16 series of L samples: 47 → 141 channels, "
            "K = 39, 34 459 of 258 453 weights active (13.3 %), float32. *Of peak*: of the same "
            "multiply-adds from registers, timed in turns with the kernel. Beside it: "
            f"{BASELINES}. The gradient of the weights needs no such spectrum.",
            tables.kernels(bench["rows"]),
        ),
        (
            "**Where it pays least**: of every suite the worst row. Below 1, sparse is slower.",
            tables.worst(bench["rows"]),
        ),
        (
            "**The whole network** (DSN, S = 80 %, N series of C channels and L samples), beside "
            "the same network with dense weights: *masked*, `weight * mask` as in published code; "
            "*settings*, with those of PyTorch's that were the fastest before these calls; "
            "*compiled*, `torch.compile`. A training step is zero_grad, forward, "
            "loss, backward, Adam and masks; an update also prunes and grows; inference is in "
            "eval mode after `optimize_for_inference`.",
            tables.network(bench["network"]),
        ),
    ):
        parts += [text, table.markdown()]
    return "\n\n".join([*parts, *gpu_tables.section(RESULTS / "gpu.json")]) + "\n"


def recorded(path: Path = RESULTS / "bench.json") -> dict[str, Any]:
    """Read the recorded benchmark.

    Raises:
        ValueError: it did not reach its end, or did not measure everything.
    """
    bench = document.read(path)
    wanted = set(SUITES) - {"compiled"}  # no page shows these rows
    # Older documents lack these keys, and are whole.
    whole = bench.get("complete", True) and bench.get("rounds", ROUNDS) >= ROUNDS
    if not whole or not wanted <= set(bench.get("suites", SUITES)):
        raise ValueError(
            f"{path} must be of a whole run with all suites and {ROUNDS} rounds; run make bench"
        )
    return bench


def where(machine: Mapping[str, str]) -> str:
    """The machine of a run, its versions and its date."""
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
    after = head + BEGIN + "\n" + short() + "\n" + END + rest.split(END)[1]
    if arguments.check:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    plots.write_svg(plots.saved(recorded()["rows"]), PICTURE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
