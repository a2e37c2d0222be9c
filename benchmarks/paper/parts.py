"""What a report shows: every table and figure; captions.toml has titles and captions."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.paper import figures
from benchmarks.paper.archives import ARCHIVES
from benchmarks.paper.comparison import TIE, by_set
from benchmarks.paper.figures import NEAR
from benchmarks.paper.tables import dsn, random_kernels, smaller_networks
from benchmarks.paper.tables.cells import NONE, percent, sets_and_rows
from benchmarks.paper.times import BATCH
from benchmarks.paper.training import CURVE_POINTS
from sparseconv.measure.table import Table, with_thousands

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
    """Return a caption on one line, with numbers from the code filled in."""
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
    Part("pruned-kernels", random_kernels.pruned_kernels),
    Part("choices", random_kernels.choices),
    Part("each-set-pruned", random_kernels.pruned_kernels_each, post_hoc=True),
)
FILTERS = (
    Part("smaller-networks", smaller_networks.smaller_networks, figures.pareto),
    Part("silenced", smaller_networks.silenced),
)
RUNS = (Part("runs", every_run, post_hoc=True),)
