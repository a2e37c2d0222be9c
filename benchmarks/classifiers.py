"""Accuracy against time: classifiers on random kernels, aeon's and ours, and DSN.

    python -m benchmarks.classifiers --archive DIR

Trains each on each data set, on one thread, and adds a line a fit to a file; a picture and a table
are made of these for the documentation. aeon's are compiled before they are timed. DSN's line is
that of the paper's sweep (``benchmarks/results/paper``), on the same data sets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from threadpoolctl import threadpool_limits

from benchmarks.lines import add_line, read_lines
from benchmarks.paper.archives import members, open_archive, read
from benchmarks.paper.report import RECORDED
from benchmarks.paper.rows import read_rows
from sparseconv.core.files import check_writable
from sparseconv.estimators.pocket import POCKETClassifier
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.measure.table import Table
from sparseconv.report.figures import BLUE, GREEN, INK, ORANGE, new_figure, style_axes

RESULTS = Path(__file__).with_name("results") / "pocket" / "time.jsonl"
SETS = 12  # the cheapest of UCR 85 that the paper's sweep has trained DSN on
SEEDS = (0, 1, 2)
# Whose names stand to the left of their points, in the picture.
LEFT = ("ROCKET, 10 %", "MiniROCKET", "MiniROCKET, 35 %", "aeon MultiRocket")


def classifiers() -> dict[str, Callable[[int], Any]]:
    """By name: a fresh one with a seed."""
    from aeon.classification.convolution_based import (
        HydraClassifier,
        MiniRocketClassifier,
        MultiRocketClassifier,
        RocketClassifier,
    )

    def ours(kernels: str, **options: Any) -> Callable[[int], Any]:
        return lambda seed: POCKETClassifier(kernels, random_state=seed, **options)

    return {
        "aeon Rocket": lambda seed: RocketClassifier(random_state=seed),
        "aeon MiniRocket": lambda seed: MiniRocketClassifier(random_state=seed),
        "aeon MultiRocket": lambda seed: MultiRocketClassifier(random_state=seed),
        "aeon Hydra": lambda seed: HydraClassifier(random_state=seed),
        "ROCKET": ours("rocket", keep=1.0),
        "ROCKET, 35 %": ours("rocket"),
        "ROCKET, 10 %": ours("rocket", keep=0.1),
        "ROCKET, 35 %, magnitude": ours("rocket", n_iter=1),
        "MiniROCKET": ours("minirocket", keep=1.0),
        "MiniROCKET, 35 %": ours("minirocket"),
    }


def measure(archive: Path | None, out: Path) -> None:
    """Fit, predict and time what the file does not hold yet."""
    data_sets = open_archive(archive)
    trained = {row["dataset"] for row in read_rows(RECORDED["full"]) if row["run"] == "DSN"}
    names = [name for name in members("ucr85") if name in trained & data_sets.shapes.keys()]
    names = sorted(names, key=lambda name: data_sets.shapes[name].train_points)[:SETS]
    done = {(row["classifier"], row["dataset"], row["seed"]) for row in rows_of(out)}
    for name in names:
        data = read(data_sets.sources[name])
        for kind, make in classifiers().items():
            for seed in SEEDS:
                if (kind, name, seed) in done:
                    continue
                if kind.startswith("aeon"):  # compiles; the data's shape is part of some
                    make(0).fit(data.X_train, data.y_train).predict(data.X_test[:2])
                with threads(1), threadpool_limits(1):
                    begin = time.perf_counter()
                    fitted = make(seed).fit(data.X_train, data.y_train)
                    between = time.perf_counter()
                    guess = fitted.predict(data.X_test)
                    end = time.perf_counter()
                row = {
                    "classifier": kind, "dataset": name, "seed": seed,
                    "accuracy": float((guess == data.y_test).mean()),
                    "fit_seconds": round(between - begin, 4),
                    "predict_seconds": round(end - between, 4),
                    "n_train": len(data.X_train), "n_test": len(data.X_test),
                    "n_timepoints": data.n_timepoints, "machine": measurement_context(),
                }  # fmt: skip
                add_line(out, row)
                print(f"{name}, {kind}, seed {seed}: {row['accuracy']:.4f}", flush=True)


def rows_of(path: Path = RESULTS) -> list[dict[str, Any]]:
    return read_lines(path)


def trained_dsn(names: Collection[str]) -> list[dict[str, Any]]:
    """The recorded rows of DSN with their times, CPU seconds beside other work."""
    return [
        {**row, "classifier": "DSN", "fit_seconds": row["train_seconds"]}
        for row in read_rows(RECORDED["full"])
        if row["run"] == "DSN" and row["dataset"] in names and row["seed"] in SEEDS
        and row["train_seconds"] is not None
    ]  # fmt: skip


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each classifier over the data sets: accuracy %, seconds of a fit, us of a prediction."""
    names = {row["dataset"] for row in rows}
    dsn = trained_dsn(names)
    found = {}
    for kind in dict.fromkeys(row["classifier"] for row in [*rows, *dsn]):
        by_set: dict[str, list[Mapping[str, Any]]] = {}
        for row in [*rows, *dsn]:
            if row["classifier"] == kind:
                by_set.setdefault(row["dataset"], []).append(row)
        if by_set.keys() != names:
            continue

        def mean(get: Callable[[Mapping[str, Any]], float]) -> float:
            return fmean(fmean(map(get, held)) for held in by_set.values())  # noqa: B023 (called here)

        found[kind] = {
            "accuracy": 100 * mean(lambda row: row["accuracy"]),
            "fit": mean(lambda row: row["fit_seconds"]),
            "predict": 1e6 * mean(lambda row: row["predict_seconds"] / row["n_test"]),
        }
    return found


