"""What README and docs show of the recorded benchmark: ``docs/generate.py`` puts it there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import front_page, plots, recording
from benchmarks.bench import tables
from benchmarks.bench.cases import SUITES
from benchmarks.bench.run import COMPUTATIONS, ROUNDS
from benchmarks.bench.tables import BEST, Row, best_baseline, ratio
from benchmarks.studies import densities
from sparseconv.measure.table import Table

RESULTS = Path(__file__).with_name("results")
BASELINES = (
    "`F.conv1d`, `F.conv2d` on channels-last memory, `torch.sparse` on im2col columns, and FFT "
    "convolution"
)
FFT = (
    "*fft* computes the spectrum of the weights during the call, as training must; *fft, prepared* "
    "computes it beforehand, as inference can."
)
LOSING = (*tables.FASTEST, tables.CONV1D)  # what a table of rows says that dense ways win


def front(pictures: Path) -> dict[str, Callable[[], str]]:
    """Return what makes README's parts; the picture is drawn into the folder ``pictures``."""
    return {
        "pitch": lambda: front_page.pitch(recorded()),
        "picture": lambda: picture(pictures / "speed-by-density.svg"),
        "gains": lambda: front_page.gains(recorded()),
        "dense_faster": lambda: front_page.dense_faster(recorded(), lost(recorded()["rows"])),
        "classifiers": lambda: f"{front_page.tools().markdown()}\n\n{front_page.about_tools()}",
    }


def picture(path: Path) -> str:
    plots.write_svg(plots.networks_by_density(densities.speeds()), path)
    return (
        f"![Speed of training by density, with the break-even](docs/static/{path.name})\n\n"
        "*Speed of a training step on one CPU thread, by density (the share of weights that are "
        "active), compared with the dense network at PyTorch's fastest setting. All networks but "
        'DSN are compiled with [`backend="sparseconv"`](docs/compile.md).*'
    )


def ratios() -> str:
    """Return the table of ratios, and how to read it, in Markdown."""
    bench = recorded()
    timed = sum(best_baseline(row) is not None for row in bench["rows"])
    slower = lost(bench["rows"])
    full = sum(row["density"] > 0.5 for row in slower)
    few = [row["kernel_size"] for row in slower if row["density"] < 0.15]
    sizes = ", ".join(map(str, sorted(set(few))))
    return (
        f"{when_it_pays(bench).markdown()}\n\n"
        "- Ratios: dense time divided by sparse time, the worse of one and two threads. Below 1, "
        "sparse is slower. *fprop* computes the output, dgrad the gradient of the input, and wgrad "
        "that of the weights. *Layer*: 47 input and 141 output channels, 39 taps, the pattern of "
        "a trained DSN.\n"
        "- *Plain dense*: `F.conv1d` for the layer, `weight * mask` for the network. *Fastest*: "
        f"for the layer, the best of {BASELINES}; for the network, the best of PyTorch's "
        f"settings. {FFT}\n"
        "- *Worst row*: the two figures may come from different rows. By the median, a dense "
        f"method wins in [{len(slower)} of {timed} measured rows](#where-dense-was-faster). "
        f"More than half of the weights are active in {full} of them"
        f"{f', and less than 15 % in {len(few)} (with kernels of {sizes} taps)' if few else ''}.\n"
        f"- {where(bench['machine'])}.\n"
    )


def section() -> str:
    """Return every table of the recorded results in Markdown."""
    bench = recorded()
    parts = [
        f"One run of `python -m sparseconv bench` on {where(bench['machine'])}. Calls are "
        "interleaved in one process. A ratio is a baseline's time divided by the sparse time: the "
        "median over pairs of interleaved calls, with its 95 % interval where there is room. All "
        "results, with all suites, are in `benchmarks/results/bench.json`."
    ]
    for text, shown in (
        (
            "**Kernels.** One layer of the network on 16 series of L time steps: 47 → 141 "
            "channels, K = 39, 34 459 of 258 453 weights active (13.3 %), float32. *Of peak*: "
            "relative to the same multiply-adds from registers, timed interleaved with the kernel. "
            f"Baselines: {BASELINES}. {FFT} The gradient of the weights needs no such spectrum.",
            kernels(bench["rows"]),
        ),
        (
            "**Where the gain is smallest**: each suite's worst row. Below 1, sparse is slower.",
            worst(bench["rows"]),
        ),
        (
            "**The whole network** (DSN, S = 80 %, N series of C channels and L time steps), "
            "compared with the same network with dense weights. *masked*: `weight * mask` as in "
            "published code. *settings*: the fastest of PyTorch's settings, chosen before these "
            "calls. *compiled*: `torch.compile`. A training step is zero_grad, forward, "
            "loss, backward, Adam and masks; an update also prunes and grows; inference runs in "
            "eval mode after `optimize_for_inference`.",
            tables.network(bench["network"]),
        ),
    ):
        parts += [text, shown.markdown()]
    return "\n\n".join(parts) + "\n"


