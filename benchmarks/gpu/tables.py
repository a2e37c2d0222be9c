"""What benchmarks.gpu found, as tables for a terminal and for the README."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseconv.measure import timing
from sparseconv.measure.table import Table

Document = Mapping[str, Any]
DENSE = ("dense", "channels last")  # how the names of forms by cuDNN begin
STEPS = ("cuda TF32 graph", "cuda TF32 graph with update", "dense TF32 graph")
PEAK = 67e12  # FLOP/s of an H200 in float32 multiply-adds; the share counts active weights only
NEVER_RUN = (
    "**On a GPU** nothing was ever run: no figure in this file is of one. "
    "`python -m benchmarks.gpu`, on a machine that has one, makes them all in one run, and the "
    "next `make docs` puts them here."
)


def what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the row times."""
    return row["part"], row["computation"], row["length"]


def times(found: Document) -> Table:
    """Compare each candidate of each row with the fastest one of its row."""
    lines = []
    for row in found["rows"]:
        where = (row["computation"], str(row["length"]))
        samples = {name: np.asarray(some) for name, some in row["samples_ms"].items()}
        median = {name: float(np.median(some)) for name, some in samples.items()}
        best = min(samples, key=lambda name: median[name], default="")
        for name in samples:
            share = f"{row['flop'] / median[name] * 1e3 / PEAK:.1%}" if row["flop"] else "-"
            lines.append(
                (*where, name, f"{median[name]:.4g}", share,
                 str(timing.ratio(samples, name, best)),
                 "-" if (error := row["error"][name]) is None else f"{error:.1e}")
            )  # fmt: skip
        lines += [(*where, name, *"---", _line(why)[:200]) for name, why in row["absent"].items()]
        if any(row["clocks"]):
            lines.append((*where, "before; after", *"---", "; ".join(row["clocks"])))
    header = ("", "L", "", "ms", "FFMA peak", "times the fastest", "error")
    return Table(header, lines, text_columns=3)


def layers(found: Document) -> Table:
    """Microseconds of each computation as a graph: sparse kernels, and the fastest dense form."""
    lines = []
    for row in sorted(found["rows"], key=lambda row: row["length"]):
        if row["part"] != "layer":
            continue
        us = {
            name.removesuffix(" graph"): 1e3 * float(np.median(some))
            for name, some in row["samples_ms"].items() if name.endswith(" graph")
        }  # fmt: skip
        dense = {
            kind: min((x for name, x in us.items()
                       if name.startswith(DENSE) and name.endswith(kind)), default=math.nan)
            for kind in ("fp32", "TF32", "bf16")
        }  # fmt: skip
        sparse = us.get("cuda fp32", math.nan)
        lines.append(
            (row["computation"], str(row["length"]), *(_us(us.get(f"{name} fp32", math.nan))
              for name in ("cuda", "triton")),
             *map(_us, dense.values()), _us(us.get("FFT fp32", math.nan)),
             f"{dense['fp32'] / sparse:.1f}", f"{dense['TF32'] / sparse:.1f}")
        )  # fmt: skip
    header = (
        "", "L", "CUDA", "Triton", "dense fp32", "dense TF32", "dense bf16", "FFT fp32",
        "dense fp32 / CUDA", "dense TF32 / CUDA",
    )  # fmt: skip
    return Table(header, lines)


def errors(found: Document) -> str:
    """The largest error of each precision, by the norm of float64."""
    largest = {
        kind: max((error for row in found["rows"] if row["part"] == "layer"
                   for name, error in row["error"].items() if error and test(name)), default=0)
        for kind, test in {
            "of the CUDA kernels": lambda name: name.startswith("cuda fp32"),
            "fp32": lambda name: "fp32" in name, "TF32": lambda name: "TF32" in name,
            "bf16": lambda name: "bf16" in name,
        }.items()
    }  # fmt: skip
    return "errors " + ", ".join(f"{kind} up to {x:.1e}" for kind, x in largest.items())


def steps(found: Document) -> Table:
    """Milliseconds of a training step as a graph."""
    lines = []
    for row in sorted(found["rows"], key=lambda row: row["length"]):
        if row["part"] != "step":
            continue
        samples = {name: np.asarray(some) for name, some in row["samples_ms"].items()}
        ratios = [
            str(timing.ratio(samples, STEPS[-1], name))
            if {name, STEPS[-1]} <= set(samples)
            else "-"
            for name in STEPS[:-1]
        ]
        ms = (f"{np.median(samples[name]):.3f}" if name in samples else "-" for name in STEPS)
        lines.append((str(row["length"]), *ms, *ratios))
    header = (
        "L", "sparse (CUDA)", "sparse, updated", "dense", "dense / sparse",
        "dense / sparse, updated",
    )  # fmt: skip
    return Table(header, lines, text_columns=0)


def _us(found: float) -> str:
    return "-" if math.isnan(found) else f"{found:.0f}"


def checks(found: Document) -> Table:
    lines = [
        (check["check"], "yes" if check["ok"] else "**no**", _line(check["result"])[-200:])
        for check in found["checks"]
    ]
    return Table(("check", "holds", ""), lines, text_columns=3)


def section(path: Path) -> list[str]:
    """The README's paragraphs on GPUs.

    Raises:
        ValueError: the file is of a trial on a CPU.
    """
    if not path.exists():
        return [NEVER_RUN]
    found: Document = json.loads(path.read_text())
    about = found["machine"]
    if about["device"] == "cpu":
        raise ValueError(f"{path} is of a trial on a CPU; run python -m benchmarks.gpu on a GPU")
    text = (
        f"**On a GPU.** `python -m benchmarks.gpu` on {about['device']}, torch "
        f"{about['torch']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}, {about['date']}, commit "
        f"{about['commit']}: the layer (47 → 141 channels, K = 39, 13.3 % active, N = 16). "
        f"Microseconds of a call in a CUDA graph of twenty, medians; {errors(found)}. "
        "Dense is the fastest of five forms, each by the fastest of cuDNN's algorithms that it "
        "tried."
    )
    about_steps = (
        "A training step of the whole network (N = 16) as a CUDA graph, in milliseconds. Updated: "
        "with its share of an update of the patterns every 50 steps. Dense: `nn.Conv1d` in the "
        "place of the sparse layers, no masks. cuDNN's convolutions round to TF32 in all, as is "
        "torch's default."
    )
    parts = [text, layers(found).markdown()]
    if (table := steps(found)).rows:
        parts += [about_steps, table.markdown()]
    return [*parts, checks(found).markdown()] if found["checks"] else parts


def _line(text: str) -> str:
    return " ".join(text.split())