def table() -> Table:
    """The means; ``about`` says what they were measured on."""
    lines = [
        (kind, f"{it['accuracy']:.2f}", f"{it['fit']:.3g}", f"{it['predict']:.0f}")
        for kind, it in means(rows_of()).items()
    ]
    return Table(("classifier", "accuracy %", "fit s", "prediction us"), lines)


def about() -> str:
    """Data sets, machine and date."""
    rows = rows_of()
    names = dict.fromkeys(row["dataset"] for row in rows)
    machine = rows[-1]["machine"]
    cpus = sorted({row["machine"]["cpu"] for row in trained_dsn(names)})
    return (
        f"Means over {len(names)} data sets ({', '.join(names)}), {len(SEEDS)} seeds each, on one "
        f"thread of {machine['cpu']}, {machine['date']}. DSN: 1 000 epochs, CPU seconds on "
        f"{', '.join(cpus) or 'no machine yet'}, while other networks were trained beside it, so "
        "that its times compare in their order of magnitude alone (hollow in the figure)."
    )


def draw(path: Path) -> Path:
    """The picture: accuracy against the time of a prediction."""
    figure = new_figure("Accuracy against the time of a prediction", 7, 4.2)
    axes = figure.subplots()
    for kind, it in means(rows_of()).items():
        color = ORANGE if kind.startswith("aeon") else GREEN if kind == "DSN" else BLUE
        axes.scatter(
            [it["predict"]], [it["accuracy"]], s=26, zorder=3, edgecolors=color,
            facecolors="white" if kind == "DSN" else color,
        )  # fmt: skip
        left = kind in LEFT
        axes.annotate(
            kind, (it["predict"], it["accuracy"]), (-6 if left else 6, 4), color=INK, fontsize=8,
            textcoords="offset points", ha="right" if left else "left",
        )  # fmt: skip
    axes.set_xscale("log")
    style_axes(axes, "microseconds of a series, in one call for the test set", "mean accuracy, %")
    axes.margins(x=0.25, y=0.12)
    figure.savefig(path, dpi=170)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.classifiers", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--archive", type=Path, metavar="DIR", help="default: aeon's bundled sets")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.out)
        measure(arguments.archive, arguments.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
