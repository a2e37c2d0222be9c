"""What the library promises of its speed, beside what a benchmark measured.

A goal is met by the worst of the rows that it speaks of, not by the best or the mean. Only goals
whose rows are in the document are judged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sparseconv.measure.table import Table

Row = Mapping[str, Any]
LARGE = (128, 512, 1024)


class Goal(NamedTuple):
    """One line of the table."""

    goal: str
    measured: str
    verdict: str  # "met", "missed by 7 %" or "stated"


def judge(document: Mapping[str, Any]) -> list[Goal]:
    """Compare a document of ``python -m sparseconv bench`` with the goals.

    Example:
        >>> judge({"rows": [], "network": []})
        []
    """
    rows = document["rows"]
    goals = [*_layer(rows), *_shapes(rows), *_density(rows), *_others(rows)]
    return [goal for goal in [*goals, *_network(document["network"])] if goal is not None]


def table(document: Mapping[str, Any]) -> Table:
    """The goals as a table."""
    return Table(("goal", "measured", "verdict"), judge(document), text_columns=3)


def _layer(rows: Sequence[Row]) -> Iterable[Goal | None]:
    layer = [row for row in rows if row["suite"] == "layer"]

    def some(computations: Sequence[str], lengths: Sequence[int]) -> list[Row]:
        return [r for r in layer if r["computation"] in computations and r["length"] in lengths]

    for computations, speed, share in ((("fprop", "dgrad"), 8, 0.8), (("wgrad",), 7.5, 0.7)):
        chosen, what = some(computations, LARGE), f"{', '.join(computations)}, L = 128-1024: "
        yield _least(f"{what}≥ {speed}x F.conv1d", chosen, speed, _ratio("conv1d"))
        yield _least(f"{what}≥ {share:.0%} of the FMA peak", chosen, share, _peak, "{:.0%}")
    every = ("fprop", "dgrad", "wgrad")
    yield _least("L = 24 and 2709: ≥ 7x F.conv1d", some(every, (24, 2709)), 7, _ratio("conv1d"))
    rival = "conv2d_channels_last"
    yield _least(
        "against channels_last conv2d: ≥ 6x", some(every, (24, *LARGE, 2709)), 6, _ratio(rival)
    )


def _shapes(rows: Sequence[Row]) -> Iterable[Goal | None]:
    batch = [row for row in rows if row["suite"] == "batch"]
    reference = {_conditions(row): _per_element(row) for row in batch if row["case"] == "batch_16"}

    def relative(row: Row) -> float | None:
        base = reference.get(_conditions(row))
        return None if base is None else _per_element(row) / base

    others = [row for row in batch if row["case"] != "batch_16"]
    yield _most(
        "N = 1, 2, 5, 17 and odd L: time per element ≤ 1.25x that of N = 16",
        others, 1.25, relative,
    )  # fmt: skip
    suites = {"options", "kernel", "channels"}
    options = [
        row
        for row in rows
        if row["suite"] in suites and row["density"] <= 0.3 and row["case"] != "tiny_module"
    ]
    if not suites <= {row["suite"] for row in rows}:
        return  # it speaks of all of them
    yield _least(
        "first layer, 1x1, stride, dilation, groups, K = 3-128, C = 1-512, density ≤ 30 %: "
        "never slower than F.conv1d",
        options, 1, _ratio("conv1d"),
    )  # fmt: skip


def _density(rows: Sequence[Row]) -> Iterable[Goal | None]:
    suite = [row for row in rows if row["suite"] == "density"]
    packing = {_conditions(row): _ms(row) for row in suite if row["case"] == "packing"}
    evolved = {_conditions(row): row for row in suite if row["case"] == "dsn_S80"}

    def beyond_linear(row: Row) -> float | None:
        pack, base = packing.get(_conditions(row)), evolved.get(_conditions(row))
        if pack is None or base is None:
            return None
        linear = (_ms(base) - pack) * float(row["nnz"] / base["nnz"])
        return (_ms(row) - pack) / linear

    weights = [row for row in suite if row["case"] not in ("packing", "dsn_S80")]
    yield _most(
        "S = 50, 90 % and uniform 2-100 %: time less the packing ≤ 1.3x nnz times that of a "
        "weight at 13 %",
        weights, 1.3, beyond_linear,
    )  # fmt: skip
    points: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in suite:
        if row["case"].startswith("uniform") and (ratio := _ratio("conv1d")(row)) is not None:
            points.setdefault(_conditions(row), []).append((row["density"], ratio))
    crossings = {key: break_even(found) for key, found in points.items()}
    known = {key: value for key, value in crossings.items() if value is not None}
    if known:
        worst = min(known, key=lambda key: known[key])
        value = known[worst]
        shown = "never below 100 %" if math.isinf(value) else f"{value:.0%}"
        yield Goal(
            "break-even with F.conv1d at a density ≥ 90 %",
            f"{shown} ({worst[0]}, {_threads(worst[1])})",
            _verdict(value / 0.9),
        )


def break_even(points: Iterable[tuple[float, float]]) -> float | None:
    """Density from which on dense is faster, of (density, ratio) points; infinite if never.

    Straight lines between the points, on a log axis of the ratio; None without points.

    Example:
        >>> break_even([(0.1, 8.0), (0.5, 2.0), (1.0, 0.5)])
        0.75
        >>> break_even([(0.1, 8.0), (1.0, 1.1)])
        inf
    """
    ordered = sorted(points)
    if not ordered:
        return None
    if ordered[0][1] < 1:
        return ordered[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(ordered):
        if y1 < 1:
            return x0 + (x1 - x0) * math.log(y0) / math.log(y0 / y1)
    return math.inf


def _others(rows: Sequence[Row]) -> Iterable[Goal | None]:
    forced = [
        r for r in rows
        if r["suite"] == "isa" and r["isa"] == "avx2" and r["computation"] == "fprop"
    ]  # fmt: skip
    yield _least("AVX2 forced, fprop: ≥ 75 % of its FMA peak", forced, 0.75, _peak, "{:.0%}")
    dtype = [row for row in rows if row["suite"] == "dtype"]
    wide = [row for row in dtype if row["dtype"] == "float64"]
    yield _least("float64: ≥ 7x F.conv1d in float64", wide, 7, _ratio("conv1d"))
    half = _least(
        "bfloat16, float16: stated",
        [row for row in dtype if row["dtype"] in ("bfloat16", "float16")], 0, _ratio("conv1d"),
    )  # fmt: skip
    yield half and half._replace(verdict="stated")
    tiny = [row for row in rows if row["case"] == "tiny_module"]

    def overhead(row: Row) -> float | None:
        ratio = _ratio("conv1d")(row)
        return None if ratio is None else 1 / ratio

    yield _most("a call at a tiny shape: ≤ 2x nn.Conv1d's", tiny, 2, overhead)


def _network(rows: Sequence[Row]) -> Iterable[Goal | None]:
    univariate = [
        row for row in rows if (row["model"], row["batch"], row["in_channels"]) == ("DSN", 16, 1)
    ]

    def extra_steps(row: Row) -> float | None:
        plain = _ratio("plain_step")(row)
        return None if plain is None else 1 / plain - 1

    update = [row for row in univariate if row["mode"] == "update" and row["length"] == 128]
    yield _most(
        "pattern update of a DSN, L = 128: a step with an update takes ≤ 2 steps longer than one "
        "without",
        update, 2, extra_steps, "{:.2f} steps",
    )  # fmt: skip
    for mode, what, targets in (
        ("train", "training step", {24: 3, 128: 5, 512: 6}),
        ("inference", "inference", {24: 3, 128: 6, 512: 7}),
    ):
        for length, target in targets.items():
            chosen = [r for r in univariate if r["mode"] == mode and r["length"] == length]
            label = f"DSN, {what}, L = {length}: ≥ {target}x masked dense"
            yield _least(label, chosen, target, _ratio("masked_dense"))


Value = Callable[[Row], float | None]


def _ratio(rival: str) -> Value:
    return lambda row: row["ratio"][rival][0] if rival in row["ratio"] else None


def _peak(row: Row) -> float | None:
    share: float | None = row["share_of_peak"]
    return share


def _ms(row: Row) -> float:
    return float(row["ms"]["sparse"])


def _per_element(row: Row) -> float:
    return _ms(row) / float(row["batch"] * row["output_length"])


def _conditions(row: Row) -> tuple[Any, ...]:
    return row["computation"], row["threads"], row["isa"]


def _least(
    goal: str, rows: Sequence[Row], target: float, value: Value, shown: str = "{:.2f}x"
) -> Goal | None:
    return worst_of(goal, _found(rows, value), target, shown)


def _most(
    goal: str, rows: Sequence[Row], target: float, value: Value, shown: str = "{:.2f}x"
) -> Goal | None:
    return worst_of(goal, _found(rows, value), target, shown, most=True)


def _found(rows: Sequence[Row], value: Value) -> list[tuple[float, str]]:
    """The rows that have the value, as it is and what it is of."""
    return [(number, _where(row)) for row in rows if (number := value(row)) is not None]


def _where(row: Row) -> str:
    name = row["case"] if "case" in row else f"L = {row['length']}"
    which = f"{name} {row['computation']}" if "computation" in row else name
    return f"{which}, {_threads(row['threads'])}"


def worst_of(
    goal: str,
    found: Sequence[tuple[float, str]],
    target: float,
    shown: str = "{:.2f}x",
    *,
    most: bool = False,
) -> Goal | None:
    """Judge by the worst of some values, each with what it is of; None if there are none.

    ``target`` is the least that all must reach, or with ``most`` the most that they may.

    Example:
        >>> worst_of("at least 4x", [(5.0, "a"), (3.0, "b")], 4)
        Goal(goal='at least 4x', measured='worst of 2: 3.00x (b)', verdict='missed by 25%')
    """
    if not found:
        return None
    number, where = (max if most else min)(found, key=lambda pair: pair[0])
    measured = f"{shown.format(number)} ({where})"
    if len(found) > 1:
        measured = f"worst of {len(found)}: {measured}"
    reached = target / max(number, 1e-9) if most else number / max(target, 1e-9)
    return Goal(goal, measured, _verdict(reached))


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _verdict(reached: float) -> str:
    return "met" if reached >= 1 else f"missed by {1 - reached:.0%}"
