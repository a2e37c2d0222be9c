"""Tables 1 to 4 of the DSN paper, from the rows of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, geometric_mean, stdev

from benchmarks.paper.archives import members
from benchmarks.paper.comparison import (
    PEERS,
    Row,
    Runs,
    Versus,
    holm,
    published_accuracy,
    versus,
)
from benchmarks.paper.networks import ROCKETS
from sparseconv.measure.table import Table, with_thousands
from sparseconv.training.recipe import Recipe

NONE = "-"
# The paper's wins, ties and losses of DSN over all 85 sets.
PAPER = {"ResNet": (53, 3, 29), "InceptionTime": (40, 5, 40), "OS-CNN": (49, 3, 33)}


def univariate(runs: Runs) -> Table:
    """Table 1: DSN against published networks on the UCR 85 sets that were run."""
    ours = _on_ucr85(runs, "DSN")
    found = {peer: versus(ours, published_accuracy(peer)) for peer in PEERS}
    corrected = dict(
        zip(found, holm([result and result.p for result in found.values()]), strict=True)
    )
    rows = []
    for peer, result in found.items():
        if result is None:
            continue
        theirs = published_accuracy(peer)
        common = [name for name in ours if name in theirs]
        rows.append(
            (
                peer,
                wins(result),
                _scaled(PAPER[peer], result.sets),
                f"{fmean(theirs[name] for name in common):.2f}",
                f"{fmean(ours[name] for name in common):.2f}",
                difference(result),
                p_text(corrected[peer]),
            )
        )
    header = (
        "published", "DSN wins/ties/losses", "the paper's, scaled", "its accuracy %",
        "DSN's %", "difference, 95 % interval", "p, Holm",
    )  # fmt: skip
    return Table(header, rows)


def _on_ucr85(runs: Runs, run: str) -> dict[str, float]:
    sets = set(members("ucr85"))
    return {name: value for name, value in runs.accuracy(run).items() if name in sets}


def _scaled(counts: Sequence[int], sets: int) -> str:
    return "/".join(f"{count * sets / sum(counts):.1f}" for count in counts)


def costs(runs: Runs, names: Sequence[str]) -> Table:
    """Parameters, FLOPs and measured time of runs, means over the data sets that all have.

    Times: of those sets on which all were trained on one kind of CPU. No rows with fewer than two
    runs to compare.
    """
    names = [name for name in names if name in runs]
    common = runs.common(*names) if len(names) > 1 else []
    timed = runs.on_one_cpu(*names)
    compared = timed.common(*names) if common else []
    rows = []
    for name in names if common else ():
        mean = partial(runs.over_sets, name, sets=common)
        seconds = partial(timed.over_sets, name, sets=compared)
        held = [row for dataset in common for row in runs.rows(name)[dataset]]
        rows.append(
            (
                name,
                f"{100 * mean('accuracy'):.2f}",
                f"{mean('params') / 1e3:.2f}",
                f"{mean('flops_paper') / 1e6:.2f}"
                if all("flops_paper" in row for row in held)
                else NONE,
                f"{mean('macs') / 1e6:.2f}",
                f"{1e3 * seconds(epoch_seconds):.1f}" if compared else NONE,
                f"{1e6 * seconds(prediction_seconds):.0f}" if compared else NONE,
            )
        )
    sets = f" ({len(compared)} of {len(common)} sets)" if len(compared) < len(common) else ""
    header = (
        "run", "accuracy %", "params K", "FLOPs M (paper's)", "multiply-adds M",
        f"epoch ms{sets}", f"prediction us{sets}",
    )  # fmt: skip
    return Table(header, rows)


def epoch_seconds(row: Row) -> float:
    """Measured seconds of training an epoch, on one thread."""
    return float(row["train_seconds"]) / int(row["epochs"])


def prediction_seconds(row: Row) -> float:
    """Measured seconds of predicting one series, in batches of 64, on one thread."""
    return float(row["predict_seconds"]) / int(row["n_test"])


def multivariate(runs: Runs) -> Table:
    """Table 2: DSN on multivariate sets, beside published networks."""
    rows = []
    for run in ["UEA", *(name for name in runs.names() if name.startswith("Daily Sports"))]:
        for name, accuracy in runs.accuracy(run).items():
            theirs = [published_accuracy(peer).get(name) for peer in PEERS]
            held = runs.rows(run)[name]
            rows.append(
                (
                    name if run == "UEA" else run,
                    f"{accuracy:.2f} ({len(held)})",
                    *(NONE if value is None else f"{value:.2f}" for value in theirs),
                    f"{fmean(row['params'] for row in held) / 1e3:.2f}",
                )
            )
    return Table(("data set", "DSN % (seeds)", *PEERS, "params K"), rows)


def against(runs: Runs, reference: str, others: Sequence[str]) -> Table:
    """Other runs against one, on the sets that both have: mean accuracies and their difference."""
    base = runs.accuracy(reference)
    rows = []
    found: dict[str, Versus] = {}
    for other in others:
        result = versus(runs.accuracy(other), base)
        if result is not None:
            found[other] = result
    corrected = holm([result.p for result in found.values()])
    for (other, result), p in zip(found.items(), corrected, strict=True):
        theirs = runs.accuracy(other)
        common = [name for name in theirs if name in base]
        rows.append(
            (
                other,
                str(result.sets),
                f"{fmean(theirs[name] for name in common):.2f}",
                f"{fmean(base[name] for name in common):.2f}",
                wins(result),
                difference(result),
                p_text(p),
            )
        )
    header = (
        "run", "sets", "accuracy %", f"{reference} %", "wins/ties/losses",
        "difference, 95 % interval", "p, Holm",
    )  # fmt: skip
    return Table(header, rows)


def each_set(runs: Runs) -> Table:
    """Every UCR set: DSN's mean and deviation, and the published networks'."""
    peers: Mapping[str, Mapping[str, float]] = {peer: published_accuracy(peer) for peer in PEERS}
    ours, seconds = runs.accuracy("DSN"), runs.mean("DSN", "train_seconds")
    rows = []
    for name in sorted(ours):
        theirs = [peers[peer].get(name) for peer in PEERS]
        gap = to_the_best(name, ours[name])
        rows.append(
            (
                name,
                _spread_of(runs, "DSN", name),
                *(NONE if value is None else f"{value:.2f}" for value in theirs),
                NONE if gap is None else f"{gap:+.2f}",
                with_thousands(seconds[name]),
            )
        )
    return Table(("data set", "DSN % ± sd (seeds)", *PEERS, "to the best", "training s"), rows)


def behind(runs: Runs, others: Sequence[str]) -> Table:
    """The sets where DSN is ``BEHIND`` points or more below the best published network: with other
    settings, each of which stands for a cause.
    """
    gaps = {name: to_the_best(name, ours) for name, ours in runs.accuracy("DSN").items()}
    sets = sorted((gap, name) for name, gap in gaps.items() if gap is not None and gap <= -BEHIND)
    tried = [other for other in others if any(name in runs.rows(other) for _, name in sets)]
    rows = [
        (
            name,
            f"{gap:+.2f}",
            *(_spread_of(runs, run, name) for run in ("DSN", *tried)),
        )
        for gap, name in sets
    ]
    return Table(("data set", "to the best", "DSN % ± sd (seeds)", *tried), rows)


BEHIND = 5.0  # percentage points


def to_the_best(dataset: str, percent: float) -> float | None:
    """Percentage points to the best of the published accuracies; None if there is none."""
    theirs = [found[dataset] for found in map(published_accuracy, PEERS) if dataset in found]
    return round(percent - max(theirs), 2) if theirs else None


def _spread_of(runs: Runs, run: str, dataset: str) -> str:
    return spread([100 * row["accuracy"] for row in runs.rows(run).get(dataset, ())])


def spread(percents: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (how many), ``"-"`` of none."""
    if not percents:
        return NONE
    deviation = f" ± {stdev(percents):.{digits}f}" if len(percents) > 1 else ""
    return f"{fmean(percents):.{digits}f}{deviation} ({len(percents)})"


