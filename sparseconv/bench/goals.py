"""The goals of the library's speed, judged by what a benchmark measured.

A goal is met by the worst of its rows, not by the best or the mean. Only goals whose rows are in
the document are judged; what a whole run measures of networks, of the kernels' own order and of
random kernels is what the tables below name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sparseconv.bench.document import BEST, Row, ratio
from sparseconv.bench.run import COMPUTATIONS
from sparseconv.measure.table import threads_text

LARGE = (128, 512, 1024)
Value = Callable[[Row], float | None]

# Shares of the FMA peak by length: of fprop, dgrad and wgrad, on one thread.
SHARES = {24: (0.66, 0.60, 0.60), 128: (0.72, 0.70, 0.69), 512: (0.71, 0.70, 0.69)}
OWN_ORDER = {24: (0.80, 0.72, 0.75), 128: (0.82, 0.77, 0.77), 512: (0.81, 0.78, 0.75)}
# Of the network, by length: on one thread and on two.
NETWORK: Mapping[tuple[str, str], Mapping[int, tuple[float, float]]] = {
    ("train", "masked_dense"): {24: (8, 6), 128: (6.8, 6.2), 512: (6.3, 6)},
    ("train", BEST): {24: (6, 4.5), 128: (5.2, 5), 512: (5, 5)},
    ("inference", "masked_dense"): {24: (9, 7), 128: (8, 7), 512: (7.5, 7)},
    ("latency", BEST): {24: (4, 2.5), 128: (7, 5), 512: (6, 5)},
}
MODES = {
    "train": "training step",
    "update": "… with an update",
    "inference": "inference",
    "latency": "latency",
}
# Times masked dense on one thread, of a training step at (batch, length, channels).
RECIPE: Mapping[tuple[int, int, int], float] = {
    (5, 150, 1): 6.6, (6, 24, 1): 5.2, (3, 251, 1): 6.5, (10, 1460, 1): 6.4, (2, 80, 1): 5,
    (16, 29, 12): 8,
}  # fmt: skip
# Times aeon on one thread, by kind and (batch, channels, length).
RANDOM_KERNELS: Mapping[str, Mapping[tuple[int, int, int], float]] = {
    "rocket": {
        (96, 1, 150): 45, (96, 1, 500): 45, (96, 1, 1500): 45, (96, 6, 200): 55, (1, 1, 150): 40,
        (1, 1, 1500): 30,
    },
    "minirocket": {
        (96, 1, 150): 5, (96, 1, 1500): 3.5, (96, 6, 200): 8, (1, 1, 150): 2.5, (1, 1, 1500): 2.5,
    },
}  # fmt: skip


class Goal(NamedTuple):
    """One line of the table."""

    goal: str
    measured: str
    verdict: str  # "met", "missed by 7%" or "stated"


def judge(document: Mapping[str, Any]) -> list[Goal]:
    """Compare a document of ``python -m sparseconv bench`` with the goals.

    Example:
        >>> judge({"rows": [], "network": []})
        []
    """
    rows = document["rows"]
    own = document.get("own_order", ())
    found = (_layer(rows), _order(own), _shapes(rows), _density(rows), _others(rows))
    kernels = _random_kernels(document.get("random_kernels", ()))
    return [*itertools.chain(*found, _network(document["network"]), kernels)]


def _layer(rows: Sequence[Row]) -> Iterator[Goal]:
    layer = _suite(rows, "layer")
    for computations, speed in ((("fprop", "dgrad"), 8), (("wgrad",), 7.5)):
        some = [r for r in layer if r["computation"] in computations and r["length"] in LARGE]
        what = f"{', '.join(computations)}, L = 128-1024: "
        yield from _worst(f"{what}≥ {speed}x F.conv1d", some, speed, _over("conv1d"))
    evolved = [row for row in layer if row["case"].startswith("dsn_evolved")]
    yield from _shares(evolved, SHARES, "of the FMA peak")
    ends = [row for row in layer if row["length"] in (24, 2709)]
    yield from _worst("L = 24 and 2709: ≥ 7x F.conv1d", ends, 7, _over("conv1d"))
    last = _over("conv2d_channels_last")
    yield from _worst("every L: ≥ 6x conv2d in channels_last", layer, 6, last)
    yield from _worst("every L: ≥ 3x the fastest baseline", layer, 3, _over())


def _order(rows: Sequence[Row]) -> Iterator[Goal]:
    yield from _shares(rows, OWN_ORDER, "of it in the kernels' own order")


def _shares(
    rows: Sequence[Row], targets: Mapping[int, Sequence[float]], what: str
) -> Iterator[Goal]:
    for length, wanted in targets.items():
        mine = {
            row["computation"]: row["share_of_peak"]
            for row in rows
            if (row["length"], row["threads"]) == (length, 1)
        }
        shown = ", ".join(
            f"{name} {share:.0%}" for name, share in zip(COMPUTATIONS, wanted, strict=True)
        )
        found = [mine.get(name) for name in COMPUTATIONS]
        yield from _each(f"L = {length}, one thread: {shown} {what}", found, wanted, "{:.0%}")


def _shapes(rows: Sequence[Row]) -> Iterator[Goal]:
    batch = _suite(rows, "batch")
    reference = {_conditions(row): _per_element(row) for row in batch if row["case"] == "batch_16"}
    yield from _worst(
        "N = 1, 2, 5, 17 and odd L: time per element ≤ 1.25x that of N = 16",
        [row for row in batch if row["case"] != "batch_16" and _conditions(row) in reference],
        1.25, lambda row: _per_element(row) / reference[_conditions(row)], most=True,
    )  # fmt: skip
    suites = [_suite(rows, name) for name in ("options", "kernel", "channels")]
    if all(suites):  # the goal is about all of them
        timed = [
            row for row in itertools.chain(*suites)
            if row["density"] <= 0.3 and row["case"] != "tiny_module"
        ]  # fmt: skip
        what = "first layer, 1x1, stride, dilation, groups, K = 3-128, C = 1-512, density ≤ 30 %: "
        yield from _worst(f"{what}never slower than F.conv1d", timed, 1, _over("conv1d"))
        yield from _worst(f"{what}never slower than any baseline", timed, 1, _over())


def _density(rows: Sequence[Row]) -> Iterator[Goal]:
    suite = _suite(rows, "density")
    packing = {_conditions(row): _ms(row) for row in suite if row["case"] == "packing"}
    evolved = {_conditions(row): row for row in suite if row["case"] == "dsn_S80"}

    def beyond_linear(row: Row) -> float:
        pack, base = packing[_conditions(row)], evolved[_conditions(row)]
        return (_ms(row) - pack) / ((_ms(base) - pack) * float(row["nnz"] / base["nnz"]))

    both = packing.keys() & evolved.keys()
    yield from _worst(
        "S = 50, 90 % and uniform 2-100 %: time less the packing ≤ 1.3x nnz times that of a "
        "weight at 13 %",
        [r for r in suite if r["case"] not in ("packing", "dsn_S80") and _conditions(r) in both],
        1.3, beyond_linear, most=True,
    )  # fmt: skip
    for against, target, name in (
        ("F.conv1d", 0.9, "conv1d"),
        ("the fastest baseline", 0.5, BEST),
    ):
        if crossing := lowest_break_even(rows, name):
            density, where = crossing
            shown = "never below 100 %" if math.isinf(density) else f"{density:.0%}"
            goal = f"break-even with {against} at a density ≥ {target:.0%}"
            yield Goal(goal, f"{shown} ({where})", _verdict(1 - density / target))


def lowest_break_even(rows: Iterable[Row], baseline: str) -> tuple[float, str] | None:
    """The lowest break-even density over computations and threads, and where it is."""
    points: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in _suite(rows, "density"):
        if row["case"].startswith("uniform") and (found := ratio(row, baseline)):
            points.setdefault(_conditions(row), []).append((row["density"], found.median))
    crossings = [(break_even(found), key) for key, found in points.items()]
    if not crossings:
        return None
    density, (computation, threads, _) = min(crossings, key=itemgetter(0))
    return density, f"{computation}, {threads_text(threads)}"


def break_even(points: Sequence[tuple[float, float]]) -> float:
    """Density from which on dense is faster, of (density, ratio) points; infinite if never.

    Straight lines between the points, on a log axis of the ratio.

    Example:
        >>> break_even([(0.1, 8.0), (0.5, 2.0), (1.0, 0.5)])
        0.75
        >>> break_even([(0.1, 8.0), (1.0, 1.1)])
        inf
    """
    ordered = sorted(points)
    if ordered[0][1] < 1:
        return ordered[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(ordered):
        if y1 < 1:
            return x0 + (x1 - x0) * math.log(y0) / math.log(y0 / y1)
    return math.inf


def _others(rows: Sequence[Row]) -> Iterator[Goal]:
    forced = [row for row in _suite(rows, "isa") if row["computation"] == "fprop"]
    yield from _worst("AVX2 forced, fprop: ≥ 75 % of its FMA peak", forced, 0.75, _peak, "{:.0%}")
    dtype = _suite(rows, "dtype")
    wide = [row for row in dtype if row["dtype"] == "float64"]
    yield from _worst("float64: ≥ 7x F.conv1d in float64", wide, 7, _over("conv1d"))
    halves = [row for row in dtype if row["dtype"] in ("bfloat16", "float16")]
    for goal in _worst("bfloat16, float16: stated", halves, 0, _over("conv1d")):
        yield goal._replace(verdict="stated")
    tiny = [row for row in rows if row["case"] == "tiny_module" and "conv1d" in row["ratio"]]
    yield from _worst(
        "a call at a tiny shape, and one with its gradients: ≤ 1x nn.Conv1d's", tiny, 1,
        lambda row: 1 / row["ratio"]["conv1d"][0], most=True,
    )  # fmt: skip


def _network(rows: Sequence[Row]) -> Iterator[Goal]:
    univariate = [row for row in rows if (row["model"], row["in_channels"]) == ("DSN", 1)]
    batches = [row for row in univariate if row["batch"] == 16]
    yield from _worst(
        "pattern update of a DSN, L = 128: a step with an update takes ≤ 1.5 steps longer than one "
        "without",
        [r for r in batches if r["length"] == 128 and "plain_step" in r["ratio"]],
        1.5, lambda row: 1 / row["ratio"]["plain_step"][0] - 1, "{:.2f} steps", most=True,
    )  # fmt: skip
    for (mode, against), lengths in NETWORK.items():
        for length, wanted in lengths.items():
            value, batch = _over(against), 1 if mode == "latency" else 16
            found = [
                next((value(r) for r in univariate if (r["mode"], r["batch"], r["length"],
                      r["threads"]) == (mode, batch, length, count)), None)
                for count in (1, 2)
            ]  # fmt: skip
            name = "masked dense" if against == "masked_dense" else "the fastest dense"
            least = f"≥ {wanted[0]}x {name}, {wanted[1]}x on two threads"
            yield from _each(f"DSN, {MODES[mode]}, L = {length}: {least}", found, wanted)
    for (batch, length, channels), target in RECIPE.items():
        where = "mode", "batch", "length", "in_channels", "threads"
        some = [r for r in rows if itemgetter(*where)(r) == ("train", batch, length, channels, 1)]
        label = f"DSN, training step, {batch} series of {length}"
        label += f" in {channels} channels" if channels > 1 else ""
        yield from _worst(f"{label}: ≥ {target}x masked dense", some, target, _over("masked_dense"))
    timed = [r for r in univariate if r["mode"] in ("train", "inference", "latency")]
    label = "DSN, training step, inference, latency: never slower than any dense network"
    yield from _worst(label, timed, 1, _over())


def _random_kernels(rows: Sequence[Row]) -> Iterator[Goal]:
    whole = [row for row in rows if row["kept"] == 1 and row["threads"] == 1]
    best = [row for row in whole if row["isa"] != "avx2" or row["batch"] != 96]
    what = itemgetter("kind", "batch", "in_channels", "length")
    for kind, shapes in RANDOM_KERNELS.items():
        for (batch, channels, length), times in shapes.items():
            some = [row for row in best if what(row) == (kind, batch, channels, length)]
            series = f"{channels} x {length}" if channels > 1 else f"{length}"
            label = f"{kind}, {batch} series of {series}: ≥ {times}x aeon"
            yield from _worst(label, some, times, _over("aeon"))
    forced = [r for r in whole if (r["kind"], r["isa"], r["batch"]) == ("rocket", "avx2", 96)]
    yield from _worst("rocket, AVX2: ≥ 20x aeon", forced, 20, _over("aeon"))
    univariate = [r for r in best if (r["kind"], r["in_channels"], r["batch"]) == ("rocket", 1, 96)]
    long = [row for row in univariate if row["length"] >= 150]
    yield from _worst(
        "rocket, 96 series, L ≥ 150: ≥ 80 % of the FMA peak", long, 0.8, _peak, "{:.0%}"
    )
    where = itemgetter("kind", "length", "in_channels", "threads")
    full = {where(row): row for row in best if row["batch"] == 96}
    pruned = [
        row for row in rows
        if (row["kind"], row["threads"]) == ("rocket", 1) and row["kept"] < 1 and where(row) in full
    ]  # fmt: skip
    yield from _worst(
        "pruned rocket: time of a share q ≤ 1.1 q times the whole's + 5 us", pruned, 1,
        lambda row: _ms(row) / (1.1 * row["kept"] * _ms(full[where(row)]) + 5e-3), most=True,
    )  # fmt: skip


def _suite(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row["suite"] == name]


_peak: Value = itemgetter("share_of_peak")


def _over(baseline: str = BEST) -> Value:
    """What a goal compares: a baseline's time over the sparse one."""

    def value(row: Row) -> float | None:
        found = ratio(row, baseline)
        return None if found is None else found.median

    return value


