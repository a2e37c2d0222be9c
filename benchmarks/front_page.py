"""The gains and the choice of tools in README.md, from ``benchmarks/results``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from statistics import fmean
from typing import Any

from benchmarks.lines import read_lines
from benchmarks.paper import rocket
from benchmarks.paper.comparison import Runs, Versus, versus
from benchmarks.paper.report import RECORDED
from benchmarks.paper.rows import read_rows
from benchmarks.paper.tables.cells import counted
from benchmarks.studies import classifiers, densities, published_networks
from benchmarks.studies.published_networks import PRUNED
from sparseconv.bench import document
from sparseconv.bench.document import BEST, Row, best_baseline, ratio
from sparseconv.measure.table import Table

RUNS = {"DSN, two layers": "depth 2"}
KEEP = 35  # percent of the kernels
DENSE_WAYS = ("masked_dense", "dense_best", "dense_compiled")
PRUNED_ROCKET = f"ROCKET, {KEEP} %"


@cache
def recorded(plan: str) -> Runs:
    rows = read_rows(RECORDED[plan])
    return Runs(row for row in rows if not row["post_hoc"])


@cache
def kernels() -> Runs:
    return Runs(rocket.expanded(read_rows(RECORDED["pocket"])))


def compared(one: dict[str, float], other: dict[str, float]) -> Versus:
    found = versus(one, other)
    assert found is not None
    return found


def points(found: Versus, digits: int = 1) -> str:
    """Format a difference of accuracies with its 95 % interval, and whether that contains 0."""
    assert found.interval is not None
    low, high = (f"{end:+.{digits}f}" for end in found.interval)
    unclear = ", not significant" if found.interval[0] < 0 < found.interval[1] else ""
    return f"{found.difference:+.{digits}f} points [{low}, {high}]{unclear}"


def gains(bench: dict[str, Any]) -> Table:
    """Tabulate four measured gains, each with its cost in accuracy."""
    rows = [
        (what, f"**{speed}**", accuracy, f"[{page}](docs/{page}.md)")
        for what, speed, accuracy, page in (
            dsn(bench["network"]), blocks(), inception_time(), pruned_rocket(),
        )
    ]  # fmt: skip
    return Table(("what you do", "what you gain", "accuracy", "more"), rows, text_columns=4)


def worse(rows: Iterable[Row], mode: str, baseline: str) -> float:
    """Return the worse ratio over numbers of threads: 16 series of one channel, 128 samples."""
    place = {"mode": mode, "in_channels": 1, "batch": 16, "length": 128}
    mine = [ratio(row, baseline) for row in rows if place.items() <= row.items()]
    return min(found.median for found in mine if found)


def dsn(network: list[Row]) -> tuple[str, ...]:
    runs = recorded("full").paired("DSN", "dense")
    sparse, dense = runs.accuracy("DSN"), runs.accuracy("dense")
    found = compared(sparse, dense)
    return (
        "train the network DSN with 13 % of its weights",
        f"training step {worse(network, 'train', 'masked_dense'):.1f}x as fast as masked, "
        f"{worse(network, 'train', BEST):.1f}x as fast as PyTorch's fastest dense setting",
        f"{fmean(sparse.values()):.1f} % (dense: {fmean(dense.values()):.1f} %; "
        f"{found.sets} sets): "
        f"{points(found)}",
        "dsn",
    )


def blocks() -> tuple[str, ...]:
    runs, singles = recorded("blocks"), recorded("full")
    name = "blocks, bfloat16"
    mine, theirs = runs.accuracy(name), singles.accuracy("DSN")
    found = compared(mine, theirs)
    moved = [mine[each] - theirs[each] for each in mine if each in theirs]
    lowest, highest = min(moved), max(moved)
    few, many = (pick(map(len, runs.rows(name).values())) for pick in (min, max))
    seeds = counted(few, "seed") if few == many else f"{few} to {many} seeds"
    results = RECORDED["blocks"].parents[1]
    files = [results / f"blocks-{cpu}.json" for cpu in ("xeon", "zen4")]
    rows = [row for file in files for row in document.read(file)["network"]]
    steps = [row for row in rows if row["mode"] == "blocks"]
    speeds = [min(row["ratio"][way][0] for way in DENSE_WAYS) for row in steps]
    return (
        "the same in blocks of 16 channels, in bfloat16, on a CPU with AMX or AVX-512 BF16",
        f"training step {min(speeds):.1f}x to {max(speeds):.1f}x as fast as PyTorch's fastest "
        "dense bfloat16 setting",
        f"compared with single weights ({found.sets} sets, {seeds}): {points(found)}; from "
        f"{lowest:+.0f} points on the worst set to {highest:+.0f} on the best",
        "blocks",
    )


def inception_time() -> tuple[str, ...]:
    rows = document.read(published_networks.RESULTS)["rows"]
    mine = [row for row in rows if row["network"] == "InceptionTime"]
    (timed,) = (row for row in mine if "times" in row)
    inference = timed["times"]["inference"]["ratio"]["dense"][0]
    dense, converted = (
        100 * fmean(row["after"][way] for row in mine) for way in ("dense", "converted")
    )
    lost = {
        name: 100 * fmean(row["after"]["dense"] - row["after"]["converted"] for row in held)
        for name in dict.fromkeys(row["network"] for row in rows)
        if (held := [row for row in rows if row["network"] == name])
    }
    worst = max(lost, key=lambda name: lost[name])
    (row,) = (row for row in read_lines(densities.RESULTS) if row["network"] == "InceptionTime")
    steps = {way: found[0] for way, found in row["ratio"][f"{1 - PRUNED:g}"].items()}
    return (
        f"prune {100 * PRUNED:.0f} % of a trained InceptionTime, convert, fine-tune",
        f"training step {steps['plain']:.1f}x as fast as plain dense, "
        f"{steps[row['fastest']]:.1f}x as fast as PyTorch's fastest dense setting; inference "
        f"{inference:.1f}x as fast as plain dense (fastest setting not timed)",
        f"{dense:.1f} % before, {converted:.1f} % after ({mine[0]['dataset']}); of the four "
        f"networks tested, {worst} lost the most ({lost[worst]:.0f} points)",
        "converting",
    )


def pruned_rocket() -> tuple[str, ...]:
    times = classifiers.means(read_lines(classifiers.RESULTS))
    slow, whole, kept = (
        times[name]["predict"] for name in ("aeon Rocket", "ROCKET", PRUNED_ROCKET)
    )
    runs = kernels()
    found = compared(runs.accuracy(f"{PRUNED_ROCKET}, POCKET"), runs.accuracy("ROCKET"))
    return (
        f"classify with ROCKET, using {KEEP} % of its kernels",
        f"prediction {whole / kept:.1f}x as fast as with all kernels, "
        f"{slow / kept:.0f}x as fast as aeon's",
        f"compared with all kernels ({found.sets} sets): {points(found, 3)}",
        "pocket",
    )


def tools() -> Table:
    """Tabulate which classifier suits which task, on the data sets that all have."""
    lines = read_lines(classifiers.RESULTS)
    found = classifiers.means(lines)
    names = {row["dataset"] for row in lines}
    rows = []
    for task, tool, call in (
        ("small data, little time: start here", "MiniROCKET",
         '`POCKETClassifier("minirocket", keep=1.0)`'),
        ("the fastest prediction", "ROCKET, 10 %", "`POCKETClassifier(keep=0.1)`"),
        ("a network that you can fine-tune and export to C or ONNX", "DSN, two layers",
         "`DSNClassifier(depth=2)`"),
        ("the network from the DSN paper", "DSN", "`DSNClassifier()`"),
        ("for comparison: a dense network", "InceptionTime", "`models.InceptionTime(1, 2)`"),
    ):  # fmt: skip
        it = found.get(tool) or network_means(RUNS.get(tool, tool), names)
        fit = f"{it['fit']:.{2 if it['fit'] < 1 else 0}f} s"
        rows.append((task, tool, call, f"{it['accuracy']:.1f}", fit, f"{it['predict']:.0f} µs"))
    header = ("your task", "tool", "call", "accuracy %", "training", "prediction per series")
    return Table(header, rows, text_columns=3)


def network_means(run: str, names: Iterable[str]) -> dict[str, float]:
    runs = recorded("full")
    numbers = {
        "accuracy": lambda row: 100 * row["accuracy"],
        "fit": lambda row: row["train_seconds"],
        "predict": lambda row: 1e6 * row["predict_seconds"] / row["n_test"],
    }
    return {key: runs.over_sets(run, number, names) for key, number in numbers.items()}


def about_gains(bench: dict[str, Any]) -> str:
    sets = len({row["dataset"] for row in read_lines(classifiers.RESULTS)})
    return (
        "DSN's published sparsity of 80 % in each kernel group leaves 13 % of the whole layer's "
        "weights active. "
        "All times except DSN's were measured on one thread: ROCKET on an Intel Xeon, "
        f"InceptionTime on an {bench['machine']['cpu']}, and blocks on both. DSN was timed on one "
        "and two threads of the EPYC; the lower speed-up is shown. Speed-ups are "
        f"medians of interleaved runs; ROCKET's are means over {sets} sets. \"PyTorch's fastest "
        'dense setting" is the fastest of those tried, such as channels-last memory or '
        "`torch.compile`. InceptionTime's training step was timed on the published network; its "
        "inference speed and accuracy were measured on tsai's variant. The data sets are from the "
        "UCR archive; brackets contain 95 % confidence intervals across the data sets."
    )


def losses(bench: dict[str, Any], slower: list[Row]) -> str:
    """Describe when the fastest dense way won.

    Args:
        bench: the recorded benchmark.
        slower: its rows in which a dense way was faster, slowest first.
    """
    timed = sum(best_baseline(row) is not None for row in bench["rows"])
    worst, full = ratio(slower[0]), sum(row["density"] > 0.5 for row in slower)
    few = [row["kernel_size"] for row in slower if row["density"] < 0.15]
    sizes = ", ".join(map(str, sorted(set(few))))
    assert worst
    return (
        "**When it does not pay off**: the fastest dense method, usually FFT with a "
        f"precomputed spectrum, was faster in [{len(slower)} of {timed} measured cases]"
        f"(docs/when-it-pays.md), by a factor of at most {1 / worst.median:.1f}. "
        f"In {full} of these cases, more than half of the weights are active; in {len(few)} "
        f"(with kernels of {sizes} taps), less than 15 %. "
        "Networks that spend most of their time outside convolutions gain little."
    )


def about_tools() -> str:
    """Describe what the table of tools compares, and DSN on more sets."""
    sets = len({row["dataset"] for row in read_lines(classifiers.RESULTS)})
    found = compared(kernels().accuracy("MiniROCKET"), recorded("full").accuracy("DSN"))
    return (
        f"The figures are means over {sets} small UCR sets, measured on one thread. MiniROCKET and "
        "pruned ROCKET are faster than the networks, and more accurate than DSN on these sets. "
        "Choose a network if you need C or ONNX, or want to fine-tune. "
        f"On {found.sets} sets, MiniROCKET's accuracy differs from DSN's by {points(found)}. "
        "Networks were trained for 1 000 epochs, with one seed for the two-layer DSN and for "
        "InceptionTime, and three seeds for DSN. The networks were timed on another machine, "
        "which was running other jobs at the same time, so compare only the orders of magnitude "
        "of their times."
    )
