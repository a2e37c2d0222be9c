"""The whole-network rows as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparseconv.measure import timing
from sparseconv.measure.table import Table

RIVALS = ("masked_dense", "dense_best", "dense_compiled")


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per row: times, ratios with their intervals, peak memory."""

    def ratio(row: Mapping[str, Any], name: str) -> str:
        return str(timing.Estimate(*row["ratio"][name])) if name in row["ratio"] else "-"

    def ms(row: Mapping[str, Any], name: str) -> str:
        value = row["ms"].get(name)
        return "-" if value is None else f"{value:.{max(0, 2 - int(math.log10(value)))}f}"

    def memory(row: Mapping[str, Any], name: str) -> str:
        value = row.get("peak_bytes", {}).get(name)
        return "-" if value is None else f"{value / 1e6:.1f}"

    names = {name: name.replace("_", " ") for name in RIVALS}
    header = (
        "mode", "L", "channels", "batch", "threads", "sparse ms",
        *(f"{name} ms" for name in names.values()),
        *(f"{name} / sparse" for name in names.values()),
        "best by", "sparse MB", "masked dense MB",
    )  # fmt: skip
    lines = [
        (
            row["mode"] + (f" ({row['data']})" if "data" in row else ""),
            *(str(row[key]) for key in ("length", "in_channels", "batch", "threads")),
            *(ms(row, name) for name in ("sparse", *RIVALS)),
            *(ratio(row, name) for name in RIVALS),
            row.get("settings", {}).get("dense_best", "-"),
            *(memory(row, name) for name in ("sparse", "masked_dense")),
        )
        for row in rows
    ]
    shown = [i for i in range(len(header)) if any(line[i] != "-" for line in lines)]
    return Table(tuple(header[i] for i in shown), [tuple(line[i] for i in shown) for line in lines])


def parts_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Milliseconds per part of a call, the sparse and the masked dense network's."""
    calls = {
        f"{row['mode']}, L = {row['length']}, {row['threads']} thr., {name}": spent
        for row in rows
        for name, spent in row.get("parts", {}).items()
    }
    names = list(dict.fromkeys(part for spent in calls.values() for part in spent))
    return Table(
        ("ms", *names),
        [
            (call, *(f"{spent[name]:.3f}" if name in spent else "-" for name in names))
            for call, spent in calls.items()
        ],
    )
