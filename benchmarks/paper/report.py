"""All tables and figures of a sweep, as files and as one HTML page."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.paper import figures, pruned_filters, rocket, tables
from benchmarks.paper.archives import members
from benchmarks.paper.comparison import Runs
from benchmarks.paper.pruned_filters import is_pruned_filters
from benchmarks.paper.pruned_times import TIMES_NAME, read_times
from benchmarks.paper.rocket import is_pruned_kernels
from benchmarks.paper.sweep import ROWS_NAME, read_rows
from sparseconv.measure.table import Table
from sparseconv.report.page import Section, write_html

SPARSITIES = ("dense", "S = 50 %", "DSN", "S = 90 %")
ARCHITECTURES = ("DSN", "depth 2", "depth 6", "nf = 24", "nf = 71")
GROWTH = ("DSN", "fixed pattern", "gradient growth")
MOMENTS = ("moments: mean", "moments: corrected", "masked dense")
WIDER = ("DSN", "S = 90 %, nf = 56", "S = 95 %, nf = 68", "S = 98 %, nf = 77")
SERIES = ("centred zeros", "centred replicate", "z-normalised", "centred zeros, z-normalised")
# What could be why DSN is behind on a data set.
CAUSES = ("masked dense", "S = 50 %", "gradient growth", "without groups", *SERIES)
RESULTS = Path(__file__).parents[1] / "results"
# The rows of each plan that the documentation shows.
RECORDED = {
    "full": RESULTS / "paper" / ROWS_NAME,
    **{plan: RESULTS / plan / ROWS_NAME for plan in ("pocket", "filters", "silence")},
}
OWN = ("DSN", "ResNet", "InceptionTime", "OS-CNN", "LITE", "masked dense")


@dataclass(frozen=True)
class Part:
    """A table or a figure of the report, by its file's name; the other of the two is None.

    A table without rows, or a figure that is None, lacks runs and is left out.
    """

    name: str
    title: str
    caption: str
    table: Callable[[Runs], Table] | None = None
    figure: Callable[[Runs, Path], Path | None] | None = None


PARTS = (
    Part(
        "table-1",
        "Table 1: univariate sets",
        "UCR 85, as far as the archive holds its sets. DSN: our runs, mean over seeds. The others: "
        "accuracies that their authors published (ResNet: mean of the runs of dl-4-tsc; "
        "InceptionTime: one network, mean of 5; OS-CNN: mean of 10), not runs of ours. A tie is a "
        "difference below 0.005 points. Wilcoxon's signed-rank test, Holm's correction.",
        tables.univariate,
    ),
    Part(
        "costs",
        "Networks trained here",
        "Means over the sets that all of them were trained on. Parameters are those that exist "
        "(active weights). Epochs and predictions: measured on one thread, in batches of the "
        "recipe and of 64, while other jobs of the sweep ran on the other cores; means over the "
        "sets on which all were measured on one kind of CPU, the one with most of them.",
        partial(tables.costs, names=OWN),
    ),
    Part(
        "table-2",
        "Table 2: multivariate sets",
        "UEA: S = 90 %, nf = 59. The published figures are their authors', of single networks but "
        "InceptionTime's, which is an ensemble. Daily Sports: every fourth segment. The paper's "
        "split is not public: once four subjects are for training and four for testing; once, "
        "within subjects, the first half of each one's segments against the second.",
        tables.multivariate,
    ),
    Part(
        "table-3",
        "Table 3: sparsity",
        "On the sets that all four were trained on. The dense network is PyTorch's convolution, "
        "without kernel groups. FLOPs as the paper counts them, multiply-adds as the kernels "
        "execute them, measured times as above.",
        partial(tables.costs, names=SPARSITIES),
    ),
    Part(
        "table-4",
        "Table 4: kernel groups",
        "DSN with three kernel groups, against one whose region is the whole kernel.",
        partial(tables.against, reference="DSN", others=("without groups",)),
    ),
    Part(
        "figure-5",
        "Figure 5: depth and width",
        "Critical difference diagram by mean rank (aeon's, Wilcoxon with Holm's correction): "
        "classifiers under one bar do not differ significantly. DSN has depth 4 and nf = 47. The "
        "depths and widths are ours: the paper's may be others.",
        partial(tables.costs, names=ARCHITECTURES),
        partial(figures.architectures, names=ARCHITECTURES),
    ),
    Part(
        "figure-6",
        "Figure 6: effective receptive fields",
        "All kernels of all trained networks (upper row), and paths through the layers (lower).",
        figure=partial(figures.receptive_fields, names=("DSN", "without groups")),
    ),
    Part(
        "figure-7",
        "Figure 7: dynamic against fixed, random against gradient",
        "Random growth (DSN), the first pattern for the whole training, and growth by gradient "
        "(RigL), each against OS-CNN's published accuracies (wins/ties/losses above each); in the "
        "table against each other.",
        partial(tables.against, reference="DSN", others=GROWTH[1:]),
        partial(figures.growth, names=GROWTH),
    ),
    Part(
        "figure-8",
        "Figure 8: active weights",
        "Sums of the weights' magnitudes by tap, after training, mean over all networks.",
        figure=partial(figures.active_weights, name="DSN"),
    ),
    Part(
        "question-a",
        "Time to a given accuracy: sparse against masked dense",
        "The same recipe. Looks at the test set take no time of training and do not influence "
        "it; there are at most 25 a run, each in the epoch before weights are moved. Seconds: of "
        "the sets and seeds that both ran on one kind of CPU.",
        partial(tables.against, reference="DSN", others=("masked dense",)),
        partial(figures.time_to_accuracy, sparse="DSN", dense="masked dense"),
    ),
    Part(
        "question-b",
        "Moments of grown weights",
        "Adam's moments of a weight that has just grown: zero (DSN); the second one the mean of "
        "its region; zero, with their bias corrected by the weight's own age; and those of dense "
        "gradients, as in the authors' masked code.",
        partial(tables.against, reference="DSN", others=MOMENTS),
        partial(figures.differences, reference="DSN", others=MOMENTS),
    ),
    Part(
        "question-c",
        "Sparser at equal time",
        "Wider networks of fewer active weights that train an epoch in about DSN's time. In the "
        "figure: the sets on which all were measured on one kind of CPU.",
        partial(tables.costs, names=WIDER),
        partial(figures.accuracy_by_time, names=WIDER),
    ),
    Part(
        "question-d",
        "Padding and normalisation",
        "The paper's right-replicate on raw series, against other paddings, and series scaled by "
        "the mean and deviation of their training set.",
        partial(tables.against, reference="DSN", others=SERIES),
        partial(figures.differences, reference="DSN", others=SERIES),
    ),
    Part(
        "behind",
        "Where DSN is behind",
        "UCR 85 sets where DSN is five points or more below the best of the published ResNet, "
        "InceptionTime and OS-CNN, and what other settings reach there, each of which tests a "
        "cause: dense weights, more weights, another way to grow, one kernel group, other "
        "paddings, scaled series. Mean ± standard deviation (seeds).",
        partial(tables.behind, others=CAUSES),
    ),
    Part(
        "each-set",
        "Every data set",
        "DSN's mean and standard deviation over seeds; published accuracies; the difference to "
        "the best of these; mean seconds of training.",
        tables.each_set,
    ),
)


KERNELS = (
    Part(
        "pruned-kernels",
        "Pruned random kernels",
        "ROCKET and MiniROCKET as aeon draws them, and with a part of the kernels (MiniROCKET: "
        "features): chosen by POCKET, by the magnitude of one ridge classifier, or at random, and "
        "then refitted; stage 1 is POCKET's own classifier. As published: the number that the "
        "authors' table has for the data set. The published means are of the same sets, of other "
        "kernels, with a ridge of the selection that was cross-validated (here it is 1, unless the "
        "row says by folds).",
        tables.pruned_kernels,
    ),
    Part(
        "choices",
        "Does the choice of kernels matter?",
        "The classifier refitted on POCKET's kernels, against one refitted on as many with the "
        "largest weights of a single ridge classifier, and on as many drawn at random.",
        tables.choices,
    ),
    Part(
        "each-set-pruned",
        "Pruned random kernels, every data set",
        "Mean accuracies over seeds, in percent; the published ones beside.",
        tables.pruned_kernels_each,
    ),
)


FILTERS = (
    Part(
        "smaller-networks",
        "Smaller networks",
        "Means over the sets that all have, and over seeds. A quarter of the training's epochs for "
        "fine-tuning, in each case; retrained: all of them, from new weights. Parameters and "
        "multiply-adds: those that are left. Times: a batch of 16 on one thread, in turns, of each "
        "set's networks of one seed. Times less: multiply-adds / prediction / step of the "
        "network before the first comma of the name, by those of this one, over the sets that were "
        "timed; what rows of the same network differ by is noise. Against that network as it was "
        "trained: wins, ties and losses over the sets, the mean difference with its 95 % bootstrap "
        "interval, and Wilcoxon's signed-rank test with Holm's correction. Fine-tuning begins at "
        "the first learning rate of the training, which can spoil a network that lost nothing: "
        "unpruned, tuned shows it.",
        tables.smaller_networks,
        figures.pareto,
    ),
    Part(
        "silenced",
        "What DSP removes, by steps of training",
        "Training with the loss that silences filters, by its number of steps: filters whose "
        "activation stayed below the threshold go at once, and what is left is tuned for a quarter "
        "of the epochs. Means over seeds, percent. Published means over UCR 128: LITETime 58 % "
        "smaller, InceptionTime 75 % (Abdullayev et al. 2026), after 1500 epochs of mostly larger "
        "sets.",
        tables.silenced,
    ),
)


def write_report(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write every table (Markdown, CSV), every picture, and ``report.html`` with all of them.

    Parts that the rows do not suffice for are named in the page. Times of pruned networks are those
    that lie beside the folder.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("there are no rows to report; run a plan first")
    folder.mkdir(parents=True, exist_ok=True)
    runs = _runs(rows, folder.parent)
    sections, missing = [], []
    for part in parts_of(rows):
        table = part.table(runs) if part.table else None
        picture = part.figure(runs, folder / f"{part.name}.png") if part.figure else None
        if table is not None and table.rows:
            write_table(table, folder / part.name)
        else:
            table = None
        if table is None and picture is None:
            missing.append(part.title)
            continue
        sections.append(Section(part.title, table=table, figure=picture, caption=part.caption))
    sections.append(Section("What this is, and what differs from the paper", about(rows, missing)))
    title = "The Dynamic Sparse Network, trained again"
    if all(map(is_pruned_kernels, rows)):
        title = "Random kernels, pruned"
    elif any(map(is_pruned_filters, rows)):
        title = "Networks made smaller"
    return write_html(
        folder / "report.html",
        title,
        sections,
        subtitle=where(rows),
    )


def parts_of(rows: Sequence[Mapping[str, Any]]) -> Sequence[Part]:
    """Those about networks, about random kernels, or both, as the rows are."""
    if any(map(is_pruned_filters, rows)):
        return FILTERS
    kernels = [is_pruned_kernels(row) for row in rows]
    return (*(() if all(kernels) else PARTS), *(KERNELS if any(kernels) else ()))


def where(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much was trained, on which machines, with what, when."""
    machines = [row["machine"] for row in rows]
    hours = sum(map(_training_seconds, rows)) / 3600
    cpus, torches, commits = (
        ", ".join(sorted({machine[key] for machine in machines}))
        for key in ("cpu", "torch", "commit")
    )
    return (
        f"{len(rows)} trainings, {hours:.1f} hours of one core, on {cpus}; torch {torches}; "
        f"commits {commits}; the last on {max(machine['date'] for machine in machines)}"
    )


