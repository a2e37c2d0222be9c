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
PREDICTED = Path(__file__).parents[1] / "results" / "gpu-predicted.json"
PEAK = 67e12  # FLOP/s of an H200 in float32 multiply-adds; the share counts active weights only
NEVER_RUN = (
    "**On a GPU** nothing was ever run: no figure in this file is of one. "
    "`python -m benchmarks.gpu`, on a machine that has one, makes them all in one run, and the "
    "next `make docs` puts them here."
)
PREDICTION = (
    "**Predicted, not measured**: `python -m benchmarks.gpu.predict` replays the kernels' machine "
    "code for an H200 clock by clock, the layer (47 → 141 channels, K = 39, 13.3 % active, N = 16) "
    "on its first multiprocessor; uncertain by about 30 %. FFMA: of all instructions. Floor: "
    "67 TFLOP/s of active weights."
)


def read(path: Path = PREDICTED) -> Document:
    """A file of results; no rows where there is none."""
    found: Document = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return found


def what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the row times."""
    return row["part"], row["computation"], row["length"]


def times(found: Document, model: Document) -> Table:
    """Each candidate of each row, beside the fastest one of its row and what was predicted."""
    guesses = {
        (row["computation"], row["length"], f"{row['backend']} fp32"): f"{row['us'] / 1e3:.4g}"
        for row in model["rows"]
    }
    lines = []
    for row in found["rows"]:
        where = (row["computation"], str(row["length"]))
        samples = {name: np.asarray(some) for name, some in row["samples_ms"].items()}
        median = {name: float(np.median(some)) for name, some in samples.items()}
        best = min(samples, key=lambda name: median[name], default="")
        for name in samples:
            share = f"{row['flop'] / median[name] * 1e3 / PEAK:.1%}" if row["flop"] else "-"
            guess = guesses.get((row["computation"], row["length"], name.rpartition(" ")[0]), "-")
            lines.append(
                (*where, name, f"{median[name]:.4g}", guess, share,
                 str(timing.ratio(samples, name, best)),
                 "-" if (error := row["error"][name]) is None else f"{error:.1e}")
            )  # fmt: skip
        lines += [(*where, name, *"----", _line(why)[:200]) for name, why in row["absent"].items()]
        if any(row["clocks"]):
            lines.append((*where, "before; after", *"----", "; ".join(row["clocks"])))
    header = ("", "L", "", "ms", "ms, predicted", "FFMA peak", "times the fastest", "error")
    return Table(header, lines, text_columns=3)


def predictions(model: Document) -> Table:
    """What ``benchmarks.gpu.predict`` found: microseconds that no GPU has measured."""
    lines = [
        (row["computation"], str(row["length"]), row["backend"], row["kernel"], f"{row['us']:.0f}",
         f"{row['ffma']:.0%}", f"{row['floor_us']:.1f}", row["limiter"])
        for row in sorted(model["rows"], key=lambda row: row["length"])
    ]  # fmt: skip
    header = ("", "L", "backend", "kernel", "µs, predicted", "FFMA", "µs, floor", "waits for")
    return Table(header, lines, text_columns=4)


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
    model = read(path.with_name(PREDICTED.name))
    if not path.exists():
        return [NEVER_RUN, *([PREDICTION, predictions(model).markdown()] if model["rows"] else [])]
    found = read(path)
    about = found["machine"]
    if about["device"] == "cpu":
        raise ValueError(f"{path} is of a trial on a CPU; run python -m benchmarks.gpu on a GPU")
    text = (
        f"**On a GPU.** One run of `python -m benchmarks.gpu` on {about['device']}, torch "
        f"{about['torch']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}, {about['date']}, commit "
        f"{about['commit']}: the layer (47 → 141 channels, K = 39, 13.3 % active, N = 16), and a "
        "training step of the network with its share of an update. Dense is cuDNN's fastest "
        "algorithm; compiled: torch.compile, reduce-overhead. Error: the norm of the difference to "
        "float64, by that of float64."
    )
    shown = {"rows": [row for row in found["rows"] if row["part"] in ("layer", "step")]}
    return [text, times(shown, model).markdown(), checks(found).markdown()]


def _line(text: str) -> str:
    return " ".join(text.split())