def wins(result: Versus) -> str:
    return f"{result.wins}/{result.ties}/{result.losses}"


def difference(result: Versus) -> str:
    return f"{result.difference:+.2f} [{result.low:+.2f}, {result.high:+.2f}]"


def p_text(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


# Whose published accuracies stand beside a run of ours.
PUBLISHED_ROCKET = {
    "ROCKET": "ROCKET",
    "ROCKET, as published, POCKET, stage 1": "POCKET-1",
    "ROCKET, as published, POCKET": "POCKET-2",
    "ROCKET, ridge by folds, as published, POCKET, stage 1": "POCKET-1",
    "ROCKET, ridge by folds, as published, POCKET": "POCKET-2",
}


BY_FOLDS = ("ROCKET, cross-validated", "ROCKET, ridge by folds")


def pruned_kernels(runs: Runs) -> Table:
    """ROCKET and MiniROCKET, whole and pruned: against the whole, and beside published means."""
    rows = []
    for name in runs.names():
        model = name.split(",")[0]
        if model not in ROCKETS or model not in runs or name in BY_FOLDS:
            continue
        # Against all kernels of the same draw, where a run has some.
        model = next((run for run in BY_FOLDS if name.startswith(f"{run}, ")), model)
        common, ours, whole = runs.common(model, name), runs.accuracy(name), runs.accuracy(model)
        held = [row for dataset in common for row in runs.rows(name)[dataset]]
        kept = fmean(row["keep"] / row["n_candidates"] for row in held)
        result = None if name == model else versus(ours, whole)
        timed = all(row["predict_seconds"] is not None for row in held)
        rows.append(
            (
                name,
                f"{len(common)}, {len(held)}",
                f"{100 * kept:.0f} %",
                f"{fmean(ours[dataset] for dataset in common):.2f}",
                wins(result) if result else NONE,
                difference(result) if result else NONE,
                _beside_published(name, ours),
                f"{fmean(row['fit_seconds'] for row in held):.2f}",
                f"{1e6 * fmean(map(prediction_seconds, held)):.0f}" if timed else NONE,
            )
        )
    header = (
        "run", "sets, fits", "kept", "accuracy %", "wins/ties/losses against all",
        "difference, 95 % interval", "published mean, ours", "fit s", "features us",
    )  # fmt: skip
    return Table(header, rows)


def choices(runs: Runs) -> Table:
    """Does the choice of kernels matter: POCKET against magnitude and against chance, refitted."""
    found = []
    for name in runs.names():
        if name.endswith(", POCKET"):
            base = runs.accuracy(name)
            for way in ("magnitude", "random"):
                other = name.removesuffix("POCKET") + way
                if result := versus(base, runs.accuracy(other)):
                    found.append((name, way, result))
    corrected = holm([result.p for _, _, result in found])
    rows = [
        (name, way, f"{result.sets}", wins(result), difference(result), p_text(p))
        for (name, way, result), p in zip(found, corrected, strict=True)
    ]
    header = ("run", "against", "sets", "wins/ties/losses", "difference, 95 % interval", "p, Holm")
    return Table(header, rows, 2)


def _beside_published(run: str, ours: Mapping[str, float]) -> str:
    """Published and own mean accuracy over the sets that have both."""
    theirs = published_accuracy(PUBLISHED_ROCKET[run]) if run in PUBLISHED_ROCKET else {}
    known = [dataset for dataset in ours if dataset in theirs]
    if not known:
        return NONE
    return f"{fmean(theirs[d] for d in known):.2f}, {fmean(ours[d] for d in known):.2f}"


def pruned_kernels_each(runs: Runs) -> Table:
    """Every data set: accuracies of the whole and of pruned ones, ours and published."""
    names = [name for name in runs.names() if name.split(",")[0] in ROCKETS]
    names = [name for name in names if name not in BY_FOLDS]
    theirs = {name: published_accuracy(name) for name in ("ROCKET", "POCKET-1", "POCKET-2")}
    found = {name: runs.accuracy(name) for name in names}
    sets = sorted({dataset for accuracy in found.values() for dataset in accuracy})
    rows = [
        (
            dataset,
            *(_percent(found[name].get(dataset)) for name in names),
            *(_percent(theirs[name].get(dataset)) for name in theirs),
        )
        for dataset in sets
    ]
    header = ("data set", *names, *(f"published {name}" for name in theirs))
    return Table(header, rows)


def smaller_networks(runs: Runs) -> Table:
    """Networks and what pruning made of them: accuracy, size, time, and against the whole ones."""
    names = runs.names()
    common = runs.common(*names)
    found: dict[str, Versus] = {}
    for name in names:
        whole = name.split(",")[0]
        if (
            name != whole
            and whole in runs
            and (result := versus(runs.accuracy(name), runs.accuracy(whole)))
        ):
            found[name] = result
    corrected = dict(zip(found, holm([result.p for result in found.values()]), strict=True))
    # Times of the sets of which every run has some.
    together = [
        dataset
        for dataset in common
        if all(any("forward_ms" in row for row in runs.rows(name)[dataset]) for name in names)
    ]
    rows = []
    for name in names if common else []:
        held = [row for dataset in common for row in runs.rows(name)[dataset]]
        mean = partial(_mean_over_sets, [runs.rows(name)[dataset] for dataset in common])
        timed = [row for row in held if "forward_ms" in row and row["dataset"] in together]
        result = found.get(name)
        rows.append(
            (
                name,
                f"{len(common)}, {len(held)}",
                _percent(100 * mean("accuracy")),
                f"{mean('params') / 1e3:.1f}",
                f"{mean('macs') / 1e6:.2f}",
                *(
                    f"{geometric_mean([row[f'{which}_ms'] for row in timed]):.2f}"
                    if timed else NONE
                    for which in ("forward", "step")
                ),
                _times_less(timed, runs.rows(name.split(",")[0])),
                wins(result) if result else NONE,
                difference(result) if result else NONE,
                p_text(corrected[name]) if result else NONE,
            )
        )  # fmt: skip
    header = (
        "run", "sets, runs", "accuracy %", "params K", "MACs M", "prediction ms", "step ms",
        "times less", "wins/ties/losses", "difference, 95 % interval", "p, Holm",
    )  # fmt: skip
    return Table(header, rows)


def _mean_over_sets(sets: Sequence[Sequence[Row]], key: str) -> float:
    """Each data set counts alike, however many seeds it has."""
    return fmean(fmean(row[key] for row in rows) for rows in sets)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _times_less(timed: Sequence[Row], whole: Mapping[str, Sequence[Row]]) -> str:
    """How many times less multiply-adds, time of a prediction and of a step: than the whole took.

    Of the same data set and seed.
    """
    pairs = [pair for row in timed for pair in _pairs([row], whole.get(row["dataset"], ()))]
    if not all("forward_ms" in other for _, other in pairs) or not pairs:
        return NONE
    return " / ".join(
        f"{geometric_mean([other[key] / row[key] for row, other in pairs]):.1f}"
        for key in ("macs", "forward_ms", "step_ms")
    )


def _pairs(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Those of one seed."""
    return [(row, other) for row in rows for other in others if other["seed"] == row["seed"]]


def silenced(runs: Runs) -> Table:
    """What DSP removed of networks that were trained to silence filters, by steps of training."""
    found = []
    for name in runs.names():
        for dataset, held in runs.rows(f"{name}, DSP").items():
            first, whole = held[0], runs.rows(name)[dataset]
            if not first["options"]["silence"]:
                continue
            recipe = Recipe(**first["options"]["recipe"])
            batches = math.ceil(first["n_train"] / recipe.batch_size_for(first["n_train"]))
            steps = first["epochs"] * batches
            left = fmean(row["params"] / other["params"] for row, other in _pairs(held, whole))
            cells = (
                name, dataset, str(first["n_train"]), with_thousands(steps),
                f"{100 * (1 - left):.0f}",
                *(_percent(100 * fmean(row[key] for row in rows))
                  for rows, key in ((whole, "accuracy"), (held, "at_once"), (held, "accuracy"))),
            )  # fmt: skip
            found.append(((name, steps, dataset), cells))
    header = (
        "run", "data set", "series", "steps", "smaller by %", "accuracy before", "at once", "tuned",
    )  # fmt: skip
    return Table(header, [cells for _, cells in sorted(found)], text_columns=2)
