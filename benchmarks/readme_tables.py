"""The tables of the README, narrow enough for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparseconv.bench import goals
from sparseconv.bench.cases import SUITES
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate

Rows = Sequence[Mapping[str, Any]]
MODES = {
    "train": "training step",
    "update": "… with an update",
    "inference": "inference",
    "latency": "latency",
    "epoch": "epoch",
}
PARTS_AT = (("train", 128), ("inference", 128))
LEAST_PART = 0.02  # of either side's time; smaller ones are added up


def kernels(rows: Rows) -> Table:
    """The layer that the kernels are made for, at every length."""
    layer = [row for row in rows if row["suite"] == "layer"]
    chosen = [row for row in layer if row["case"].startswith("dsn_evolved")]
    chosen.sort(key=lambda r: (COMPUTATIONS.index(r["computation"]), r["length"], r["threads"]))
    return Table(
        ("", "L", "threads", "ms", "GFLOP/s", "of peak", "vs conv1d", "vs channels_last conv2d"),
        [
            (
                row["computation"],
                str(row["length"]),
                str(row["threads"]),
                three_digits(row["ms"]["sparse"]),
                f"{row['gflops']:.0f}",
                _share(row["share_of_peak"]),
                _interval(row, "conv1d"),
                _interval(row, "conv2d_channels_last"),
            )
            for row in chosen
        ],
    )


def when_it_pays(bench: Mapping[str, Any]) -> Table:
    """Six lines for a reader in a hurry: the layer, the network, and a call that is too small."""
    layer = "layer, 16 series of 128 samples, {}"
    lines = [
        _pays(layer.format(computation), "conv1d", [
            row for row in bench["rows"]
            if (row["case"], row["computation"]) == ("dsn_evolved_L128", computation)
        ])
        for computation in COMPUTATIONS
    ]  # fmt: skip
    for what, mode, length in (
        ("DSN, training step, 16 series of 128", "train", 128),
        ("DSN, inference, 16 series of 128", "inference", 128),
        ("DSN, latency of one series of 24", "latency", 24),
    ):
        found = [r for r in bench["network"] if (r["mode"], r["length"]) == (mode, length)]
        lines.append(_pays(what, "masked_dense", found))
    header = ("13 % of the weights active", "plain dense", "fastest dense", "which")
    return Table(header, lines)


def _pays(what: str, plain: str, rows: Rows) -> tuple[str, ...]:
    """The worst of the rows: against the plain dense way, and against the fastest."""
    worst_plain = min(row["ratio"][plain][0] for row in rows)
    row = min(rows, key=fastest_dense)
    ratio, name = fastest_dense(row)
    name = row.get("settings", {}).get(name, name).replace("_", " ")
    return what, f"{worst_plain:.2f}", f"{ratio:.2f}", name


def fastest_dense(row: Mapping[str, Any]) -> tuple[float, str]:
    """The smallest ratio of a row, and whose it is."""
    return min((ratio[0], name) for name, ratio in row["ratio"].items())


def break_even(rows: Rows) -> float:
    """Density from which on some dense way is faster, at the worst computation and threads."""
    points: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row["suite"] == "density" and row["case"].startswith("uniform"):
            key = row["computation"], row["threads"]
            points.setdefault(key, []).append((row["density"], fastest_dense(row)[0]))
    return min(filter(None, map(goals.break_even, points.values())), default=math.inf)


def worst(rows: Rows) -> Table:
    """Of every suite the row with the smallest ratio to ``F.conv1d``."""
    lines = []
    for suite in SUITES:
        timed = [row for row in rows if row["suite"] == suite and "conv1d" in row["ratio"]]
        if timed:
            row = min(timed, key=lambda row: row["ratio"]["conv1d"][0])
            lines.append(
                (
                    suite,
                    row["case"],
                    row["computation"],
                    str(row["threads"]),
                    f"{row['density']:.1%}",
                    _interval(row, "conv1d"),
                )
            )
    header = ("suite", "worst case", "", "threads", "density", "vs conv1d")
    return Table(header, lines, text_columns=3)


def whole_network(rows: Rows) -> Table:
    """Times of the sparse network, what the dense ones take beside it, and memory."""
    header = (
        "", "L", "threads", "ms", "vs masked", "vs best", "(which)", "vs compiled", "MB",
        "masked MB",
    )  # fmt: skip
    return Table(
        header,
        [
            (
                MODES[row["mode"]] + (f", {row['data']}" if "data" in row else ""),
                str(row["length"]),
                str(row["threads"]),
                three_digits(row["ms"]["sparse"]),
                _interval(row, "masked_dense"),
                _median(row, "dense_best"),
                row.get("settings", {}).get("dense_best", "-"),
                _median(row, "dense_compiled"),
                _megabytes(row, "sparse"),
                _megabytes(row, "masked_dense"),
            )
            for row in rows
        ],
    )


def where_time_goes(rows: Rows, threads: int = 1) -> Table:
    """Milliseconds of each part, a column per network and mode."""
    columns: dict[str, Mapping[str, float]] = {}
    for mode, length in PARTS_AT:
        for row in rows:
            if (row["mode"], row["length"], row["threads"]) == (mode, length, threads):
                for side, spent in row.get("parts", {}).items():
                    columns[f"{MODES[mode]}, {side.replace('_', ' ')}"] = spent
    largest: dict[str, float] = {}
    for spent in columns.values():
        whole = sum(spent.values())
        for part, ms in spent.items():
            largest[part] = max(largest.get(part, 0.0), ms / whole)
    shown = [part for part, share in largest.items() if share >= LEAST_PART]
    lines = [
        (part, *(three_digits(spent[part]) if part in spent else "-" for spent in columns.values()))
        for part in shown
    ]
    rest = [
        sum(ms for part, ms in spent.items() if part not in shown) for spent in columns.values()
    ]
    if any(rest):
        lines.append(("all others", *map(three_digits, rest)))
    if lines:
        lines.append(
            ("**together**", *(three_digits(sum(spent.values())) for spent in columns.values()))
        )
    length = PARTS_AT[0][1]
    return Table((f"L = {length}, {threads} thread", *columns), lines)


def three_digits(value: float) -> str:
    """Three figures that count.

    Example:
        >>> three_digits(1234.5), three_digits(12.345), three_digits(0.012345)
        ('1234', '12.3', '0.0123')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _interval(row: Mapping[str, Any], rival: str) -> str:
    return str(Estimate(*row["ratio"][rival])) if rival in row["ratio"] else "-"


def _median(row: Mapping[str, Any], rival: str) -> str:
    return f"{row['ratio'][rival][0]:.2f}" if rival in row["ratio"] else "-"


def _megabytes(row: Mapping[str, Any], side: str) -> str:
    memory = row.get("peak_bytes", {})
    return f"{memory[side] / 1e6:.1f}" if side in memory else "-"
