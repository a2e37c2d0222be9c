"""What benchmarks/gpu.py found, as tables; and its goals, judged by their worst row."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import gpu_checks
from sparseconv.bench.goals import Goal, worst_of
from sparseconv.bench.tables import three_digits
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate, median_with_ci, ratio

Row = Mapping[str, Any]
Document = Mapping[str, Any]
PRECISIONS = ("fp32", "TF32", "bf16")
# What goals speak of: the layer at these lengths, ``(precision, computations, times faster)``.
LAYER_LENGTHS = (537, 2709)
LAYER_GOALS = (("fp32", ("fprop", "dgrad"), 4), ("TF32", ("fprop", "dgrad"), 1.2),
               ("fp32", ("wgrad",), 3))  # fmt: skip
STEP_GOALS = (
    ("N L ≤ 2500", 150, ("fp32", "TF32"), "eager", 4),
    ("N L ≤ 2500", 150, ("fp32", "TF32"), "graph", 1.3),
    ("L = 2709", 2709, ("fp32",), "graph", 2.5),
)
# What torch.compile makes has CUDA graphs: it is a rival of graphed kernels.
DENSE_IS = {"graph": "graph or compiled", "eager": "eager"}
NEVER_RUN = (
    "**On a GPU** nothing was ever run: no figure in this file is of one. "
    "`python -m benchmarks.gpu`, on a machine that has one, makes them all in one run of at most "
    "ten minutes, and the next `python -m benchmarks.readme` puts them here."
)


class Place(NamedTuple):
    """Where candidates are compared."""

    computation: str
    length: int
    precision: str  # of dense


class Rival(NamedTuple):
    """The fastest dense form of a row, and how many times faster the sparse candidate is."""

    name: str
    row: Row
    candidate: str
    times: Estimate


def faster(row: Row, slow: str, fast: str) -> Estimate | None:
    """How many times faster one candidate is than another; None where one is missing."""
    times = {n: np.asarray(row["samples_ms"].get(n, ())) for n in (slow, fast)}
    if not all(map(len, times.values())):
        return None
    return ratio(times, slow, fast)


def median(row: Row, name: str) -> float | None:
    samples = row["samples_ms"].get(name)
    return median_with_ci(samples).median if samples else None


def of_kind(found: Document, kind: str) -> list[Row]:
    return [row for row in found["rows"] if row["kind"] == kind]


def kernel_of(found: Document) -> str:
    return "cpp" if found["machine"]["device"] == "cpu" else "cuda"


def goals(found: Document) -> list[Goal]:
    """All goals; without all that one speaks of it is not met, and a CPU meets none."""
    kernel, made = kernel_of(found), []
    for mode in ("graph", "eager"):
        for precision, computations, factor in LAYER_GOALS:
            parts: dict[str, list[Value]] = {}
            for computation, length in itertools.product(computations, LAYER_LENGTHS):
                place, named = Place(computation, length, precision), f"{computation}, L = {length}"
                parts |= _values(found, "layer", place, mode, f"{kernel} fp32 {mode}", named)
            made.append(
                _judged(
                    f"{', '.join(computations)}, L = 537 and 2709, {mode}: ≥ {factor}x the fastest "
                    f"dense {precision}, {DENSE_IS[mode]}",
                    parts,
                    factor,
                )
            )
    for what, length, precisions, mode, factor in STEP_GOALS:
        parts = {}
        for precision in precisions:
            place, named = Place("training step", length, precision), f"L = {length}, {precision}"
            parts |= _values(found, "step", place, mode, f"{kernel} {precision} graph", named)
        made.append(
            _judged(
                f"training step, {what}, graphed: ≥ {factor}x dense {' and '.join(precisions)}, "
                f"{DENSE_IS[mode]}",
                parts,
                factor,
            )
        )
    bits = [
        f"{kernel}, L = {length}: {what}"
        for length in gpu_checks.LENGTHS
        for what in (gpu_checks.OVER_RUNS, gpu_checks.ON_STREAMS, gpu_checks.REPLAYED)
    ]
    what = "the same bits over 100 runs, on streams, in 1000 replays"
    made.append(_checked(what, found["checks"], bits))
    # Triton's kernels too, unless its part said that they cannot run.
    without = any(check["check"] == "triton" for check in found["checks"])
    kernels = (kernel,) if without else (kernel, "triton")
    for tool in gpu_checks.SANITIZERS:
        names = [f"{tool}, {name}" for name in kernels]
        made.append(_checked(f"compute-sanitizer {tool}: clean", found["checks"], names))
    if kernel == "cpp":
        return [
            goal if goal.verdict == "not run" else goal._replace(verdict="a trial on a CPU")
            for goal in made
        ]
    return made


def is_goal(length: int, precision: str, computation: str) -> bool:
    """Whether a goal speaks of this row of the layer."""
    return length in LAYER_LENGTHS and any(
        precision == spoken and computation in computations
        for spoken, computations, _ in LAYER_GOALS
    )


def rivals(found: Document, kind: str, place: Place, mode: str, sparse: str) -> list[list[Rival]]:
    """Dense at its fastest in the rows of a place, in this mode; for graphs, compiled as well."""
    sources = [(kind, mode)] + [("compiled", "compiled")] * (mode == "graph")
    return [
        [
            rival
            for row in of_kind(found, kind)
            if (row["computation"], row["length"]) == place[:2]
            for rival in _fastest(row, place.precision, dense_mode, sparse)
        ]
        for kind, dense_mode in sources
    ]


def _fastest(row: Row, precision: str, mode: str, sparse: str) -> Iterator[Rival]:
    """The dense form that takes least, if the row has one, and the sparse candidate."""
    forms = [
        name
        for name, samples in row["samples_ms"].items()
        if name.startswith("dense") and name.endswith(f" {precision} {mode}") and samples
    ]
    form = min(forms, key=lambda name: median(row, name) or 0, default="")
    times = faster(row, form, sparse)
    if times is not None:
        name = form.removesuffix(f" {precision} {mode}")
        yield Rival(name + " compiled" * (mode == "compiled"), row, form, times)


Value = tuple[float, str]


def _values(
    found: Document, kind: str, place: Place, mode: str, sparse: str, named: str
) -> dict[str, list[Value]]:
    """What a goal is judged by at one place: of each kind of rivals there must be one."""
    names = (named, f"{named}, compiled")
    return {
        name: [(rival.times.median, f"{named}, beside {rival.name}") for rival in some]
        for name, some in zip(names, rivals(found, kind, place, mode, sparse), strict=False)
    }


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
    for row, precision in itertools.product(of_kind(found, "layer"), PRECISIONS):
        place, cells = Place(row["computation"], row["length"], precision), []
        for mode in ("graph", "eager"):
            sparse = f"{kernel} fp32 {mode}"
            some = itertools.chain(*rivals(found, "layer", place, mode, sparse))
            best = min(some, key=lambda rival: rival.times.median, default=None)
            if best is None:
                cells += [_ms(median(row, sparse)), "-", "-", "-"]
            else:
                form = best.name.removeprefix("dense").strip() or "as it is"
                times = (median(best.row, name) for name in (sparse, best.candidate))
                cells += [*map(_ms, times), form, str(best.times)]
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
        "taps; beside graphs, each of them also as torch.compile (reduce-overhead) makes it. All "
        "samples are in [gpu.json](benchmarks/results/gpu.json)."
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
