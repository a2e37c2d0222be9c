"""What benchmarks/gpu.py found, as tables; and its goals, judged by their worst row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_checks
from benchmarks.readme_tables import three_digits
from sparseconv.bench.goals import Goal, worst_of
from sparseconv.bench.timing import Interval, interval, ratio
from sparseconv.report import Table

Row = Mapping[str, Any]
Document = Mapping[str, Any]
PRECISIONS = ("fp32", "TF32", "bf16")
# The lengths that goals speak of.
LAYER_LENGTHS = (537, 2709)
SHORT, LONG = 150, 2709
NEVER_RUN = (
    "**On a GPU** nothing was ever run: no figure in this file is of one. "
    "`python -m benchmarks.gpu`, on a machine that has one, makes them all in one run of at most "
    "ten minutes, and the next `python -m benchmarks.readme` puts them here."
)


def faster(row: Row, slow: str, fast: str) -> Interval | None:
    """How many times faster one candidate is than another; None where one is missing."""
    times = {n: np.asarray(row["samples_ms"].get(n, ())) for n in (slow, fast)}
    if not all(map(len, times.values())):
        return None
    return ratio(times, slow, fast)


def median(row: Row, name: str) -> float | None:
    samples = row["samples_ms"].get(name)
    return interval(samples).median if samples else None


def fastest(row: Row, precision: str, mode: str) -> str | None:
    """The dense form that takes least."""
    ending = f" {precision} {mode}"
    forms = {
        name: interval(samples).median
        for name, samples in row["samples_ms"].items()
        if name.startswith("dense") and name.endswith(ending)
    }
    return min(forms, key=lambda name: forms[name]).removesuffix(ending) if forms else None


def of_kind(found: Document, kind: str) -> list[Row]:
    return [row for row in found["rows"] if row["kind"] == kind]


def kernel_of(found: Document) -> str:
    return "cpp" if found["machine"]["device"] == "cpu" else "cuda"


def goals(found: Document) -> list[Goal]:
    """All goals; without all that one speaks of it is not met, and a CPU meets none."""
    kernel, judged = kernel_of(found), []
    layer, step = of_kind(found, "layer"), of_kind(found, "step")
    for mode in ("graph", "eager"):
        for precision, computations, factor in (
            ("fp32", ("fprop", "dgrad"), 4), ("TF32", ("fprop", "dgrad"), 1.2),
            ("fp32", ("wgrad",), 3),
        ):  # fmt: skip
            judged.append(
                _judged(
                    f"{', '.join(computations)}, L = 537 and 2709, {mode}: ≥ {factor}x the fastest "
                    f"dense {precision}",
                    {
                        f"{computation}, L = {length}": _beside_fastest(
                            [r for r in layer if r["computation"] == computation],
                            length, kernel, precision, mode,
                        )
                        for computation in computations
                        for length in LAYER_LENGTHS
                    },
                    factor,
                )
            )  # fmt: skip
    for what, length, precisions, mode, factor in (
        ("N L ≤ 2500", SHORT, ("fp32", "TF32"), "eager", 4),
        ("N L ≤ 2500", SHORT, ("fp32", "TF32"), "graph", 1.3),
        ("L = 2709", LONG, ("fp32",), "graph", 2.5),
    ):
        judged.append(
            _judged(
                f"training step, {what}, graphed: ≥ {factor}x dense {' and '.join(precisions)}, "
                f"{'graphed' if mode == 'graph' else 'eager'}",
                {
                    f"L = {length}, {precision}": _beside_dense(
                        step, length, kernel, precision, mode
                    )
                    for precision in precisions
                },
                factor,
            )
        )
    bits = [
        f"{kernel}, L = {length}: {what}"
        for length in gpu_checks.LENGTHS
        for what in (gpu_checks.OVER_RUNS, gpu_checks.ON_STREAMS, gpu_checks.REPLAYED)
    ]
    what = "the same bits over 100 runs, on streams, in 1000 replays"
    judged.append(_checked(what, found["checks"], bits))
    # Triton's kernels too, unless its part said that they cannot run.
    without = any(check["check"] == "triton" for check in found["checks"])
    kernels = (kernel,) if without else (kernel, "triton")
    for tool in gpu_checks.SANITIZERS:
        names = [f"{tool}, {name}" for name in kernels]
        judged.append(_checked(f"compute-sanitizer {tool}: clean", found["checks"], names))
    if kernel == "cpp":
        return [
            goal if goal.verdict == "not run" else goal._replace(verdict="a trial on a CPU")
            for goal in judged
        ]
    return judged


Value = tuple[float, str]


def _beside_fastest(
    rows: Iterable[Row], length: int, kernel: str, precision: str, mode: str
) -> Iterator[Value]:
    for row in rows:
        form = fastest(row, precision, mode)
        times = form and faster(row, f"{form} {precision} {mode}", f"{kernel} fp32 {mode}")
        if times and row["length"] == length:
            yield times.median, f"{row['computation']}, L = {length}, beside {form}"


def _beside_dense(
    rows: Iterable[Row], length: int, kernel: str, precision: str, mode: str
) -> Iterator[Value]:
    for row in rows:
        times = faster(row, f"dense {precision} {mode}", f"{kernel} {precision} graph")
        if times and row["length"] == length:
            yield times.median, f"L = {length}, {precision}"


def _judged(goal: str, parts: Mapping[str, Iterable[Value]], target: float) -> Goal:
    """Judge by the worst value of any part; each part must have some."""
    found = {name: list(values) for name, values in parts.items()}
    judged = worst_of(goal, [value for values in found.values() for value in values], target)
    if judged is None:
        return Goal(goal, "not measured", "not run")
    return _unless_missing(judged, [name for name, values in found.items() if not values])


def _checked(goal: str, checks: Sequence[Row], names: Sequence[str]) -> Goal:
    """Judge by the checks of these names; each must have been made."""
    mine = [check for check in checks if check["check"] in names]
    known = {check["check"]: check for check in mine if check["ok"] is not None}
    bad = [name for name, check in known.items() if not check["ok"]]
    missing = [name for name in names if name not in known]
    if bad:
        return Goal(goal, f"not so: {', '.join(bad)}", "missed")
    if not known:
        why = next((check["result"] for check in mine), "not measured")
        return Goal(goal, why, "not run")
    measured = "; ".join(check["result"] for check in known.values())
    return _unless_missing(Goal(goal, measured, "met"), missing)


def _unless_missing(goal: Goal, missing: Sequence[str]) -> Goal:
    """What is missing may not meet a goal, but cannot mend one that is missed."""
    if not missing:
        return goal
    measured = f"{goal.measured}; missing: {', '.join(missing)}"
    return Goal(goal.goal, measured, "not finished" if goal.verdict == "met" else goal.verdict)


def layer_table(found: Document) -> Table:
    """The layer, beside the fastest dense form at each precision."""
    kernel, lines = kernel_of(found), []
    for row in of_kind(found, "layer"):
        for precision in PRECISIONS:
            cells = []
            for mode in ("graph", "eager"):
                form = fastest(row, precision, mode)
                sparse, dense = f"{kernel} fp32 {mode}", f"{form} {precision} {mode}"
                cells += [
                    _ms(median(row, sparse)), _ms(median(row, dense)),
                    (form or "-").removeprefix("dense ") if form != "dense" else "as it is",
                    str(faster(row, dense, sparse) or "-"),
                ]  # fmt: skip
            errors = row["error"].get(f"{kernel} fp32"), row["error"].get(f"dense {precision}")
            lines.append(
                (row["computation"], str(row["length"]), precision, *cells, *map(_error, errors))
            )
    header = (
        "", "L", "dense", "graph: sparse ms", "dense ms", "(form)", "faster",
        "eager: sparse ms", "dense ms", "(form)", "faster", "sparse error", "dense error",
    )  # fmt: skip
    return Table(header, lines, text_columns=3)


def every_time(found: Document, kinds: Sequence[str]) -> Table:
    """Each candidate of these kinds of rows, beside the fastest one of its row."""
    lines = []
    for row in (row for kind in kinds for row in of_kind(found, kind)):
        best = min(row["samples_ms"], key=lambda name: median(row, name) or 0, default=None)
        for name in row["samples_ms"]:
            error = row["error"].get(name) or row["error"].get(name.rpartition(" ")[0])
            lines.append(
                (row["computation"], str(row["length"]), name, _ms(median(row, name)),
                 str(faster(row, name, best or name)), _error(error))
            )  # fmt: skip
        for name, why in row.get("absent", {}).items():
            lines.append((row["computation"], str(row["length"]), name, "-", why, "-"))
    return Table(("", "L", "", "ms", "times the fastest", "error"), lines, text_columns=3)


def checks_table(found: Document) -> Table:
    words = {True: "yes", False: "**no**", None: "not known"}
    lines = [(c["check"], words[c["ok"]], " ".join(c["result"].split())) for c in found["checks"]]
    return Table(("check", "holds", ""), lines, text_columns=3)


def parts_table(found: Document) -> Table:
    lines = [
        (name, part["state"], f"{part['seconds']:.0f}", str(part["limit"]),
         " ".join(part["why"].split())[-200:])
        for name, part in found["parts"].items()
    ]  # fmt: skip
    return Table(("part", "", "s", "limit", "why"), lines, text_columns=2)


def goals_table(found: Document) -> Table:
    return Table(("goal", "measured", "verdict"), goals(found), text_columns=3)


def report(found: Document) -> list[str]:
    """Everything, for a terminal; what matters most last."""
    tables = (
        every_time(found, ("layer", "triton", "kernels", "compiled", "step", "train")),
        layer_table(found), checks_table(found), parts_table(found), goals_table(found),
    )  # fmt: skip
    return [table.markdown() for table in tables if table.rows]


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
    parts = [
        f"**On a GPU.** One run of `python -m benchmarks.gpu` on {about['device']}, torch "
        f"{about['torch']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}, {about['date']}, commit "
        f"{about['commit']}. Candidates take turns; times are medians, ratios those of the pairs "
        "with their 95 % bootstrap interval. *Error*: the norm of the difference to float64, by "
        "that of float64. *Dense* is cuDNN's fastest algorithm (benchmark mode) for the fastest of "
        "three forms: as it is, with channels padded to 48/144, as three slices of 13, 26 and 39 "
        "taps. All samples are in [gpu.json](benchmarks/results/gpu.json)."
    ]
    for text, table in (
        ("**The layer**, 47 → 141 channels, K = 39, 13.3 % active, N = 16.", layer_table(found)),
        (
            "**A training step** of the whole network on 16 series: 50 steps and one update of the "
            "patterns, by 50; dense trains every tap, without masks. Error: of all gradients.",
            every_time(found, ("step",)),
        ),
        (
            "**An epoch** of `train()`, 10 batches of 16, under PyTorch's defaults.",
            every_time(found, ("train",)),
        ),
        ("**Other kernels**: Triton's, each CUDA kernel forced, dense compiled.",
         every_time(found, ("triton", "kernels", "compiled"))),
        ("**Checks.**", checks_table(found)),
        ("**Goals on a GPU**, each judged by the worst of its rows.", goals_table(found)),
        ("**What was not finished.**", _unfinished(found)),
    ):  # fmt: skip
        if table.rows:
            parts += [text, table.markdown()]
    return parts


def _unfinished(found: Document) -> Table:
    left = {name: part for name, part in found["parts"].items() if part["state"] != "done"}
    return parts_table({"parts": left})


def _ms(value: float | None) -> str:
    return "-" if value is None else three_digits(value)


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