def _training_seconds(row: Mapping[str, Any]) -> float:
    """Of one job: also what drawing random kernels, choosing, pruning and fine-tuning took."""
    laps = (
        "draw_seconds", "prepare_seconds", "select_seconds", "refit_seconds", "prune_seconds",
        "tune_seconds",
    )  # fmt: skip
    parts = (row, *row.get("variants", ()))
    return float(row["train_seconds"] + sum(part.get(lap, 0) for part in parts for lap in laps))


def about(rows: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> str:
    """What was run, and what was not."""
    sets = {row["dataset"] for row in rows}
    found, absent = ([x for x in members("ucr85") if (x in sets) == was] for was in (True, False))
    epochs = sorted({row["epochs"] for row in rows if "epochs" in row})
    trained = f"; epochs: {', '.join(map(str, epochs))}" if epochs else ""
    if epochs and not any(map(is_pruned_filters, rows)):
        trained += " (the paper: 1000)"
    parts = [  # the shorter of the two lists
        f"{len(sets)} data sets{trained}.",
        f"Of UCR 85, {len(found)} were run"
        + (
            f": {', '.join(found)}."
            if len(found) < len(absent)
            else f"; not run: {', '.join(absent) or 'none'}."
        ),
    ]
    if missing:
        parts.append(
            f"Left out, because the plan does not run what they need: {'; '.join(missing)}."
        )
    return " ".join(parts)


def _runs(rows: Sequence[Mapping[str, Any]], folder: Path) -> Runs:
    """The rows, and of each its pruned variants with the times that a results folder holds."""
    return Runs(pruned_filters.expanded(rocket.expanded(rows), read_times(folder / TIMES_NAME)))


def recorded(folder: Path, plan: str) -> str:
    """The tables and pictures of a plan's recorded rows in Markdown, for the documentation.

    Pictures are drawn into ``folder``, which a page includes the text from.
    """
    rows, runs = _recorded(plan)
    shown = [_what_was_run(plan, rows)]
    for part in parts_of(rows):
        table = part.table(runs) if part.table else None
        path = folder / f"paper-{part.name}.png"
        picture = part.figure(runs, path) if part.figure else None
        found = [table.markdown()] if table is not None and table.rows else []
        found += [f"![{part.title}]({folder.name}/{path.name})"] if picture else []
        if found:
            shown.append("\n\n".join([f"## {part.title}", *found, part.caption]))
    return "\n\n".join(shown)


def recorded_table(plan: str, name: str) -> str:
    """One table of a plan's recorded rows in Markdown, without its caption."""
    rows, runs = _recorded(plan)
    parts = [part for part in parts_of(rows) if part.name == name]
    found = [part.table(runs).markdown() for part in parts if part.table]
    return "\n\n".join([_what_was_run(plan, rows), *found])


def _recorded(plan: str) -> tuple[list[dict[str, Any]], Runs]:
    source = RECORDED[plan]
    rows = read_rows(source)
    return rows, _runs(rows, source.parent)


def _what_was_run(plan: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"Not measured yet: `python -m benchmarks.paper run {plan}` does."
    return f"{where(rows)}. {about(rows, [])}"


def write_table(table: Table, path: Path) -> None:
    """``path`` with the endings ``.md`` and ``.csv``."""
    path.with_suffix(".md").write_text(table.markdown() + "\n", encoding="utf-8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([table.header, *table.rows])
