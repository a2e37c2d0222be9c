"""Tables of benchmark results, for a terminal and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.baselines import BASELINES
from benchmarks.bench.networks import MODES
from sparseconv.core.files import write_whole
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate

Row = Mapping[str, Any]

BEST = "best"  # whichever baseline is the fastest
Column = tuple[str, Callable[[Row], str]]  # its title, and what a row shows below it


def best_baseline(row: Row) -> str | None:
    """Return the name of a row's fastest baseline, or None if no baseline was timed.

    The ``"plain_step"`` of an update is ours, not a baseline.
    """
    timed = {name: three[0] for name, three in row["ratio"].items() if name != "plain_step"}
    return min(timed, key=lambda name: timed[name]) if timed else None


def ratio(row: Row, baseline: str = BEST) -> Estimate | None:
    """Return the ratio of a baseline's time to the sparse time; None if the row has none."""
    found = row["ratio"].get(best_baseline(row) if baseline == BEST else baseline)
    return None if found is None else Estimate(*found)


def table(rows: Iterable[Row], columns: Sequence[Column], text_columns: int = 1) -> Table:
    """Format one line per row; omit empty columns."""
    lines = [{title: cell(row) for title, cell in columns} for row in rows]
    return Table.of(lines, [title for title, _ in columns[:text_columns]])


# Cells: what a column shows of a row


def three_digits(value: float) -> str:
    """Format a number with at least three significant digits.

    Example:
        >>> three_digits(1234.5), three_digits(12.345), three_digits(0.012345)
        ('1234', '12.3', '0.0123')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def spelled(baseline: str) -> str:
    """Format a baseline's name; in ``fft, prepared``, the weights' spectrum is precomputed."""
    names = {
        "conv1d": "F.conv1d",
        "conv1d_padded": "F.conv1d, padded",
        "conv2d_channels_last_padded": "conv2d channels last, padded",
        "fft_prepared": "fft, prepared",
    }
    return names.get(baseline, baseline.replace("_", " "))


def facts(*keys: str) -> list[Column]:
    """Return columns that show these values of a row unchanged."""
    names = {"batch": "N", "in_channels": "C", "length": "L", "kernel_size": "K", "computation": ""}
    return [(names.get(key, key), lambda row, key=key: str(row[key])) for key in keys]  # type: ignore[misc]


def _interval(baseline: str) -> Callable[[Row], str]:
    return lambda row: str(ratio(row, baseline) or "")


def median(baseline: str) -> Callable[[Row], str]:
    """Show the ratio of a baseline's time to the sparse time."""
    return lambda row: f"{found.median:.2f}" if (found := ratio(row, baseline)) else ""


def which(row: Row) -> str:
    name = best_baseline(row)
    return "" if name is None else row.get("settings", {}).get(name) or spelled(name)


def _milliseconds(side: str, factor: float = 1.0) -> Callable[[Row], str]:
    return lambda row: three_digits(factor * row["ms"][side]) if side in row["ms"] else ""


def _megabytes(side: str) -> Callable[[Row], str]:
    return lambda row: f"{n / 1e6:.1f}" if (n := row.get("peak_bytes", {}).get(side)) else ""


CASE = facts("case", "computation", "threads")
MS = ("ms", _milliseconds("sparse"))
DENSITY = ("density", lambda row: f"{row['density']:.1%}")
SHARE = ("of peak", lambda row: f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "")
SPEED = (MS, ("GFLOP/s", lambda row: f"{row['gflops']:.0f}"), SHARE)
FASTEST = (("vs fastest", _interval(BEST)), ("(which)", which))
CONV1D = ("vs F.conv1d", median("conv1d"))
AGAINST = [(f"vs {spelled(name)}", median(name)) for name in BASELINES]


# Tables


def cases(rows: Iterable[Row]) -> Table:
    """Show the time, the speed, and the ratio of each baseline's time to the sparse time."""
    return table(rows, (*CASE, DENSITY, *SPEED, *FASTEST, *AGAINST), text_columns=2)


def network(rows: Iterable[Row]) -> Table:
    """Show the sparse network's times, the ratios of the other times to them, and memory."""
    return table(
        rows,
        (
            ("", lambda row: MODES[row["mode"]]),
            *facts("batch", "in_channels", "length", "threads"),
            MS,
            ("vs masked", _interval("masked_dense")),
            ("vs settings", median("dense_best")),
            ("(which)", lambda row: row["settings"].get("dense_best", "")),
            ("vs compiled", median("dense_compiled")),
            ("vs float32", median("float32")),
            ("MB", _megabytes("sparse")),
            ("masked MB", _megabytes("masked_dense")),
        ),
    )


def random_kernels(rows: Iterable[Row]) -> Table:
    """Show microseconds per series, the ratio of aeon's time to ours, and the share of the peak."""
    return table(
        rows,
        (
            *facts("kind", "batch", "in_channels", "length"),
            ("kept", lambda row: f"{row['kept']:.0%}"),
            *facts("threads", "isa"),
            ("us", _milliseconds("sparse", 1e3)),
            ("aeon's us", _milliseconds("aeon", 1e3)),
            ("times aeon", _interval("aeon")),
            SHARE,
        ),
    )


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Write the rows, in columns such as ``ms_conv1d``, ``ratio_conv1d``, ``ratio_conv1d_low``."""
    import pandas as pd

    flat = pd.json_normalize([{**row, "absent": None} for row in rows], sep="_")
    for name in flat.filter(like="ratio_"):
        flat[[f"{name}{end}" for end in ("", "_low", "_high")]] = flat[name].apply(pd.Series)
    write_whole(path, flat.drop(columns="absent").to_csv(index=False, lineterminator="\n"))