def lost(rows: Iterable[Row], baseline: str = BEST) -> list[Row]:
    """Return the rows in which a given baseline, or any, was faster, slowest first."""
    found = [row for row in rows if (its := ratio(row, baseline)) and its.median < 1]
    return sorted(found, key=lambda row: ratio(row, baseline) or ())


def closest(rows: Iterable[Row]) -> Row | None:
    """Return the row where the fastest baseline came closest, or None."""
    timed = (row for row in rows if best_baseline(row))
    return min(timed, key=lambda row: ratio(row) or (), default=None)


def when_it_pays(bench: Mapping[str, Any]) -> Table:
    """Tabulate ratios: each line's worse number of threads, and the worst row."""
    rows, nets = bench["rows"], [row for row in bench["network"] if row["in_channels"] == 1]
    groups = [
        (f"layer, 16 series of 128 time steps, {name}", "conv1d",
         [row for row in rows if (row["case"], row["computation"]) == ("dsn_evolved_L128", name)])
        for name in COMPUTATIONS
    ]  # fmt: skip
    for what, *place in (
        ("training step, 16 series of 128", "train", 16, 128),
        ("inference, 16 series of 128", "inference", 16, 128),
        ("latency of one series of 24", "latency", 1, 24),
    ):
        mine = [row for row in nets if [row["mode"], row["batch"], row["length"]] == place]
        groups.append((f"DSN, {what}", "masked_dense", mine))
    groups.append(("worst row of all suites and densities", "conv1d", rows))
    lines: list[tuple[str, ...]] = []
    for what, plain, mine in groups:
        if row := closest(mine):
            usual = [found.median for each in mine if (found := ratio(each, plain))]
            shown = f"{min(usual):.2f}" if usual else "-"
            lines.append((what, shown, tables.median(BEST)(row), tables.which(row)))
    uniform = [row for row in rows if row["suite"] == "density" and "uniform" in row["case"]]
    if slower := lost(uniform):
        texts = []
        for baseline in ("conv1d", BEST):
            densities = [row["density"] for row in lost(uniform, baseline)]
            texts.append(f"{min(densities):.0%}" if densities else "above 100 %")
        usual_winner = Counter(map(tables.which, slower)).most_common(1)[0][0]
        lines.append(("layer, lowest density at which dense was faster", *texts, usual_winner))
    header = (
        "13 % of the weights active, unless stated otherwise",
        "plain dense",
        "fastest",
        "which",
    )
    return Table(header, lines)


def kernels(rows: Iterable[Row]) -> Table:
    """Show the main layer at every length."""
    layer = [row for row in rows if row["case"].startswith("dsn_evolved")]
    layer.sort(key=lambda r: (COMPUTATIONS.index(r["computation"]), r["length"], r["threads"]))
    facts = tables.facts("computation", "length", "threads")
    return tables.table(layer, (*facts, *tables.SPEED, *tables.FASTEST, *tables.AGAINST))


def worst(rows: Sequence[Row]) -> Table:
    """Show each suite's row where the fastest baseline came closest."""
    of_suites = (closest(row for row in rows if row["suite"] == suite) for suite in SUITES)
    columns = (*tables.facts("suite"), *tables.CASE, tables.DENSITY, *LOSING)
    return tables.table(filter(None, of_suites), columns, text_columns=3)


def faster_baselines(rows: Iterable[Row]) -> Table:
    """Show every row in which a baseline was faster."""
    channels = ("channels", lambda row: f"{row['in_channels']} → {row['out_channels']}")
    shape = (*tables.facts("batch"), channels, *tables.facts("kernel_size", "length"))
    columns = (*tables.CASE, *shape, tables.DENSITY, *LOSING)
    return tables.table(lost(rows), columns, text_columns=2)


def recorded(path: Path = RESULTS / "bench.json") -> dict[str, Any]:
    """Read the recorded benchmark.

    Raises:
        ValueError: the recorded run is incomplete.
    """
    bench = recording.read(path)
    # Older documents lack these keys, and are whole.
    whole = bench.get("complete", True) and bench.get("rounds", ROUNDS) >= ROUNDS
    if not whole or not set(SUITES) <= set(bench.get("suites", SUITES)):
        raise ValueError(
            f"{path} must contain a complete run of all suites with {ROUNDS} rounds; run make bench"
        )
    return bench


def where(machine: Mapping[str, str]) -> str:
    """Describe a run's machine, versions and date."""
    isa = machine["cpp"].removeprefix("available (CPU, ").removesuffix(")")
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {isa}, torch {machine['torch']}, "
        f"{machine['date']}, commit {machine['commit']}"
    )
