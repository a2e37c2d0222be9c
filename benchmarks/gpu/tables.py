"""Tables of what benchmarks.gpu measured, for a terminal and the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparseconv.measure import timing
from sparseconv.measure.table import Table

Row = Mapping[str, Any]
DENSE = ("dense", "channels last")  # how the names of forms by cuDNN begin
STEPS = ("cuda TF32 graph", "cuda TF32 graph with update", "dense TF32 graph")


def times(row: Row) -> Table:
    """Compare each candidate of a row with the fastest."""
    samples = {name: np.asarray(some) for name, some in row["samples_ms"].items()}
    median = {name: float(np.median(some)) for name, some in samples.items()}
    best = min(median, key=lambda name: median[name], default="")
    lines = [
        (name, f"{median[name]:.4g}", str(timing.ratio(samples, name, best)),
         "-" if (error := row["error"][name]) is None else f"{error:.1e}")
        for name in samples
    ]  # fmt: skip
    lines += [(name, "-", "-", " ".join(why.split())[:200]) for name, why in row["absent"].items()]
    return Table(
        (f"{row['computation']}, {row['length']}", "ms", "times the fastest", "error"), lines
    )


def layers(rows: Sequence[Row]) -> Table:
    """List the microseconds of each computation in a graph: sparse, and the fastest dense form."""
    lines = []
    for row in _of(rows, "layer"):
        us = {name: 1e3 * float(np.median(some)) for name, some in row["samples_ms"].items()}
        shown = {"CUDA": us["cuda fp32 graph"], "Triton": us["triton fp32 graph"]}
        for kind in ("fp32", "TF32", "bf16"):
            graphs = (name for name in us if name.endswith(f"{kind} graph"))
            shown[f"dense {kind}"] = min(us[name] for name in graphs if name.startswith(DENSE))
        shown["FFT fp32"] = us["FFT fp32 graph"]
        times = {name: f"{x:.0f}" for name, x in shown.items()}
        ratios = {
            f"{name} / CUDA": f"{shown[name] / shown['CUDA']:.1f}"
            for name in ("dense fp32", "dense TF32")
        }
        lines.append({"": row["computation"], "L": str(row["length"]), **times, **ratios})
    return Table.of(lines)


def errors(rows: Sequence[Row]) -> str:
    """Describe each precision's largest error, relative to the norm of the float64 result."""
    kinds = {"of the CUDA kernels": "cuda fp32", "fp32": "fp32", "TF32": "TF32", "bf16": "bf16"}
    found = [(name, error) for row in rows for name, error in row["error"].items() if error]
    largest = {
        kind: max(error for name, error in found if text in name) for kind, text in kinds.items()
    }
    return "errors " + ", ".join(f"{kind} up to {x:.1e}" for kind, x in largest.items())


def steps(rows: Sequence[Row]) -> Table:
    """List the milliseconds of a training step that runs as a graph."""
    lines = []
    for row in _of(rows, "step"):
        samples = {name: np.asarray(row["samples_ms"][name]) for name in STEPS}
        ms = (f"{np.median(some):.3f}" for some in samples.values())
        ratios = (str(timing.ratio(samples, STEPS[-1], name)) for name in STEPS[:-1])
        lines.append((str(row["length"]), *ms, *ratios))
    header = (
        "L", "sparse (CUDA)", "sparse, updated", "dense", "dense / sparse",
        "dense / sparse, updated",
    )  # fmt: skip
    return Table(header, lines, text_columns=0)


def checks(found: Sequence[Mapping[str, Any]]) -> Table:
    """List which checks pass, with the lines of their output that say how many did."""
    telling = re.compile(r"^=*.*(SUMMARY|\d passed|^Of ).*", re.MULTILINE)
    lines = []
    for check in found:
        says = [line[0].strip("= .") for line in telling.finditer(check["result"])]
        says = says or check["result"].splitlines()[-1:]
        lines.append((check["check"], "yes" if check["ok"] else "**no**", ". ".join(says)))
    return Table(("check", "passed", ""), lines, text_columns=3)


def about(found: Mapping[str, Any]) -> str:
    """Describe the machine of a recorded file, and the errors of its layers."""
    where = found["machine"]
    return (
        f"`python -m benchmarks.gpu` on {where['device']}, torch {where['torch']}, CUDA "
        f"{where['cuda']}, cuDNN {where['cudnn']}, {where['date']}, commit {where['commit']}. "
        f"In single layers: {errors(_of(found['rows'], 'layer'))}."
    )


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return sorted((row for row in rows if row["part"] == part), key=lambda row: row["length"])
