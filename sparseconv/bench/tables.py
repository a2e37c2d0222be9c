"""What a benchmark found, as tables: for a terminal, README.md and the documentation."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sparseconv.bench.baselines import BASELINES
from sparseconv.bench.cases import SUITES
from sparseconv.bench.document import BEST, Row, best_baseline, ratio
from sparseconv.bench.network.compare import MODES
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.table import Table, threads_text


class Column(NamedTuple):
    """A header, and what a row shows below it."""

    title: str
    cell: Callable[[Row], str]


def table(rows: Iterable[Row], columns: Sequence[Column], text_columns: int = 1) -> Table:
    """One line per row; a column in which there is nothing to show is left out."""
    lines = [[column.cell(row) for column in columns] for row in rows]
    shown = [i for i in range(len(columns)) if any(line[i] != "-" for line in lines)]
    return Table(
        [columns[i].title for i in shown],
        [[line[i] for i in shown] for line in lines],
        text_columns,
    )


# Cells


def three_digits(value: float) -> str:
    """Three figures that count.

    Example:
        >>> three_digits(1234.5), three_digits(12.345), three_digits(0.012345)
        ('1234', '12.3', '0.0123')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def spelled(baseline: str) -> str:
    """A baseline's name in a text: ``fft, prepared`` has the weights' spectrum prepared."""
    names = {
        "conv1d": "F.conv1d",
        "conv1d_padded": "F.conv1d, padded",
        "conv2d_channels_last_padded": "conv2d channels last, padded",
        "fft_prepared": "fft, prepared",
    }
    return names.get(baseline, baseline.replace("_", " "))


def _fact(key: str) -> Column:
    names = {"batch": "N", "in_channels": "C", "length": "L", "kernel_size": "K", "computation": ""}
    return Column(names.get(key, key), lambda row: str(row[key]))


def _interval(baseline: str) -> Callable[[Row], str]:
    return lambda row: str(ratio(row, baseline) or "-")


