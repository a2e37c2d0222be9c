"""Accuracy against time: aeon's and our classifiers on random kernels, and DSN.

Trains every classifier on every data set, on one thread; aeon's are compiled beforehand. DSN's row
comes from the paper's sweep (``benchmarks/results/paper``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.paper.archives import members, open_archive, read
from benchmarks.paper.report import RECORDED
from benchmarks.paper.rows import read_rows
from benchmarks.plots import plain_ticks
from benchmarks.recording import add_missing, read_lines
from sparseconv.estimators.pocket import POCKETClassifier
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.report.figures import BLUE, GREEN, INK, ORANGE, new_figure, save, style_axes

RESULTS = Path(__file__).parents[1] / "results" / "pocket" / "time.jsonl"
SETS = 12  # the cheapest of UCR 85 that the paper's sweep has trained DSN on
SEEDS = (0, 1, 2)
PLACES = {  # of labels that would lie over another, in points from their mark
    "ROCKET, 10 %": (-6, 4),
    "ROCKET, 35 %, magnitude": (-6, -8),
    "MiniROCKET": (6, -9),
    "MiniROCKET, 35 %": (-6, -8),
    "aeon MultiRocket": (-6, 4),
}


def classifiers() -> dict[str, Callable[..., Any]]:
    """Return what makes a classifier of a ``random_state``, by name."""
    from aeon.classification import convolution_based as aeon

    names = ("Rocket", "MiniRocket", "MultiRocket", "Hydra")
    return {f"aeon {name}": getattr(aeon, f"{name}Classifier") for name in names} | {
        "ROCKET": partial(POCKETClassifier, "rocket", keep=1.0),
        "ROCKET, 35 %": partial(POCKETClassifier, "rocket"),
        "ROCKET, 10 %": partial(POCKETClassifier, "rocket", keep=0.1),
        "ROCKET, 35 %, magnitude": partial(POCKETClassifier, "rocket", n_iter=1),
        "MiniROCKET": partial(POCKETClassifier, "minirocket", keep=1.0),
        "MiniROCKET, 35 %": partial(POCKETClassifier, "minirocket"),
    }


def measure(path: Path, archive: Path | None) -> None:
    data_sets = open_archive(archive)
    trained = {row["dataset"] for row in read_rows(RECORDED["full"]) if row["run"] == "DSN"}
    names = [name for name in members("ucr85") if name in trained & data_sets.shapes.keys()]
    names = sorted(names, key=lambda name: data_sets.shapes[name].train_points)[:SETS]
    jobs = {
        (kind, name, seed): partial(row, kind, data_sets.sources[name], seed)
        for name in names for kind in classifiers() for seed in SEEDS
    }  # fmt: skip
    add_missing(path, ("classifier", "dataset", "seed"), jobs)


def row(kind: str, source: str, seed: int) -> dict[str, Any]:
    data, make = read(source), classifiers()[kind]
    if kind.startswith("aeon"):  # compiles; the data's shape is part of some
        make(random_state=0).fit(data.X_train, data.y_train).predict(data.X_test[:2])
    with threads(1), threadpool_limits(1):
        begin = time.perf_counter()
        fitted = make(random_state=seed).fit(data.X_train, data.y_train)
        between = time.perf_counter()
        guess = fitted.predict(data.X_test)
        end = time.perf_counter()
    return {
        "accuracy": float((guess == data.y_test).mean()),
        "fit_seconds": round(between - begin, 4), "predict_seconds": round(end - between, 4),
        "n_train": len(data.X_train), "n_test": len(data.X_test),
        "n_timepoints": data.n_timepoints,
    }  # fmt: skip


def trained_dsn(names: Collection[str]) -> list[dict[str, Any]]:
    """Return DSN's recorded rows with times in CPU seconds."""
    return [
        {**row, "classifier": "DSN", "fit_seconds": row["train_seconds"]}
        for row in read_rows(RECORDED["full"])
        if row["run"] == "DSN" and row["dataset"] in names and row["seed"] in SEEDS
        and row["train_seconds"] is not None
    ]  # fmt: skip


def means(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Average accuracy (%), fit time (s) and prediction time (us), if no data set is missing."""
    names = {row["dataset"] for row in rows}
    all_rows = pd.DataFrame([*rows, *trained_dsn(names)])
    figures = all_rows[["classifier", "dataset"]].assign(
        accuracy=100 * all_rows["accuracy"],
        fit=all_rows["fit_seconds"],
        predict=1e6 * all_rows["predict_seconds"] / all_rows["n_test"],
    )
    of_sets = figures.groupby(["classifier", "dataset"], sort=False).mean()
    by_kind = of_sets.groupby("classifier", sort=False)
    return by_kind.mean()[by_kind.size() == len(names)]


def section(path: Path = RESULTS) -> str:
    """Tabulate the means, with data sets, machine and date, in Markdown."""
    rows = read_lines(path)
    names = dict.fromkeys(row["dataset"] for row in rows)
    machine = rows[-1]["machine"]
    cpus = sorted({row["machine"]["cpu"] for row in trained_dsn(names)})
    lines = [
        (kind, f"{it['accuracy']:.2f}", f"{it['fit']:.3g}", f"{it['predict']:.0f}")
        for kind, it in means(rows).iterrows()
    ]
    table = Table(("classifier", "accuracy %", "fit s", "prediction us"), lines)
    return (
        f"Means over {len(names)} data sets ({', '.join(names)}), {len(SEEDS)} seeds each, on one "
        f"thread of {machine['cpu']}, {machine['date']}. DSN was trained for 1 000 "
        f"epochs; its CPU seconds were measured on {', '.join(cpus) or 'no machine yet'}, while "
        "other networks were being trained, so compare only the order of magnitude of its times "
        "(hollow in the figure).\n\n"
        f"{table.markdown()}"
    )


def draw(path: Path) -> Path:
    figure = new_figure("Accuracy against the time of a prediction", 7, 4.2)
    axes = figure.subplots()
    for kind, it in means(read_lines(RESULTS)).iterrows():
        color = ORANGE if kind.startswith("aeon") else GREEN if kind == "DSN" else BLUE
        axes.scatter(
            [it["predict"]], [it["accuracy"]], s=26, zorder=3, edgecolors=color,
            facecolors="white" if kind == "DSN" else color,
        )  # fmt: skip
        place = PLACES.get(kind, (6, 4))
        axes.annotate(
            kind, (it["predict"], it["accuracy"]), place, color=INK, fontsize=8,
            textcoords="offset points", ha="right" if place[0] < 0 else "left",
        )  # fmt: skip
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    style_axes(axes, "microseconds per series, in one call for the test set", "mean accuracy, %")
    axes.margins(x=0.25, y=0.12)
    return save(figure, path)
