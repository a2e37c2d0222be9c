"""The gains and the choice of tools in README.md, from ``benchmarks/results``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import pandas as pd

from benchmarks import recording
from benchmarks.bench.networks import BASELINES
from benchmarks.bench.tables import BEST, Row, best_baseline, ratio
from benchmarks.paper import rocket
from benchmarks.paper.comparison import Versus, by_set, frame, paired, versus
from benchmarks.paper.report import RECORDED
from benchmarks.paper.rows import read_rows
from benchmarks.paper.tables.smaller import pruned_kernels
from benchmarks.recording import read_lines
from benchmarks.studies import classifiers, densities, published_networks
from benchmarks.studies.published_networks import PRUNED
from sparseconv.measure.table import Table

RUNS = {"DSN, two layers": "depth 2"}
KEEP = 35  # percent of the kernels
PRUNED_ROCKET = f"ROCKET, {KEEP} %"


@cache
def recorded(plan: str) -> pd.DataFrame:
    rows = frame(read_rows(RECORDED[plan]))
    return rows[~rows["post_hoc"]]


@cache
def kernels() -> pd.DataFrame:
    return frame(rocket.expanded(read_rows(RECORDED["pocket"])))


def points(found: Versus, digits: int = 1) -> str:
    """Format a difference of accuracies with its 95 % interval, and whether that contains 0."""
    low, high = (f"{end:+.{digits}f}" for end in found.interval)
    unclear = ", not significant" if found.interval[0] < 0 < found.interval[1] else ""
    return f"{found.difference:+.{digits}f} points [{low}, {high}]{unclear}"


def pitch(bench: dict[str, Any]) -> str:
    return (
        "**Weight-sparse 1-D convolution for PyTorch. A training step of the time series network "
        f"DSN with 13 % of its weights is {worse(bench['network'], 'train', BEST):.1f}x as fast as "
        "in PyTorch's fastest dense setting, on a CPU.**"
    )


def gains(bench: dict[str, Any]) -> str:
    """Tabulate what was gained, at which cost in accuracy, and how to read the speeds."""
    rows = [*dsn(bench["network"]), blocks(), *inception_time(), *pruned_rocket()]
    header = ("what you do", "compared with", "speed", "accuracy", "more")
    lines = [
        (what, other, f"**{speed}**", accuracy, f"[{page}](docs/{page}.md)" if page else "")
        for what, other, speed, accuracy, page in rows
    ]
    return f"{Table(header, lines, text_columns=5).markdown()}\n\n{about_gains(bench)}"


def worse(rows: Iterable[Row], mode: str, baseline: str) -> float:
    """Return the worse ratio over numbers of threads: 16 series of one channel, 128 time steps."""
    place = {"mode": mode, "in_channels": 1, "batch": 16, "length": 128}
    mine = [ratio(row, baseline) for row in rows if place.items() <= row.items()]
    return min(found.median for found in mine if found)


def dsn(network: list[Row]) -> list[tuple[str, ...]]:
    both = paired(recorded("full"), "DSN", "dense")
    sparse, dense = by_set(both, "DSN"), by_set(both, "dense")
    found = versus(sparse, dense)
    accuracy = (
        f"{sparse.mean():.1f} %, dense {dense.mean():.1f} % ({found.sets} sets): {points(found)}"
    )
    fastest, masked = (worse(network, "train", way) for way in (BEST, "masked_dense"))
    return [
        ("train DSN with 13 % of its weights", "PyTorch's fastest dense setting",
         f"{fastest:.1f}x", accuracy, "dsn"),
        ("", "a dense weight times a mask", f"{masked:.1f}x", "", "when-it-pays"),
    ]  # fmt: skip


def blocks() -> tuple[str, ...]:
    mine = by_set(recorded("blocks"), "blocks, bfloat16")
    theirs = by_set(recorded("full"), "DSN")
    found, moved = versus(mine, theirs), mine - theirs
    results = RECORDED["blocks"].parents[1]
    files = [results / f"blocks-{cpu}.json" for cpu in ("xeon", "zen4")]
    rows = [row for file in files for row in recording.read(file)["network"]]
    steps = [row for row in rows if row["mode"] == "blocks"]
    speeds = [min(row["ratio"][way][0] for way in BASELINES) for row in steps]
    return (
        "train it in blocks of 16 channels, in bfloat16 (AMX or AVX-512 BF16)",
        "PyTorch's fastest dense bfloat16 setting",
        f"{min(speeds):.1f}x to {max(speeds):.1f}x",
        f"compared with single weights ({found.sets} sets): {points(found)}; from "
        f"{moved.min():+.0f} to {moved.max():+.0f} on single sets",
        "blocks",
    )


def inception_time() -> list[tuple[str, ...]]:
    rows = pd.json_normalize(read_lines(published_networks.RESULTS)).set_index("network")
    mine = rows.loc["InceptionTime"]
    (inference,) = mine["times.inference.ratio.dense"].dropna().str[0]
    after = 100 * rows[["after.dense", "after.converted"]].groupby("network").mean()
    dense, converted = after.loc["InceptionTime"]
    lost = after["after.dense"] - after["after.converted"]
    row = by_density("InceptionTime")
    steps = {way: found[0] for way, found in row["ratio"][f"{1 - PRUNED:g}"].items()}
    return [
        (f"prune {100 * PRUNED:.0f} % of InceptionTime, convert, compile, fine-tune",
         "PyTorch's fastest dense setting", f"{steps[row['fastest']]:.1f}x",
         f"{dense:.1f} % before, {converted:.1f} % after ({mine['dataset'].iloc[0]}); of four "
         f"networks, {lost.idxmax()} lost the most, {lost.max():.0f} points", "when-it-pays"),
        ("then predict", "plain dense (fastest not timed)", f"{inference:.1f}x", "",
         "converting"),
    ]  # fmt: skip


def by_density(network: str) -> dict[str, Any]:
    (row,) = (row for row in read_lines(densities.RESULTS) if row["network"] == network)
    return row


def rocket_speeds() -> tuple[float, float]:
    """Return how much faster a prediction is with our kernels, and with fewer of them."""
    times = classifiers.means(read_lines(classifiers.RESULTS))
    slow, whole, kept = times.loc[["aeon Rocket", "ROCKET", PRUNED_ROCKET], "predict"]
    return slow / whole, whole / kept


def pruned_rocket() -> list[tuple[str, ...]]:
    faster, fewer = rocket_speeds()
    name = f"{PRUNED_ROCKET}, POCKET"
    found = versus(by_set(kernels(), name), by_set(kernels(), "ROCKET"))
    table = pruned_kernels(kernels())
    (p,) = (row[table.header.index("p, Holm")] for row in table.rows if row[0] == name)
    return [
        (f"predict with {KEEP} % of ROCKET's kernels", "all kernels", f"{fewer:.1f}x",
         f"compared with all kernels ({found.sets} sets): {points(found)}; p = {p} with "
         "Holm's correction", "pocket"),
        ("", "aeon's ROCKET", f"{faster * fewer:.0f}x", "", ""),
    ]  # fmt: skip


def about_gains(bench: dict[str, Any]) -> str:
    sets = len({row["dataset"] for row in read_lines(classifiers.RESULTS)})
    density, speed = min(densities.speeds()["DSN"])
    faster, fewer = rocket_speeds()
    return (
        "- **DSN**: a training step without a pattern update, at the published sparsity of 80 % in "
        "each kernel group (13 % of all weights active); the lower speed of one and two threads of "
        f"an {bench['machine']['cpu']}. The picture shows DSN without kernel groups, on an "
        f"{by_density('DSN')['machine']['cpu']}: "
        f"{speed:.1f}x at a density of {100 * density:.0f} %.\n"
        "- **InceptionTime**: the training step is the published network's, compiled with "
        '`backend="sparseconv"`, on one thread of an '
        f"{by_density('InceptionTime')['machine']['cpu']}; prediction and accuracy are those of "
        "tsai's variant, not compiled, on an "
        f"{read_lines(published_networks.RESULTS)[-1]['machine']['cpu']}.\n"
        f"- **ROCKET**: {faster * fewer:.0f}x is the product of {faster:.0f}x from faster code for "
        f"the same kernels and {fewer:.1f}x from fewer kernels; means over {sets} sets, on one "
        "thread of an Intel Xeon."
    )


def dense_faster(bench: dict[str, Any], slower: list[Row]) -> str:
    """Describe the rows in which the fastest dense way won, slowest first."""
    timed = sum(best_baseline(row) is not None for row in bench["rows"])
    worst, full = ratio(slower[0]), sum(row["density"] > 0.5 for row in slower)
    few = [row["kernel_size"] for row in slower if row["density"] < 0.15]
    sizes = ", ".join(map(str, sorted(set(few))))
    return (
        "- **Most weights are active.** The fastest dense method, usually FFT with a precomputed "
        f"spectrum, was faster in [{len(slower)} of {timed} measured cases]"
        "(docs/when-it-pays.md#where-dense-was-faster), by a factor of at most "
        f"{1 / worst.median:.1f}. In {full} of them, more than half of the weights are active; in "
        f"{len(few)} (with kernels of {sizes} taps), less than 15 %."
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
        ("a network to fine-tune, or to export to C or ONNX", "DSN, two layers",
         "`DSNClassifier(depth=2)`"),
        ("the network from the DSN paper", "DSN", "`DSNClassifier()`"),
        ("for comparison: a dense network", "InceptionTime", "`models.InceptionTime(1, 2)`"),
    ):  # fmt: skip
        known = tool in found.index
        it = found.loc[tool] if known else network_means(RUNS.get(tool, tool), names)
        times = f"{it['fit']:.2f} s", f"{it['predict']:.0f} µs"
        if "ROCKET" not in tool:  # timed on a busy machine: one digit
            times = tuple(
                f"~{float(f'{it[key]:.1g}'):.0f} {unit}"
                for key, unit in (("fit", "s"), ("predict", "µs"))
            )
        rows.append((task, tool, call, f"{it['accuracy']:.1f}", *times))
    header = ("your task", "tool", "call", "accuracy %", "training", "prediction per series")
    return Table(header, rows, text_columns=3)


def network_means(run: str, names: Collection[str]) -> dict[str, float]:
    rows = recorded("full").query("run == @run and dataset in @names")
    rows = rows.assign(us=1e6 * rows["predict_seconds"] / rows["n_test"])
    keys = {"accuracy": "accuracy", "fit": "train_seconds", "predict": "us"}
    return {key: by_set(rows, run, column).mean() for key, column in keys.items()}


def about_tools() -> str:
    """Describe what the table of tools compares, and DSN on more sets."""
    sets = {row["dataset"] for row in read_lines(classifiers.RESULTS)}
    networks = recorded("full")
    found = versus(by_set(kernels(), "MiniROCKET"), by_set(networks, "DSN"))
    same_seed = by_set(paired(networks, "DSN", RUNS["DSN, two layers"]), "DSN")
    return (
        f"Means over {len(sets)} small UCR sets, on one thread. On {found.sets} sets, MiniROCKET's "
        f"accuracy differs from DSN's by {points(found)}. Networks were trained for 1 000 epochs, "
        "with one seed (DSN: three, of which the first alone reaches "
        f"{same_seed[list(sets)].mean():.1f} %), on another machine that was running "
        "other jobs: their times (~) show the order of magnitude. See "
        "[random kernels](docs/pocket.md#how-accurate) and [networks](docs/paper.md)."
    )