def _median(baseline: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = ratio(row, baseline)
        return "-" if found is None else f"{found.median:.2f}"

    return cell


def _which(row: Row) -> str:
    name = best_baseline(row)
    return "-" if name is None else row.get("settings", {}).get(name) or spelled(name)


def _megabytes(side: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        held = row.get("peak_bytes", {}).get(side)
        return "-" if held is None else f"{held / 1e6:.1f}"

    return cell


def _share(row: Row) -> str:
    return "-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"


CASE = (_fact("case"), _fact("computation"), _fact("threads"))
MS = Column("ms", lambda row: three_digits(row["ms"]["sparse"]))
DENSITY = Column("density", lambda row: f"{row['density']:.1%}")
SPEED = (
    MS,
    Column("GFLOP/s", lambda row: f"{row['gflops']:.0f}"),
    Column("of peak", _share),
)
FASTEST = (Column("vs fastest", _interval(BEST)), Column("(which)", _which))
CONV1D = Column("vs F.conv1d", _median("conv1d"))
AGAINST = tuple(Column(f"vs {spelled(name)}", _median(name)) for name in BASELINES)


# Tables of the cases


def cases(rows: Iterable[Row]) -> Table:
    """Time, speed, and each baseline's time over the sparse one."""
    return table(rows, (*CASE, DENSITY, *SPEED, *FASTEST, *AGAINST), text_columns=2)


def kernels(rows: Iterable[Row]) -> Table:
    """The layer that the kernels are made for, at every length."""
    layer = [row for row in rows if row["case"].startswith("dsn_evolved")]
    layer.sort(key=lambda r: (COMPUTATIONS.index(r["computation"]), r["length"], r["threads"]))
    return table(layer, (*(_fact(k) for k in ("computation", "length", "threads")), *SPEED,
                         *FASTEST, *AGAINST))  # fmt: skip


def worst(rows: Sequence[Row]) -> Table:
    """Of every suite the row in which the fastest baseline was the closest."""
    timed = [row for row in rows if best_baseline(row)]
    lowest = [
        min(mine, key=lambda row: ratio(row) or ())
        for suite in SUITES
        if (mine := [row for row in timed if row["suite"] == suite])
    ]
    return table(lowest, (_fact("suite"), *CASE, DENSITY, *FASTEST, CONV1D), text_columns=3)


def lost(rows: Iterable[Row]) -> list[Row]:
    """The rows in which any baseline was faster, slowest first."""
    found = [row for row in rows if (best := ratio(row)) is not None and best.median < 1]
    return sorted(found, key=lambda row: ratio(row) or ())


def faster_baselines(rows: Iterable[Row]) -> Table:
    """Every row in which any baseline was faster."""
    channels = Column("channels", lambda row: f"{row['in_channels']} → {row['out_channels']}")
    shape = (_fact("batch"), channels, _fact("kernel_size"), _fact("length"), DENSITY)
    return table(lost(rows), (*CASE, *shape, *FASTEST, CONV1D), text_columns=2)


def absences(rows: Iterable[Row]) -> list[str]:
    """Why baselines are missing: one line for each and its reason, with the cases."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for absent in row.get("absent", {}).items():
            found.setdefault(absent, {})[_spelled_row(row)] = None
    return [
        f"{baseline} is left out of {', '.join(cases)}: {reason}"
        for (baseline, reason), cases in found.items()
    ]


def _spelled_row(row: Row) -> str:
    if "case" in row:
        return f"{row['case']} {row['computation']}"
    return f"{row['model']} {row['mode']} L={row['length']}"


def peaks(rows: Iterable[Row]) -> Table:
    """Multiply-adds from registers."""
    speed = Column("GFLOP/s", lambda row: f"{row['fma_gflops']:.0f}")
    return table(rows, (_fact("isa"), _fact("dtype"), _fact("threads"), speed), text_columns=2)


# Tables of the whole network


def network(rows: Iterable[Row]) -> Table:
    """Times of the sparse network, what the dense ones take beside it, and memory."""
    mode = Column("", lambda row: MODES[row["mode"]])
    return table(
        rows,
        (
            mode, _fact("batch"), _fact("in_channels"), _fact("length"), _fact("threads"), MS,
            Column("vs masked", _interval("masked_dense")),
            Column("vs settings", _median("dense_best")),
            Column("(which)", lambda row: row.get("settings", {}).get("dense_best", "-")),
            Column("vs compiled", _median("dense_compiled")),
            Column("MB", _megabytes("sparse")), Column("masked MB", _megabytes("masked_dense")),
        ),
    )  # fmt: skip


def random_kernels(rows: Iterable[Row]) -> Table:
    """Microseconds of a series: aeon's time over ours, and the share of the FMA peak (ROCKET)."""

    def microseconds(name: str) -> Callable[[Row], str]:
        return lambda row: three_digits(1e3 * row["ms"][name]) if name in row["ms"] else "-"

    return table(
        rows,
        (
            _fact("kind"), _fact("batch"), _fact("in_channels"), _fact("length"),
            Column("kept", lambda row: f"{row['kept']:.0%}"), _fact("threads"), _fact("isa"),
            Column("us", microseconds("sparse")), Column("aeon's us", microseconds("aeon")),
            Column("times aeon", _interval("aeon")), Column("of peak", _share),
        ),
    )  # fmt: skip


def compiled(rows: Iterable[Row]) -> Table:
    """Build a table of the time of a compiled and of an exported layer over the eager call's."""
    ways = (Column(f"{name} / eager", _interval(name)) for name in ("compiled", "exported"))
    return table(rows, (*CASE, MS, *ways), text_columns=2)


# Everything together


def lowest_break_even(rows: Iterable[Row], baseline: str) -> tuple[float, str] | None:
    """The lowest break-even density over computations and threads, and where it is."""
    points: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if (
            row["suite"] == "density"
            and row["case"].startswith("uniform")
            and (found := ratio(row, baseline))
        ):
            points.setdefault((row["computation"], row["threads"], row["isa"]), []).append(
                (row["density"], found.median)
            )
    crossings = [(break_even(found), key) for key, found in points.items()]
    if not crossings:
        return None
    density, (computation, threads, _) = min(crossings, key=itemgetter(0))
    return density, f"{computation}, {threads_text(threads)}"


def break_even(points: Sequence[tuple[float, float]]) -> float:
    """Density from which on dense is faster, of (density, ratio) points; infinite if never.

    Straight lines between the points, on a log axis of the ratio.

    Example:
        >>> break_even([(0.1, 8.0), (0.5, 2.0), (1.0, 0.5)])
        0.75
        >>> break_even([(0.1, 8.0), (1.0, 1.1)])
        inf
    """
    ordered = sorted(points)
    if ordered[0][1] < 1:
        return ordered[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(ordered):
        if y1 < 1:
            return x0 + (x1 - x0) * math.log(y0) / math.log(y0 / y1)
    return math.inf


def when_it_pays(document: Mapping[str, Any]) -> Table:
    """The README's lines: of each number of threads the worse one, and the worst of everything."""
    rows, nets = document["rows"], [r for r in document["network"] if r["in_channels"] == 1]
    layer = [row for row in rows if row["case"] == "dsn_evolved_L128"]
    lines = [
        *(
            _line(f"layer, 16 series of 128 samples, {name}", "conv1d",
                  [row for row in layer if row["computation"] == name])
            for name in COMPUTATIONS
        ),
        *(
            _line(f"DSN, {what}", "masked_dense",
                  [r for r in nets if (r["mode"], r["length"]) == (mode, length)
                   and r["batch"] in (1, 16)])
            for what, mode, length in (
                ("training step, 16 series of 128", "train", 128),
                ("inference, 16 series of 128", "inference", 128),
                ("latency of one series of 24", "latency", 24),
            )
        ),
        _line("worst row of all suites and densities", "conv1d", rows),
    ]  # fmt: skip
    faster = Counter(_which(row) for row in lost(rows) if row["suite"] == "density")
    crossings = [lowest_break_even(rows, name) for name in ("conv1d", BEST)]
    shown = [
        "above 100 %" if math.isinf(crossing[0]) else f"{crossing[0]:.0%}"
        for crossing in crossings
        if crossing
    ]
    if shown:
        lines.append(
            ("layer, any density: slower from", *shown, *[n for n, _ in faster.most_common(1)])
        )
    header = ("13 % of the weights active, where not said", "plain dense", "fastest", "which")
    return Table(header, [line for line in lines if len(line) == len(header)])


def _line(what: str, plain: str, rows: Sequence[Row]) -> tuple[str, ...]:
    rows = [row for row in rows if best_baseline(row)]
    if not rows:
        return ()
    usual = [found.median for row in rows if (found := ratio(row, plain))]
    row = min(rows, key=lambda row: ratio(row) or ())
    return what, f"{min(usual):.2f}" if usual else "-", _median(BEST)(row), _which(row)
