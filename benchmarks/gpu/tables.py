"""What benchmarks.gpu found, as tables for a terminal and for the README."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseconv.measure import timing
from sparseconv.measure.table import Table

Document = Mapping[str, Any]
NEVER_RUN = (
    "**On a GPU** nothing was ever run: no figure in this file is of one. "
    "`python -m benchmarks.gpu`, on a machine that has one, makes them all in one run, and the "
    "next `python -m benchmarks.readme` puts them here."
)


def times(found: Document) -> Table:
    """Each candidate of each row, beside the fastest one of its row."""
    lines = []
    for row in found["rows"]:
        where = (row["computation"], str(row["length"]))
        samples = {name: np.asarray(some) for name, some in row["samples_ms"].items()}
        best = min(samples, key=lambda name: float(np.median(samples[name])), default="")
        lines += [
            (*where, name, f"{np.median(some):.4g}", str(timing.ratio(samples, name, best)),
             f"{row['error'][name]:.1e}")
            for name, some in samples.items()
        ]  # fmt: skip
        lines += [(*where, name, "-", _line(why), "-") for name, why in row["absent"].items()]
    return Table(("", "L", "", "ms", "times the fastest", "error"), lines, text_columns=3)


def predictions(found: Document) -> Table:
    """What ``benchmarks.gpu.predict`` found: microseconds that no GPU has measured."""
    lines = [
        (row["computation"], str(row["length"]), row["backend"], row["kernel"], f"{row['us']:.0f}",
         f"{row['ffma']:.0%}", f"{row['floor_us']:.1f}", row["limiter"])
        for row in sorted(found["rows"], key=lambda row: (row["length"], row["computation"]))
    ]  # fmt: skip
    header = ("", "L", "backend", "kernel", "µs, predicted", "FFMA", "µs, floor", "waits for")
    return Table(header, lines, text_columns=4)


def checks(found: Document) -> Table:
    lines = [
        (check["check"], "yes" if check["ok"] else "**no**", _line(check["result"]))
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
        f"**On a GPU.** One run of `python -m benchmarks.gpu` on {about['device']}, torch "
        f"{about['torch']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}, {about['date']}, commit "
        f"{about['commit']}: the layer (47 → 141 channels, K = 39, 13.3 % active, N = 16), and a "
        "training step of the network with its share of an update. Dense is cuDNN's fastest "
        "algorithm, or torch.compile's (reduce-overhead). Error: the norm of the difference to "
        "float64, by that of float64."
    )
    return [text, times(found).markdown(), checks(found).markdown()]


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