def _ms(row: Row) -> float:
    return float(row["ms"]["sparse"])


def _per_element(row: Row) -> float:
    return _ms(row) / float(row["batch"] * row["output_length"])


def _conditions(row: Row) -> tuple[Any, ...]:
    return row["computation"], row["threads"], row["isa"]


def _each(
    goal: str, found: Sequence[float | None], wanted: Sequence[float], shown: str = "{:.1f}x"
) -> Iterator[Goal]:
    """Judge by the value that is the farthest below its own target; no goal without values."""
    pairs = [
        (value, least) for value, least in zip(found, wanted, strict=True) if value is not None
    ]
    if pairs:
        measured = ", ".join("-" if value is None else shown.format(value) for value in found)
        yield Goal(goal, measured, _verdict(max(1 - value / least for value, least in pairs)))


def _worst(
    goal: str,
    rows: Sequence[Row],
    target: float,
    value: Value,
    shown: str = "{:.2f}x",
    *,
    most: bool = False,
) -> Iterator[Goal]:
    """Judge by the worst of the rows that have a value; no goal if there is none.

    ``target`` is the least that all must reach, or with ``most`` the most that they may.
    """
    found = [(number, _where(row)) for row in rows if (number := value(row)) is not None]
    if found:
        number, where = (max if most else min)(found, key=itemgetter(0))
        measured = f"{shown.format(number)} ({where})"
        if len(found) > 1:
            measured = f"worst of {len(found)}: {measured}"
        missed = number / target - 1 if most else 1 - number / max(target, 1e-9)
        yield Goal(goal, measured, _verdict(missed))


def _where(row: Row) -> str:
    if "kind" in row:
        what = f"{row['kind']}, L = {row['length']}, {row['kept']:.0%} kept"
        return f"{what}, {threads_text(row['threads'])}"
    what = (
        f"{row['mode']}, L = {row['length']}"
        if "mode" in row
        else f"{row['case']} {row['computation']}"
    )
    return f"{what}, {threads_text(row['threads'])}"


def _verdict(missed: float) -> str:
    """``missed``: how far beyond the target, on its wrong side, as a share of the target."""
    if missed <= 0:
        return "met"
    shown = f"{missed:.0%}"
    return f"missed by {shown if shown != '0%' else 'less than 1%'}"
