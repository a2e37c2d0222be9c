"""What README and docs show of the recorded benchmark: ``docs/generate.py`` puts it there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import recording
from benchmarks.bench import tables
from benchmarks.bench.cases import SUITES
from benchmarks.bench.run import COMPUTATIONS, ROUNDS
from benchmarks.bench.tables import BEST, Row, best_baseline, ratio
from sparseconv.measure.table import Table

RESULTS = Path(__file__).with_name("results")
LOSING = (*tables.FASTEST, "vs F.conv1d")  # what a table of rows says that dense ways win


def lost(rows: Iterable[Row], baseline: str = BEST) -> list[Row]:
    """Return the rows in which a given baseline, or any, was faster, slowest first."""
    found = [row for row in rows if (its := ratio(row, baseline)) and its.median < 1]
    return sorted(found, key=lambda row: ratio(row, baseline) or ())


def closest(rows: Iterable[Row]) -> Row | None:
    """Return the row where the fastest baseline came closest, or None."""
    timed = (row for row in rows if best_baseline(row))
    return min(timed, key=lambda row: ratio(row) or (), default=None)


def when_it_pays(bench: Mapping[str, Any]) -> Table:
    """Tabulate ratios: each line's worse number of threads, and the worst row."""
    rows, nets = bench["rows"], [row for row in bench["network"] if row["in_channels"] == 1]
    groups = [
        (f"layer, 16 series of 128 time steps, {name}", "conv1d",
         [row for row in rows if (row["case"], row["computation"]) == ("dsn_evolved_L128", name)])
        for name in COMPUTATIONS
    ]  # fmt: skip
    for what, *place in (
        ("training step, 16 series of 128", "train", 16, 128),
        ("inference, 16 series of 128", "inference", 16, 128),
        ("latency of one series of 24", "latency", 1, 24),
    ):
        mine = [row for row in nets if [row["mode"], row["batch"], row["length"]] == place]
        groups.append((f"DSN, {what}", "masked_dense", mine))
    groups.append(("worst row of all suites and densities", "conv1d", rows))
    lines: list[tuple[str, ...]] = []
    for what, plain, mine in groups:
        row = closest(mine)
        usual = min(found.median for each in mine if (found := ratio(each, plain)))
        lines.append((what, f"{usual:.2f}", f"{ratio(row).median:.2f}", tables.which(row)))
    uniform = [row for row in rows if row["suite"] == "density" and "uniform" in row["case"]]
    if slower := lost(uniform):
        texts = []
        for baseline in ("conv1d", BEST):
            densities = [row["density"] for row in lost(uniform, baseline)]
            texts.append(f"{min(densities):.0%}" if densities else "above 100 %")
        usual_winner = Counter(map(tables.which, slower)).most_common(1)[0][0]
        lines.append(("layer, lowest density at which dense was faster", *texts, usual_winner))
    about = "13 % of the weights active, unless stated otherwise"
    return Table((about, "plain dense", "fastest", "which"), lines)


def kernels(rows: Iterable[Row]) -> Table:
    layer = [row for row in rows if row["case"].startswith("dsn_evolved")]
    layer.sort(key=lambda r: (COMPUTATIONS.index(r["computation"]), r["length"], r["threads"]))
    columns = ("", "L", "threads", *tables.SPEED, *tables.FASTEST, *tables.AGAINST)
    return tables.table(layer, columns)


def worst(rows: Sequence[Row]) -> Table:
    """Show each suite's row where the fastest baseline came closest."""
    of_suites = (closest(row for row in rows if row["suite"] == suite) for suite in SUITES)
    columns = ("suite", *tables.CASE, "density", *LOSING)
    return tables.table(filter(None, of_suites), columns, text_columns=3)


def faster_baselines(rows: Iterable[Row]) -> Table:
    columns = (*tables.CASE, "N", "channels", "K", "L", "density", *LOSING)
    return tables.table(lost(rows), columns, text_columns=2)


def recorded(path: Path = RESULTS / "bench.json") -> dict[str, Any]:
    """Read the recorded benchmark, which must be complete."""
    bench = recording.read(path)
    if not bench["complete"]:
        raise ValueError(
            f"{path} must contain a complete run of all suites with {ROUNDS} rounds; run make bench"
        )
    return bench


def where(machine: Mapping[str, str]) -> str:
    """Describe a run's machine, versions and date."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}, torch {machine['torch']}, "
        f"{machine['date']}, commit {machine['commit']}"
    )
