"""All tables and figures of a sweep, as files and one HTML page.

captions.toml has their titles and captions.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.paper import figures, pruned_filters, rocket
from benchmarks.paper.archives import ARCHIVES, members
from benchmarks.paper.comparison import TIE, by_set, frame
from benchmarks.paper.figures import NEAR
from benchmarks.paper.rocket import is_pruned_kernels
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.tables import dsn, smaller
from benchmarks.paper.tables.cells import NONE, counted, percent, sets_and_rows
from benchmarks.paper.times import BATCH, TIMES_NAME, read_times
from benchmarks.paper.training import CURVE_POINTS
from sparseconv.measure.page import Section, write_html
from sparseconv.measure.table import Table, with_thousands

Rows = Sequence[Mapping[str, Any]]
RESULTS = Path(__file__).parents[1] / "results"
# The rows of each plan that the documentation shows.
RECORDED = {
    "full": RESULTS / "paper" / ROWS_NAME,
    **{plan: RESULTS / plan / ROWS_NAME for plan in ("pocket", "filters", "silence", "blocks")},
}
CAPTIONS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("captions.toml").read_text(encoding="utf-8")
)
SPARSITIES = ("dense", "S = 50 %", "DSN", "S = 90 %")
ARCHITECTURES = ("DSN", "depth 2", "depth 6", "nf = 24", "nf = 71")
GROWTH = ("DSN", "fixed pattern", "gradient growth")
MOMENTS = ("moments: mean", "moments: corrected", "masked dense")
WIDER = ("DSN", "S = 90 %, nf = 56", "S = 95 %, nf = 68", "S = 98 %, nf = 77")
INPUTS = ("centred zeros", "centred replicate", "z-normalised")
BLOCKS = ("dense", "DSN", "blocks, bfloat16")
OTHER_BLOCKS = (
    "blocks", "blocks of 8 x 8", "blocks of 32 x 16", "blocks of 16 x 32", "blocks of 47 x 47",
    "blocks, bfloat16, gradient growth",
)  # fmt: skip
OF_UEA = ("UEA, centred zeros", "UEA, z-normalised", "UEA, 100 epochs")
# Runs of univariate sets with the paper's settings, on UCR 85 and on the sets new in 2018.
UNIVARIATE = ("DSN", "DSN, 60 epochs", "UCR 2018")
OTHERS = ("ResNet", "InceptionTime", "OS-CNN", "LITE", "LITETime")
OWN = ("DSN", *OTHERS, "masked dense")


def filled(text: str) -> str:
    """Return a caption on one line, with numbers from the code."""
    text = text.format(tie=TIE, batch=BATCH, near=NEAR, looks=CURVE_POINTS, behind=dsn.BEHIND)
    return " ".join(text.split())


READING = filled(CAPTIONS["reading"])


@dataclass(frozen=True)
class Part:
    """A table, a figure, or both; if runs are missing, the table is empty and the figure None."""

    name: str  # of its files, and of its entry in captions.toml
    table: Callable[[pd.DataFrame], Table] | None = None
    figure: Callable[[pd.DataFrame, Path], Path | None] | None = None
    post_hoc: bool = False  # about all rows, also those of sets that were chosen by results
    optional: bool = False  # not missed where there is nothing to show

    @property
    def title(self) -> str:
        return str(CAPTIONS[self.name]["title"])

    def caption(self, with_figure: bool) -> str:
        said = CAPTIONS[self.name]
        return filled(said["caption"] + (said.get("of_figure", "") if with_figure else ""))

    def names(self) -> list[str]:
        found: dict[str, None] = {}
        for make in (self.table, self.figure):
            for value in make.keywords.values() if isinstance(make, partial) else ():
                found |= dict.fromkeys([value] if isinstance(value, str) else value)
        return [name for name in found if name not in ARCHIVES]


def other_runs(rows: pd.DataFrame) -> Table:
    """Compare with DSN the runs that appear in no other part."""
    known = {"DSN"}.union(*(part.names() for part in PARTS))
    return dsn.against(rows, "DSN", [name for name in rows["run"].unique() if name not in known])


def every_run(rows: pd.DataFrame) -> Table:
    """List every run: number, mean accuracy and size, CPU seconds of training.

    The seconds are summed over the rows with times, whose number follows if some rows have none.
    """
    lines = []
    for name, held in rows.groupby("run", sort=False):
        times = held["train_seconds"].dropna()
        of = "" if len(times) == len(held) else f" ({len(times)})"
        lines.append({
            "run": name,
            "sets, runs": sets_and_rows(held),
            "accuracy %": percent(by_set(held, name).mean()),
            "params K": percent(by_set(held, name, "params").mean() / 1e3),
            "training s": f"{with_thousands(times.sum())}{of}" if len(times) else NONE,
        })  # fmt: skip
    return Table.of(lines)


against, costs = partial(partial, dsn.against), partial(partial, dsn.costs)
PARTS = (
    Part("table-1", dsn.against_published),
    Part("new-sets", partial(dsn.against_published, run="UCR 2018", archive="ucr2018")),
    Part("new-sets-settings", against(reference="UCR 2018", others=("UCR 2018, raw",))),
    Part("costs", costs(names=OWN)),
    Part("reproduced", partial(dsn.reproduced, names=OTHERS)),
    Part("table-2", dsn.multivariate),
    Part("table-2-wins", partial(dsn.against_published, run="UEA", archive="uea")),
    Part("table-2-settings", against(reference="UEA", others=OF_UEA)),
    Part("table-3", costs(names=SPARSITIES)),
    Part("table-4", against(reference="DSN", others=("without groups",))),
    Part("figure-5", costs(names=ARCHITECTURES),
         partial(figures.architectures, names=ARCHITECTURES)),
    Part("figure-6", figure=partial(figures.receptive_fields, names=("DSN", "without groups"))),
    Part("figure-7", against(reference="DSN", others=GROWTH[1:]),
         partial(figures.growth, names=GROWTH)),
    Part("figure-8", figure=partial(figures.active_weights, name="DSN")),
    Part("question-a", against(reference="DSN", others=("masked dense",)),
         partial(figures.time_to_accuracy, sparse="DSN", dense="masked dense")),
    Part("question-b", against(reference="DSN", others=MOMENTS),
         partial(figures.differences, reference="DSN", others=MOMENTS)),
    Part("question-c", costs(names=WIDER), partial(figures.accuracy_by_time, names=WIDER)),
    Part("question-d", against(reference="DSN", others=INPUTS),
         partial(figures.differences, reference="DSN", others=INPUTS)),
    Part("other-runs", other_runs, optional=True),
    Part("behind", partial(dsn.behind, names=(*UNIVARIATE, "UEA")), post_hoc=True),
    Part("each-set", partial(dsn.each_set, names=UNIVARIATE), post_hoc=True),
)  # fmt: skip
IN_BLOCKS = (
    Part("blocks", costs(names=BLOCKS), partial(figures.accuracy_by_time, names=BLOCKS)),
    Part("blocks-others", against(reference="DSN", others=OTHER_BLOCKS), optional=True),
    Part("blocks-uea", against(reference="UEA", others=("UEA, blocks, bfloat16",)), optional=True),
)
KERNELS = (
    Part("pruned-kernels", smaller.pruned_kernels),
    Part("choices", smaller.choices),
    Part("each-set-pruned", smaller.pruned_kernels_each, post_hoc=True),
)
FILTERS = (
    Part("smaller-networks", smaller.smaller_networks, figures.pareto),
    Part("silenced", smaller.silenced),
)
RUNS = (Part("runs", every_run, post_hoc=True),)


def write_report(rows: Rows, folder: Path) -> Path:
    """Write every table (Markdown), every picture, and ``report.html`` with all.

    The page names parts that lack rows. Times come from ``times.jsonl`` in the parent folder.
    """
    if not rows:
        raise ValueError(f"there are no rows to report in {folder.parent}; run a plan first")
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in (*folder.glob("*.md"), *folder.glob("*.png")):
        earlier.unlink()
    times = read_times(folder.parent / TIMES_NAME)
    sections, text = _sections(rows, times, _parts(rows, times), f"{folder}/{{}}.png")
    for name, section in sections.items():
        if section.table:
            (folder / f"{name}.md").write_text(f"{section.table}\n", encoding="utf-8")
    about = Section("What this is, and what differs from the paper", text)
    shown = [*sections.values(), about]
    return write_html(folder / "report.html", "Trained again", shown, subtitle=where(rows))


def _parts(rows: Rows, times: Rows) -> list[tuple[Part, pd.DataFrame]]:
    """Return the parts that have rows, each with its rows."""
    kernels = list(filter(is_pruned_kernels, rows))
    networks = [row for row in rows if not is_pruned_kernels(row)]
    trained = list(pruned_filters.expanded(networks, times))
    plain = [row for row in trained if not row["options"]["pruning"]]
    drawn = list(rocket.expanded(kernels))
    groups: list[tuple[Sequence[Part], Rows]] = [
        (PARTS, plain),
        (IN_BLOCKS, plain if any(row["run"] == BLOCKS[-1] for row in plain) else ()),
        (FILTERS, trained if len(plain) < len(networks) else ()),
        (KERNELS, drawn),
        (RUNS, [*trained, *drawn]),
    ]
    found = []
    for parts, about_them in groups:
        if about_them:
            everything = frame(about_them)
            compared = everything[~everything["post_hoc"]]
            found += [(part, everything if part.post_hoc else compared) for part in parts]
    return found


def _sections(
    rows: Rows, times: Rows, parts: Sequence[tuple[Part, pd.DataFrame]], pictures: str
) -> tuple[dict[str, Section], str]:
    """Make sections by name; also return what ran and what did not.

    ``pictures`` is the path of a drawn file, with ``{}`` in place of its section's name.
    """
    reading = any(part in PARTS for part, _ in parts)
    found = {"reading": Section("How to read the tables", READING)} if reading else {}
    missing = []
    for part, runs in parts:
        table = part.table(runs) if part.table else None
        table = table if table and table.rows else None
        drawn = part.figure(runs, Path(pictures.format(part.name))) if part.figure else None
        if table or drawn:
            caption = part.caption(with_figure=drawn is not None)
            found[part.name] = Section(part.title, table=table, figure=drawn, caption=caption)
        elif not part.optional:
            missing.append(part.title)
    return found, about(rows, times, missing)


def where(rows: Rows) -> str:
    """Describe how much was trained, on which machines, with which software, and when."""
    machines = [row["machine"] for row in rows]
    hours = sum(map(_training_seconds, rows)) / 3600
    time = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    cpus, torches = (
        ", ".join(sorted({machine[key] for machine in machines})) for key in ("cpu", "torch")
    )
    # A job that another commit resumed names both; the rows are in the order of their ends.
    told = " then ".join(machine["commit"] for machine in machines)
    first, *others = dict.fromkeys(told.split(" then "))
    ran = f"{1 + len(others)} commits, {first} to {others[-1]}" if others else f"commit {first}"
    untimed = sum(row["train_seconds"] is None for row in rows)
    count = counted(len(rows), "training run")
    gpus = Counter(machine["gpu"] for machine in machines if "gpu" in machine)
    notes = [f"{untimed} of them without times"] if untimed else []
    notes += [f"{n} partly or wholly on {gpu}" for gpu, n in gpus.items()]
    count += f" ({', '.join(notes)})" if notes else ""
    return (
        f"{count}, {time} of one core, on {cpus}; torch {torches}; "
        f"{ran}; the last on {max(machine['date'] for machine in machines)}"
    )


def where_timed(times: Rows) -> str:
    """Describe the machine and software of the timings."""
    machines = [line["machine"] for line in times]
    kinds = dict.fromkeys(f"{machine['cpu']} ({machine['isa']})" for machine in machines)
    commits = dict.fromkeys(machine["commit"] for machine in machines)
    mixed = "means mix these" if len(kinds) > 1 else "ratios differ on other processors"
    return (
        f"Networks for {counted(len(times), 'data set')} were timed on {', '.join(kinds)}; "
        f"{mixed}. Commits: {', '.join(commits)}; the last on "
        f"{max(machine['date'] for machine in machines)}."
    )


def _training_seconds(row: Mapping[str, Any]) -> float:
    """Sum a job's seconds, including drawing random kernels, choosing, pruning and tuning."""
    laps = (
        "draw_seconds", "prepare_seconds", "select_seconds", "refit_seconds", "prune_seconds",
        "tune_seconds",
    )  # fmt: skip
    parts = (row, *row.get("variants", ()))
    trained = row["train_seconds"] or 0
    return float(trained + sum(part.get(lap, 0) for part in parts for lap in laps))


