"""What a report shows: every table and figure with its title and its caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.paper import figures
from benchmarks.paper.archives import ARCHIVES
from benchmarks.paper.comparison import TIE, Runs
from benchmarks.paper.figures import NEAR
from benchmarks.paper.tables import dsn, every_run, random_kernels, smaller_networks
from benchmarks.paper.times import BATCH
from benchmarks.paper.training import CURVE_POINTS
from sparseconv.measure.table import Table

SPARSITIES = ("dense", "S = 50 %", "DSN", "S = 90 %")
ARCHITECTURES = ("DSN", "depth 2", "depth 6", "nf = 24", "nf = 71")
GROWTH = ("DSN", "fixed pattern", "gradient growth")
MOMENTS = ("moments: mean", "moments: corrected", "masked dense")
WIDER = ("DSN", "S = 90 %, nf = 56", "S = 95 %, nf = 68", "S = 98 %, nf = 77")
INPUTS = ("centred zeros", "centred replicate", "z-normalised")
# Runs of univariate sets with the paper's settings, on UCR 85 and on the sets new in 2018.
UNIVARIATE = ("DSN", "DSN, 60 epochs", "UCR 2018")
# What holds for all tables of networks.
READING = (
    "Runs are compared on the data sets and seeds that both have; each data set counts alike. What "
    "the plan marks as picked, because DSN came out low on that data set, counts in no comparison: "
    "by chance alone, any other run is likely to be higher there. Two numbers of one cell: the "
    "run's and DSN's. "
    "Difference: the mean over the data sets, its 95 % interval (Student's t), and the median. A "
    f"tie is a difference below {TIE} points. To all seeds: the same difference to all seeds that "
    "DSN has, on the sets where it has more of them than the run, since the one that both have may "
    "be a lucky one. p: Wilcoxon's signed-rank test, two-sided, with "
    "Holm's correction over the table's rows. Prediction and step (forward and backward passes, no "
    f"optimiser): of a batch of {BATCH} on one thread, fresh networks of a data set in turns, the "
    "machine doing nothing else; geometric means over the sets that were timed, in brackets the "
    "smallest and the largest ratio of a set. Training: CPU seconds of whole trainings, beside "
    "other trainings; means over the sets that one machine trained for both on one day, as far as "
    "the rows tell machines apart."
)
OTHERS = ("ResNet", "InceptionTime", "OS-CNN", "LITE", "LITETime")
OWN = ("DSN", *OTHERS, "masked dense")


@dataclass(frozen=True)
class Part:
    """A table, a figure, or both, of the report.

    Attributes:
        name: of its files.
        title: its heading.
        caption: what the reader has to know of both.
        table, figure: make them; without rows, or None, where runs are wanting.
        of_figure: what the caption says of the figure, where there is one.
        picked: of all rows, also of those that the plan marks as picked.
        optional: not missed where there is nothing to show.
    """

    name: str
    title: str
    caption: str
    table: Callable[[Runs], Table] | None = None
    figure: Callable[[Runs, Path], Path | None] | None = None
    of_figure: str = ""
    picked: bool = False
    optional: bool = False

    def names(self) -> list[str]:
        """The runs that the table and the figure are about, as far as these name them."""
        found: dict[str, None] = {}
        for make in (self.table, self.figure):
            for value in make.keywords.values() if isinstance(make, partial) else ():
                found |= dict.fromkeys([value] if isinstance(value, str) else value)
        return [name for name in found if name not in ARCHIVES]

    def make(self, runs: Runs, picture: Path) -> Made:
        """The table and the figure, as far as the runs suffice."""
        table = self.table(runs) if self.table else None
        table = table if table and table.rows else None
        drawn = self.figure(runs, picture) if self.figure else None
        missing = []
        if not table and not drawn:
            missing += [] if self.optional else [self.title]
        else:
            lacks = ["the figure"] if self.figure and drawn is None else []
            lacks += [f'"{name}"' for name in self.names() if name not in runs and not self.picked]
            missing += [f"{self.title} (without {', '.join(lacks)})"] if lacks else []
        caption = f"{self.caption} {self.of_figure}".strip() if drawn else self.caption
        return Made(table, drawn, caption, missing)


@dataclass(frozen=True)
class Made:
    """What became of a part: what there is, its caption, and the title of what is missing."""

    table: Table | None
    figure: Path | None
    caption: str
    missing: Sequence[str]


def other_runs(runs: Runs) -> Table:
    """Runs that no other part knows, against DSN."""
    known = {"DSN"}.union(*(part.names() for part in PARTS))
    return dsn.against(runs, "DSN", [name for name in runs.names() if name not in known])


PARTS = (
    Part(
        "table-1",
        "Table 1: univariate sets",
        "The sets of UCR 85 that were run. DSN: our runs, mean over seeds. The others: "
        "accuracies that their authors published (ResNet: mean of the runs of dl-4-tsc; "
        "InceptionTime: one network, mean of 5; OS-CNN: mean of 10), not runs of ours. The paper's "
        "wins, ties and losses of all 85 sets are scaled to as many as were run, most of the "
        "cheaper ones; p of them: of as many sets, drawn from the paper's, having wins as far from "
        "the scaled ones (hypergeometric, two-sided, not corrected); too small, since it has the "
        "choice of sets alone for chance, and trainings differ by chance as well.",
        dsn.against_published,
    ),
    Part(
        "new-sets",
        "The sets new in 2018",
        "DSN with the paper's settings for them: centred zeros, series scaled by the training set. "
        "The published figures as in Table 1. Copies of the archive fill the gaps and short series "
        "of some sets differently (zeros; or interpolation and noise): theirs may be others.",
        partial(dsn.against_published, run="UCR 2018", archive="ucr2018"),
    ),
    Part(
        "new-sets-settings",
        "The sets new in 2018: raw series",
        "Series as they come, against the scaled ones of the table above. Most of these sets do "
        "not come scaled; on the others the two trainings are nearly the same.",
        partial(dsn.against, reference="UCR 2018", others=("UCR 2018, raw",)),
    ),
    Part(
        "costs",
        "Networks trained here",
        "Parameters are those that are stored: the active weights, and all weights of "
        "dense and masked dense networks, whose FLOPs count the active ones. LITETime: its five "
        "networks together; a step is one of each. "
        "ResNet is tsai's variant, which the paper counts, and InceptionTime the "
        "original, which has 8 % more parameters than the one that the paper counts.",
        partial(dsn.costs, names=OWN),
    ),
    Part(
        "reproduced",
        "Networks of others, trained here",
        "A check of the package's models: accuracies of our runs, trained as DSN is but for the "
        "learning rate, against published ones, of their authors' recipes and means of several "
        "networks (ResNet: of dl-4-tsc; LITETime: of one ensemble). Ours is tsai's variant of "
        "ResNet. LITETime is five LITE, whose mean probabilities predict; the first of them is the "
        "LITE of this table.",
        partial(dsn.reproduced, names=OTHERS),
    ),
    Part(
        "table-2",
        "Table 2: multivariate sets",
        "UEA: S = 90 %, nf = 59. The published figures are of single networks but InceptionTime's, "
        "which is an ensemble: OS-CNN's its authors', ResNet's as LITE's authors compare with it, "
        "InceptionTime's of the archive's site (tsml). Daily Sports: every fourth segment. The "
        "paper's split is not public: once four subjects are for training and four for testing; "
        "once, within subjects, the first half of each one's segments against the second.",
        dsn.multivariate,
    ),
    Part(
        "table-2-wins",
        "Table 2: wins and losses",
        "The sets of UEA that were run and that the published network has, each with the mean over "
        "its seeds, against the figures of Table 2.",
        partial(dsn.against_published, run="UEA", archive="uea"),
    ),
    Part(
        "table-2-settings",
        "Table 2: padding, scale and epochs",
        "On the sets of UEA: centred zeros, the paper's padding for the sets new in 2018, against "
        "the right-replicate of Table 2; series scaled by the mean and deviation of each channel "
        "over the training set; and a tenth of the 1 000 epochs.",
        partial(
            dsn.against,
            reference="UEA",
            others=("UEA, centred zeros", "UEA, z-normalised", "UEA, 100 epochs"),
        ),
    ),
    Part(
        "table-3",
        "Table 3: sparsity",
        "The dense network is PyTorch's convolution, without kernel groups. FLOPs as the "
        "paper counts them, multiply-adds as the kernels execute them.",
        partial(dsn.costs, names=SPARSITIES),
    ),
    Part(
        "table-4",
        "Table 4: kernel groups",
        "DSN with three kernel groups, against one whose region is the whole kernel.",
        partial(dsn.against, reference="DSN", others=("without groups",)),
    ),
    Part(
        "figure-5",
        "Figure 5: depth and width",
        "DSN has depth 4 and nf = 47. The depths and widths are ours: the paper's may be others.",
        partial(dsn.costs, names=ARCHITECTURES),
        partial(figures.architectures, names=ARCHITECTURES),
        "The figure is a critical difference diagram by mean rank, aeon's, over the sets that all "
        "have: one bar over all networks if Friedman's test finds no difference at 0.05; else "
        "networks under one bar do not differ significantly by Wilcoxon's signed-rank test, "
        "one-sided, at 0.05 divided by the number of networks less one (what aeon calls Holm's "
        "correction).",
    ),
    Part(
        "figure-6",
        "Figure 6: effective receptive fields",
        "Shares of the kernels (upper row), and of paths through the layers (lower), on the data "
        "sets and seeds that both have; each data set counts alike.",
        figure=partial(figures.receptive_fields, names=("DSN", "without groups")),
    ),
    Part(
        "figure-7",
        "Figure 7: dynamic against fixed, random against gradient",
        "Random growth (DSN), the first pattern for the whole training, and growth by gradient "
        "(RigL).",
        partial(dsn.against, reference="DSN", others=GROWTH[1:]),
        partial(figures.growth, names=GROWTH),
        "In the figure each against OS-CNN's published accuracies, a point for each set that all "
        "of them have; above, on how many it wins, ties and loses.",
    ),
    Part(
        "figure-8",
        "Figure 8: active weights",
        "Sums of the weights' magnitudes by tap after training, divided by the largest of the "
        "layer; means over seeds and data sets. Share: what a group has of all magnitudes of the "
        "layer.",
        figure=partial(figures.active_weights, name="DSN"),
    ),
    Part(
        "question-a",
        "Time to a given accuracy: sparse against masked dense",
        "The same recipe.",
        partial(dsn.against, reference="DSN", others=("masked dense",)),
        partial(figures.time_to_accuracy, sparse="DSN", dense="masked dense"),
        f"In the figure the seconds of training until the test accuracy came to {NEAR:.0%} of the "
        "lower of the two final ones: of equal seeds on one machine and day, of these the ones "
        "whose looks at the test set began the earliest (its axis says how many seeds that "
        "leaves); means over them. Looks at the test set take no time of training and do not "
        f"influence it: at most {CURVE_POINTS} a run, fewer where the test set is large beside the "
        "training set, "
        "each in the epoch before weights are moved, and one at the end. Between two looks nothing "
        "is seen, so a ratio is no more exact than they are close. Hollow: seen, for some seed, at "
        "the first look or by the test at the end alone, and perhaps reached long before: then the "
        "ratio is a bound, or is not said.",
    ),
    Part(
        "question-b",
        "Moments of grown weights",
        "Adam's moments of a weight that has just grown: zero (DSN); the second one the mean of "
        "its region; zero, with their bias corrected by the weight's own age; and those of dense "
        "gradients, as in the authors' masked code.",
        partial(dsn.against, reference="DSN", others=MOMENTS),
        partial(figures.differences, reference="DSN", others=MOMENTS),
    ),
    Part(
        "question-c",
        "Sparser at equal time",
        "Wider networks of fewer active weights that train an epoch in about DSN's time.",
        partial(dsn.costs, names=WIDER),
        partial(figures.accuracy_by_time, names=WIDER),
        "In the figure those sets on which all were timed: down, the 95 % interval of the mean "
        "difference; across, from the smallest to the largest ratio of a set.",
    ),
    Part(
        "question-d",
        "Padding and normalisation",
        "The paper's right-replicate on raw series, against other paddings, and series scaled by "
        "the mean and deviation of their training set. UCR 85 comes scaled, each series by itself, "
        "so the latter changes values by two percent or less: that row is nearly a repetition, and "
        "shows how far apart trainings of one seed lie. What scale does is seen on the sets new in "
        "2018, and on UEA.",
        partial(dsn.against, reference="DSN", others=INPUTS),
        partial(figures.differences, reference="DSN", others=INPUTS),
    ),
    Part(
        "other-runs",
        "Other runs against DSN",
        "Runs that the tables above do not name.",
        other_runs,
        optional=True,
    ),
    Part(
        "behind",
        "Where DSN is behind",
        f"Data sets where DSN is {dsn.BEHIND:g} points or more below the best of the "
        "published ResNet, InceptionTime (of UEA: an ensemble) and OS-CNN, and which other runs "
        "come out higher than DSN there. Mean ± standard deviation (seeds). These sets were chosen "
        "because DSN came out low there: by chance alone, any other run is likely to be higher.",
        partial(dsn.behind, names=(*UNIVARIATE, "UEA")),
        picked=True,
    ),
    Part(
        "each-set",
        "Every univariate set",
        "DSN's mean and standard deviation over seeds; published accuracies; the difference to "
        "the best of these; mean CPU seconds of training, on whichever machine trained the set "
        "(those on a GPU have none).",
        partial(dsn.each_set, names=UNIVARIATE),
        picked=True,
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
        "row says by folds). p: Wilcoxon's signed-rank test against all kernels, with Holm's "
        "correction over the table's rows. Fit and features (of one series): medians over the data "
        "sets, CPU seconds of one thread, on whichever machine ran it; fitting by magnitude uses "
        "what POCKET's selection has computed. Rows of different data sets do not compare.",
        random_kernels.pruned_kernels,
    ),
    Part(
        "choices",
        "Does the choice of kernels matter?",
        "The classifier refitted on POCKET's kernels, against one refitted on as many with the "
        "largest weights of a single ridge classifier, and on as many drawn at random.",
        random_kernels.choices,
    ),
    Part(
        "each-set-pruned",
        "Pruned random kernels, every data set",
        "Mean accuracies over seeds, in percent; the published ones beside.",
        random_kernels.pruned_kernels_each,
        picked=True,
    ),
)


FILTERS = (
    Part(
        "smaller-networks",
        "Smaller networks",
        "Means over the sets that all have, and over seeds. A quarter of the training's epochs for "
        "fine-tuning, in each case; retrained: all of them, from new weights. Parameters and "
        f"multiply-adds: those that are left. Times: a batch of {BATCH} on one thread, in turns, "
        "of each set's networks of one seed. Times less: multiply-adds / prediction / step of the "
        "network before the first comma of the name, by those of this one, over the sets that were "
        "timed; what rows of the same network differ by is noise. Against that network as it was "
        "trained: wins, ties and losses over the sets, the mean difference, its 95 % interval "
        "(Student's t) and the median, and Wilcoxon's signed-rank test with Holm's correction. "
        "Fine-tuning begins at the first learning rate of the training; what that alone does to a "
        "network says unpruned, tuned.",
        smaller_networks.smaller_networks,
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
        smaller_networks.silenced,
    ),
)


RUNS = (
    Part(
        "runs",
        "Every run",
        "All runs, as the plan names them; the tables above show those whose names they know. "
        "Means over data sets, of each the mean over its seeds: rows of different data sets do not "
        "compare.",
        every_run.every_run,
        picked=True,
    ),
)
