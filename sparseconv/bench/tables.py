"""What a benchmark found, as tables: for a terminal, README.md and the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sparseconv.bench.baselines import BASELINES
from sparseconv.bench.cases import SUITES
from sparseconv.bench.document import BEST, OURS, Row, best_baseline, ratio
from sparseconv.bench.network.compare import MODES
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.table import Table

Column = tuple[str, Callable[[Row], str]]  # its title, and what a row shows below it


def table(rows: Iterable[Row], columns: Sequence[Column], text_columns: int = 1) -> Table:
    """Make one line per row; a column in which there is nothing to show is left out."""
    lines = [{title: cell(row) for title, cell in columns} for row in rows]
    return Table.of(lines, [title for title, _ in columns[:text_columns]])


# Cells


def three_digits(value: float) -> str:
    """Write three significant figures.

    Example:
        >>> three_digits(1234.5), three_digits(12.345), three_digits(0.012345)
        ('1234', '12.3', '0.0123')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def spelled(baseline: str) -> str:
    """Write a baseline's name: ``fft, prepared`` has the weights' spectrum prepared."""
    names = {
        "conv1d": "F.conv1d",
        "conv1d_padded": "F.conv1d, padded",
        "conv2d_channels_last_padded": "conv2d channels last, padded",
        "fft_prepared": "fft, prepared",
    }
    return names.get(baseline, baseline.replace("_", " "))


def _facts(*keys: str) -> list[Column]:
    names = {"batch": "N", "in_channels": "C", "length": "L", "kernel_size": "K", "computation": ""}
    return [(names.get(key, key), lambda row, key=key: str(row[key])) for key in keys]  # type: ignore[misc]


def _interval(baseline: str) -> Callable[[Row], str]:
    return lambda row: str(ratio(row, baseline) or "")


def _median(baseline: str) -> Callable[[Row], str]:
    return lambda row: f"{found.median:.2f}" if (found := ratio(row, baseline)) else ""


def _which(row: Row) -> str:
    name = best_baseline(row)
    return "" if name is None else row.get("settings", {}).get(name) or spelled(name)


def _milliseconds(side: str, factor: float = 1.0) -> Callable[[Row], str]:
    return lambda row: three_digits(factor * row["ms"][side]) if side in row["ms"] else ""