def about(rows: Rows, times: Rows, missing: Sequence[str]) -> str:
    """Describe what was run and timed, and what was not."""
    sets = {row["dataset"] for row in rows}
    found, absent = ([x for x in members("ucr85") if (x in sets) == was] for was in (True, False))
    epochs = sorted({row["epochs"] for row in rows if "epochs" in row})
    trained = f"; epochs: {', '.join(map(str, epochs))}" if epochs else ""
    if epochs and not any(row["options"]["pruning"] for row in rows):
        trained += " (the paper: 1000)"
    # The shorter of the two lists, unless it is too long to be read.
    which = f": {', '.join(found)}" if found else ""
    if len(absent) <= len(found):
        which = f"; not run: {', '.join(absent) or 'none'}"
    elif len(found) > 20:
        which = ", as named in the rows"
    parts = [
        f"{counted(len(sets), 'data set')}{trained}.",
        f"Of UCR 85, {len(found) or 'none'} were run{which}.",
    ]
    if times:
        parts.append(where_timed(times))
    if missing:
        parts.append(f"Omitted, because the runs that they need are missing: {'; '.join(missing)}.")
    return " ".join(parts)


def recorded(folder: Path, plan: str) -> str:
    """Return tables and pictures of a plan's recorded rows in Markdown.

    Pictures are written to ``folder``, which is next to the page that shows the text.
    """
    rows, times, parts = _recorded(plan)
    sections, text = _sections(rows, times, parts, f"{folder}/paper-{{}}.svg")
    paragraphs = [f"{where(rows)}. {text}"]
    for section in sections.values():
        paragraphs += [f"## {section.title}", section.text]
        paragraphs += [section.table.markdown()] if section.table else []
        if section.figure:
            paragraphs.append(f"![{section.title}]({folder.name}/{section.figure.name})")
        paragraphs.append(section.caption)
    return "\n\n".join(filter(None, paragraphs))


def recorded_table(plan: str, name: str) -> str:
    """Return one table of a plan's recorded rows in Markdown, without its caption."""
    rows, times, parts = _recorded(plan)
    (table,) = (part.table(runs) for part, runs in parts if part.table and part.name == name)
    return f"{where(rows)}. {about(rows, times, [])}\n\n{table.markdown()}"


def _recorded(plan: str) -> tuple[Rows, Rows, list[tuple[Part, pd.DataFrame]]]:
    """Return rows, times, and the plan's parts."""
    source = RECORDED[plan]
    rows, times = read_rows(source), read_times(source.with_name(TIMES_NAME))
    if plan == "blocks":
        sets, others = {row["dataset"] for row in rows}, read_rows(RECORDED["full"])
        rows += [row for row in others if row["run"] in (*BLOCKS, "UEA") and row["dataset"] in sets]
    wanted = {"full": PARTS, "pocket": KERNELS, "blocks": IN_BLOCKS}.get(plan, FILTERS)
    return rows, times, [(part, runs) for part, runs in _parts(rows, times) if part in wanted]
