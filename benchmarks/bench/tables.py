"""Tables of benchmark results, for a terminal and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.baselines import BASELINES
from benchmarks.bench.networks import MODES
from sparseconv.core.files import write_whole
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate

Row = Mapping[str, Any]

BEST = "best"  # whichever baseline is the fastest


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


def three_digits(value: float) -> str:
    """Format a number with at least three significant digits."""
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


def which(row: Row) -> str:
    name = best_baseline(row)
    return "" if name is None else row.get("settings", {}).get(name) or spelled(name)


# What is shown of a row: a column's title, and where the row has it.
FACTS = {
    "suite": "suite", "case": "case", "": "computation", "kind": "kind", "N": "batch",
    "C": "in_channels", "K": "kernel_size", "L": "length", "threads": "threads", "isa": "isa",
}  # fmt: skip
MEDIANS = {
    **{f"vs {spelled(name)}": name for name in BASELINES},
    "vs settings": "dense_best", "vs compiled": "dense_compiled", "vs float32": "float32",
}  # fmt: skip
INTERVALS = {"vs fastest": BEST, "vs masked": "masked_dense", "times aeon": "aeon"}
CASE, SPEED = ("case", "", "threads"), ("ms", "GFLOP/s", "of peak")
FASTEST = ("vs fastest", "(which)")
AGAINST = tuple(MEDIANS)[: len(BASELINES)]
COLUMNS = (*CASE, "density", *SPEED, *FASTEST, *AGAINST)
NETWORK_COLUMNS = (
    "", "N", "C", "L", "threads", "ms", "vs masked", "vs settings", "(which)", "vs compiled",
    "vs float32", "MB", "masked MB",
)  # fmt: skip
KERNEL_COLUMNS = (
    "kind", "N", "C", "L", "kept", "threads", "isa", "us", "aeon's us", "times aeon", "of peak",
)  # fmt: skip


def cells(row: Row) -> dict[str, str]:
    """Format all that a table may show of a row, by column."""
    ratios = {name: ratio(row, name) for name in (*MEDIANS.values(), *INTERVALS.values())}
    found = {title: str(row[key]) for title, key in FACTS.items() if key in row}
    found |= {title: f"{its.median:.2f}" for title, key in MEDIANS.items() if (its := ratios[key])}
    found |= {title: str(its) for title, key in INTERVALS.items() if (its := ratios[key])}
    found["ms"], found["us"] = (three_digits(x * row["ms"]["sparse"]) for x in (1, 1e3))
    found["(which)"] = which(row)
    if "aeon" in row["ms"]:
        found["aeon's us"] = three_digits(1e3 * row["ms"]["aeon"])
    if row.get("share_of_peak"):
        found["of peak"] = f"{row['share_of_peak']:.0%}"
    if "kept" in row:
        found["kept"] = f"{row['kept']:.0%}"
    if "gflops" in row:
        found["GFLOP/s"], found["density"] = f"{row['gflops']:.0f}", f"{row['density']:.1%}"
        found["channels"] = f"{row['in_channels']} → {row['out_channels']}"
    if "mode" in row:
        found[""], found["(which)"] = MODES[row["mode"]], row["settings"].get("dense_best", "")
    sizes = {"MB": "sparse", "masked MB": "masked_dense"}
    held = row.get("peak_bytes", {})
    return found | {title: f"{held[key] / 1e6:.1f}" for title, key in sizes.items() if key in held}


def table(rows: Iterable[Row], columns: Sequence[str], text_columns: int = 1) -> Table:
    """Show these of each row's ``cells``, a line per row; omit empty columns."""
    lines = [{title: found.get(title, "") for title in columns} for found in map(cells, rows)]
    return Table.of(lines, columns[:text_columns])


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Write the rows, in columns such as ``ms_conv1d``, ``ratio_conv1d``, ``ratio_conv1d_low``."""
    import pandas as pd

    flat = pd.json_normalize([{**row, "absent": None} for row in rows], sep="_")
    for name in flat.filter(like="ratio_"):
        flat[[f"{name}{end}" for end in ("", "_low", "_high")]] = flat[name].apply(pd.Series)
    write_whole(path, flat.drop(columns="absent").to_csv(index=False, lineterminator="\n"))
