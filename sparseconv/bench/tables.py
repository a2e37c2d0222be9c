"""What a benchmark found, as tables for a terminal or for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparseconv.bench.rivals import RIVALS
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate

Rows = Sequence[Mapping[str, Any]]


def rows_table(rows: Rows) -> Table:
    """One line per row: time, speed, shares, and each rival's time over the sparse one."""
    rivals = [name for name in RIVALS if any(name in row["ratio"] for row in rows)]
    header = (
        "case", "", "threads", "density", "ms", "GFLOP/s", "of peak", "of roof", "drift", *rivals
    )  # fmt: skip
    return Table(
        header,
        [
            (
                row["case"],
                row["computation"],
                str(row["threads"]),
                f"{row['density']:.1%}",
                f"{row['ms']['sparse']:.3f}",
                f"{row['gflops']:.1f}",
                _share(row["share_of_peak"]),
                _share(row["share_of_roof"]),
                f"{row['drift']:.2f}",
                *(
                    str(Estimate(*row["ratio"][name])) if name in row["ratio"] else "-"
                    for name in rivals
                ),
            )
            for row in rows
        ],
        text_columns=2,
    )


def peaks_table(peaks: Rows) -> Table:
    """The machine's own limits: GFLOP/s by where the operands lie, and the stream's GB/s."""
    names = ("fma_gflops", "l1_gflops", "l2_gflops", "stream_gbs")
    return Table(
        ("", "", "threads", "registers", "L1", "L2", "GB/s"),
        [
            (
                peak["isa"],
                peak["dtype"],
                str(peak["threads"]),
                *(f"{peak[name]:.0f}" for name in names),
            )
            for peak in peaks
        ],
        text_columns=2,
    )


def growth_table(fits: Rows) -> Table:
    """Exponents: time and memory grow like the quantity to this power."""
    return Table(
        ("grows with", "", "threads", "from", "to", "time", "95 % interval", "memory"),
        [
            (
                fit["quantity"],
                fit["computation"],
                str(fit["threads"]),
                str(fit["points"][0][0]),
                str(fit["points"][-1][0]),
                f"{fit['exponent']:.2f}",
                "[{:.2f}, {:.2f}]".format(*fit["exponent_range"]),
                f"{fit['memory_exponent']:.2f}",
            )
            for fit in fits
        ],
        text_columns=2,
    )


def absences(rows: Rows) -> list[str]:
    """Why rivals are missing: one line for each rival and reason, with the cases it concerns."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for rival, reason in row["absent"].items():
            cases = found.setdefault((rival, reason), [])
            if (name := f"{row['case']} {row['computation']}") not in cases:
                cases.append(name)
    return [
        f"{rival} is left out of {', '.join(cases)}: {reason}"
        for (rival, reason), cases in found.items()
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
