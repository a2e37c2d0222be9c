"""One job of a sweep: ROCKET or MiniROCKET, whole and pruned, on one data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from benchmarks.paper.archives import published_accuracy, read
from benchmarks.paper.networks import ROCKETS
from benchmarks.paper.plan import Job
from benchmarks.paper.training import facts_of
from sparseconv.rocket.bank import POCKET
from sparseconv.rocket.features import chosen, kernel_features
from sparseconv.rocket.selection import GroupSelection

ITERATIONS, RIDGE = POCKET["n_iter"], POCKET["k"]  # of the selection
SHARES = {"35 %": 0.35, "10 %": 0.1}
AS_PUBLISHED = "as published"  # the share of the authors' table for the data set, of ROCKET


def perform(job: Job, source: str) -> dict[str, Any]:
    """Fit and test; return the row, with an entry of ``"variants"`` per way to prune.

    Times are CPU seconds of one thread.
    """
    # Here, since aeon takes seconds to import, and other jobs' processes read this module as well.
    from sparseconv.estimators.pocket import draw_kernels, ridge_classifier

    data = read(source, job.options["series"], job.options["split"])
    arguments, model = job.options["network"], job.options["model"]
    n_classes, group = len(data.classes), 2 if model == "ROCKET" else 1
    n_kernels = arguments.get("n_kernels", POCKET["n_kernels"])
    lap = _stopwatch()
    bank = draw_kernels(model.lower(), n_kernels, job.seed, data.X_train)
    seconds = {"draw_seconds": lap()}
    train = kernel_features(data.X_train, bank)
    seconds["transform_seconds"] = lap()
    test = kernel_features(data.X_test, bank)
    seconds["predict_seconds"] = lap()
    candidates = bank.n_features // group

    def tested(columns: Any) -> dict[str, float]:
        lap()
        coef, intercept, _ = ridge_classifier(train[:, columns], data.y_train)
        refit_seconds = lap()
        guess = chosen(test[:, columns] @ coef + intercept)
        accuracy = float((guess == data.y_test).mean())
        return {"accuracy": accuracy, "refit_seconds": refit_seconds}

    whole = tested(slice(None))
    seconds["train_seconds"] = seconds["transform_seconds"] + whole["refit_seconds"]
    lap()
    select = GroupSelection(train, data.y_train, n_classes, group)
    seconds["prepare_seconds"] = lap()
    counts = _counts(job.dataset, model, candidates)
    variants = []
    if is_by_folds(arguments):
        keep = "cv" if arguments.get("cv") else next(iter(counts.values())) / candidates
        variants.append(_cross_validated(job, data, bank, keep))
        counts = {}
    for (share, keep), way in product(counts.items(), ("POCKET", "magnitude", "random")):
        lap()
        if way == "random":
            drawn = np.random.default_rng(job.seed).permutation(candidates)[:keep]
            columns = (np.sort(drawn)[:, None] * group + np.arange(group)).reshape(-1)
        else:
            found = select(keep, RIDGE, ITERATIONS if way == "POCKET" else 1)
            columns = found.columns
        variant = {"way": way, "share": share, "keep": keep, "select_seconds": lap()}
        variant |= tested(columns)
        if way == "POCKET":
            decision = test[:, columns] @ found.coef + found.intercept
            variant["stage_1"] = float((chosen(decision) == data.y_test).mean())
            small = bank.select_features(columns)
            kernel_features(data.X_test[:1], small)  # its plan is made once
            lap()
            kernel_features(data.X_test, small)
            variant["predict_seconds"] = lap()
        variants.append(variant)
    return {
        **facts_of(job, data),
        "accuracy": whole["accuracy"],
        "n_kernels": bank.n_kernels,
        "n_candidates": candidates,
        **seconds,
        "variants": variants,
    }


def _cross_validated(job: Job, data: Any, bank: Any, keep: float | str) -> dict[str, Any]:
    """Choose the number of kernels, or the ridge penalty, by 5-fold cross-validation."""
    from sparseconv.estimators.pocket import POCKETClassifier

    lap = _stopwatch()
    by_folds = {"keep": keep, "k": RIDGE if keep == "cv" else "cv"}
    classifier = POCKETClassifier(bank, **by_folds, random_state=job.seed)
    classifier.fit(data.X_train, data.y_train)
    select_seconds = lap()
    kept = classifier.keep_ / classifier.n_candidates_
    found = {"keep": kept, "k": classifier.k_, "random_state": job.seed}
    first = POCKETClassifier(bank, **found, refit=False).fit(data.X_train, data.y_train)
    accuracy, stage_1 = (
        float((fitted.predict(data.X_test) == data.y_test).mean()) for fitted in (classifier, first)
    )
    return {
        "way": "POCKET", "share": "cv" if keep == "cv" else AS_PUBLISHED, "k": classifier.k_,
        "keep": classifier.keep_, "accuracy": accuracy, "stage_1": stage_1,
        "select_seconds": select_seconds,
    }  # fmt: skip


def _counts(dataset: str, model: str, candidates: int) -> dict[str, int]:
    """Return the numbers of groups to keep, by the name of the share."""
    counts = {name: round(share * candidates) for name, share in SHARES.items()}
    known = published_accuracy("POCKET kernels").get(dataset)
    if known and model == "ROCKET":
        counts = {AS_PUBLISHED: round(known / 10_000 * candidates), **counts}
    return {name: min(max(1, count), candidates) for name, count in counts.items()}


def _stopwatch() -> Callable[[], float]:
    """Return a function that returns the CPU seconds since its last call."""
    last = time.process_time()

    def lap() -> float:
        nonlocal last
        before, last = last, time.process_time()
        return round(last - before, 5)

    return lap


def is_pruned_kernels(row: Mapping[str, Any]) -> bool:
    """Return whether the row comes from ``perform``, not from training a network."""
    return row["options"]["model"] in ROCKETS


def is_by_folds(arguments: Mapping[str, Any]) -> bool:
    """Return whether cross-validation chooses kernels or the ridge penalty."""
    return bool(arguments.get("cv")) or arguments.get("k") == "cv"


def expanded(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield each row, and a row under another name for each of its variants.

    ``"fit_seconds"`` include drawing kernels and transforming the training set; magnitude reuses
    the factor of POCKET's selection. ``"predict_seconds"`` are the time of the features, or None.
    """
    for row in rows:
        whole = row["draw_seconds"] + row["train_seconds"]
        yield {**row, "keep": row["n_candidates"], "fit_seconds": whole}
        for variant in row["variants"]:
            name = f"{row['run']}, {variant['share']}, {variant['way']}"
            seconds = variant["select_seconds"]
            if not is_by_folds(row["options"]["network"]):  # whose time is that of a whole fit
                seconds += row["draw_seconds"] + row["transform_seconds"]
                seconds += row["prepare_seconds"] if variant["way"] != "random" else 0
            found = {**row, "predict_seconds": None, **variant, "run": name}
            yield {**found, "fit_seconds": seconds + variant.get("refit_seconds", 0)}
            if "stage_1" in variant:
                first = {"run": f"{name}, stage 1", "accuracy": variant["stage_1"]}
                yield {**found, **first, "fit_seconds": seconds}