def _megabytes(side: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        held = row.get("peak_bytes", {}).get(side)
        return f"{held / 1e6:.1f}" if held else ""

    return cell


CASE = _facts("case", "computation", "threads")
MS = ("ms", _milliseconds("sparse"))
DENSITY = ("density", lambda row: f"{row['density']:.1%}")
SHARE = ("of peak", lambda row: f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "")
SPEED = (MS, ("GFLOP/s", lambda row: f"{row['gflops']:.0f}"), SHARE)
FASTEST = (("vs fastest", _interval(BEST)), ("(which)", _which))
CONV1D = ("vs F.conv1d", _median("conv1d"))
AGAINST = [(f"vs {spelled(name)}", _median(name)) for name in (*BASELINES, *OURS)]


# Tables of the cases


def cases(rows: Iterable[Row]) -> Table:
    """Show time, speed, and each baseline's time over the sparse one."""
    return table(rows, (*CASE, DENSITY, *SPEED, *FASTEST, *AGAINST), text_columns=2)


def kernels(rows: Iterable[Row]) -> Table:
    """Show the layer that the kernels are made for, at every length."""
    layer = [row for row in rows if row["case"].startswith("dsn_evolved")]
    layer.sort(key=lambda r: (COMPUTATIONS.index(r["computation"]), r["length"], r["threads"]))
    facts = _facts("computation", "length", "threads")
    return table(layer, (*facts, *SPEED, *FASTEST, *AGAINST))


def worst(rows: Sequence[Row]) -> Table:
    """Show of every suite the row in which the fastest baseline was the closest."""
    timed = [row for row in rows if best_baseline(row)]
    lowest = [
        min(mine, key=lambda row: ratio(row) or ())
        for suite in SUITES
        if (mine := [row for row in timed if row["suite"] == suite])
    ]
    return table(lowest, (*_facts("suite"), *CASE, DENSITY, *FASTEST, CONV1D), text_columns=3)


def lost(rows: Iterable[Row], baseline: str = BEST) -> list[Row]:
    """Return the rows in which a baseline, or any, was faster, slowest first."""
    found = [row for row in rows if (its := ratio(row, baseline)) and its.median < 1]
    return sorted(found, key=lambda row: ratio(row, baseline) or ())


def faster_baselines(rows: Iterable[Row]) -> Table:
    """Show every row in which any baseline was faster."""
    channels = ("channels", lambda row: f"{row['in_channels']} → {row['out_channels']}")
    shape = (*_facts("batch"), channels, *_facts("kernel_size", "length"), DENSITY)
    return table(lost(rows), (*CASE, *shape, *FASTEST, CONV1D), text_columns=2)


def absences(rows: Iterable[Row]) -> list[str]:
    """Say why baselines are missing: one line for each and its reason, with the cases."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if "case" in row:
            name = f"{row['case']} {row['computation']}"
        else:
            name = f"{row['model']} {row['mode']} L={row['length']}"
        for absent in row["absent"].items():
            found.setdefault(absent, {})[name] = None
    return [
        f"{baseline} is left out of {', '.join(cases)}: {reason}"
        for (baseline, reason), cases in found.items()
    ]


def network(rows: Iterable[Row]) -> Table:
    """Show times of the sparse network, ratios of the dense ones, and memory."""
    return table(
        rows,
        (
            ("", lambda row: MODES[row["mode"]]),
            *_facts("batch", "in_channels", "length", "threads"),
            MS,
            ("vs masked", _interval("masked_dense")),
            ("vs settings", _median("dense_best")),
            ("(which)", lambda row: row["settings"].get("dense_best", "")),
            ("vs compiled", _median("dense_compiled")),
            ("MB", _megabytes("sparse")),
            ("masked MB", _megabytes("masked_dense")),
        ),
    )


def random_kernels(rows: Iterable[Row]) -> Table:
    """Show microseconds of a series, aeon's time over ours, and the share of the peak (ROCKET)."""
    return table(
        rows,
        (
            *_facts("kind", "batch", "in_channels", "length"),
            ("kept", lambda row: f"{row['kept']:.0%}"),
            *_facts("threads", "isa"),
            ("us", _milliseconds("sparse", 1e3)),
            ("aeon's us", _milliseconds("aeon", 1e3)),
            ("times aeon", _interval("aeon")),
            SHARE,
        ),
    )


# Everything together


def when_it_pays(document: Mapping[str, Any]) -> Table:
    """Make README's table: of each line the worse number of threads, and the worst row of all."""
    rows, nets = document["rows"], [r for r in document["network"] if r["in_channels"] == 1]
    groups = [
        (f"layer, 16 series of 128 samples, {name}", "conv1d",
         [r for r in rows if (r["case"], r["computation"]) == ("dsn_evolved_L128", name)])
        for name in COMPUTATIONS
    ]  # fmt: skip
    for what, mode, length in (
        ("training step, 16 series of 128", "train", 128),
        ("inference, 16 series of 128", "inference", 128),
        ("latency of one series of 24", "latency", 24),
    ):
        mine = [r for r in nets if (r["mode"], r["length"]) == (mode, length)]
        groups.append((f"DSN, {what}", "masked_dense", [r for r in mine if r["batch"] in (1, 16)]))
    groups.append(("worst row of all suites and densities", "conv1d", rows))
    lines: list[tuple[str, ...]] = []
    for what, plain, mine in groups:
        if timed := [row for row in mine if best_baseline(row)]:
            usual = [found.median for row in timed if (found := ratio(row, plain))]
            worst = min(timed, key=lambda row: ratio(row) or ())
            shown = f"{min(usual):.2f}" if usual else "-"
            lines.append((what, shown, _median(BEST)(worst), _which(worst)))
    uniform = [row for row in rows if row["suite"] == "density" and "uniform" in row["case"]]
    if slower := lost(uniform):
        texts = []
        for baseline in ("conv1d", BEST):
            densities = [row["density"] for row in lost(uniform, baseline)]
            texts.append(f"{min(densities):.0%}" if densities else "above 100 %")
        which = Counter(map(_which, slower)).most_common(1)[0][0]
        lines.append(("layer, lowest density at which dense was faster", *texts, which))
    header = ("13 % of the weights active, where not said", "plain dense", "fastest", "which")
    return Table(header, lines)
