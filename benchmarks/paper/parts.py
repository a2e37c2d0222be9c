"""What a report shows: every table and figure with its title and its caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.paper import figures
from benchmarks.paper.comparison import Runs
from benchmarks.paper.tables import dsn, random_kernels, smaller_networks
from sparseconv.measure.table import Table

SPARSITIES = ("dense", "S = 50 %", "DSN", "S = 90 %")
ARCHITECTURES = ("DSN", "depth 2", "depth 6", "nf = 24", "nf = 71")
GROWTH = ("DSN", "fixed pattern", "gradient growth")
MOMENTS = ("moments: mean", "moments: corrected", "masked dense")
WIDER = ("DSN", "S = 90 %, nf = 56", "S = 95 %, nf = 68", "S = 98 %, nf = 77")
SERIES = ("centred zeros", "centred replicate", "z-normalised", "centred zeros, z-normalised")
# What could be why DSN is behind on a data set.
CAUSES = ("masked dense", "S = 50 %", "gradient growth", "without groups", *SERIES)
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
        dsn.univariate,
    ),
    Part(
        "costs",
        "Networks trained here",
        "Means over the sets that all of them were trained on. Parameters are those that exist "
        "(active weights). Epochs and predictions: measured on one thread, in batches of the "
        "recipe and of 64, while other jobs of the sweep ran on the other cores; means over the "
        "sets on which all were measured on one kind of CPU, the one with most of them.",
        partial(dsn.costs, names=OWN),
    ),
    Part(
        "table-2",
        "Table 2: multivariate sets",
        "UEA: S = 90 %, nf = 59. The published figures are their authors', of single networks but "
        "InceptionTime's, which is an ensemble. Daily Sports: every fourth segment. The paper's "
        "split is not public: once four subjects are for training and four for testing; once, "
        "within subjects, the first half of each one's segments against the second.",
        dsn.multivariate,
    ),
    Part(
        "table-3",
        "Table 3: sparsity",
        "On the sets that all four were trained on. The dense network is PyTorch's convolution, "
        "without kernel groups. FLOPs as the paper counts them, multiply-adds as the kernels "
        "execute them, measured times as above.",
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
        "Critical difference diagram by mean rank (aeon's, Wilcoxon with Holm's correction): "
        "classifiers under one bar do not differ significantly. DSN has depth 4 and nf = 47. The "
        "depths and widths are ours: the paper's may be others.",
        partial(dsn.costs, names=ARCHITECTURES),
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
        partial(dsn.against, reference="DSN", others=GROWTH[1:]),
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
        partial(dsn.against, reference="DSN", others=("masked dense",)),
        partial(figures.time_to_accuracy, sparse="DSN", dense="masked dense"),
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
        "Wider networks of fewer active weights that train an epoch in about DSN's time. In the "
        "figure: the sets on which all were measured on one kind of CPU.",
        partial(dsn.costs, names=WIDER),
        partial(figures.accuracy_by_time, names=WIDER),
    ),
    Part(
        "question-d",
        "Padding and normalisation",
        "The paper's right-replicate on raw series, against other paddings, and series scaled by "
        "the mean and deviation of their training set.",
        partial(dsn.against, reference="DSN", others=SERIES),
        partial(figures.differences, reference="DSN", others=SERIES),
    ),
    Part(
        "behind",
        "Where DSN is behind",
        "UCR 85 sets where DSN is five points or more below the best of the published ResNet, "
        "InceptionTime and OS-CNN, and what other settings reach there, each of which tests a "
        "cause: dense weights, more weights, another way to grow, one kernel group, other "
        "paddings, scaled series. Mean ± standard deviation (seeds).",
        partial(dsn.behind, others=CAUSES),
    ),
    Part(
        "each-set",
        "Every data set",
        "DSN's mean and standard deviation over seeds; published accuracies; the difference to "
        "the best of these; mean seconds of training.",
        dsn.each_set,
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
