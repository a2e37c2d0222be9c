"""A whole benchmark run: what is measured, how often, and the document that it becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from sparseconv.bench import random_kernels
from sparseconv.bench.baselines import BASELINES
from sparseconv.bench.cases import CASES, SUITES, WITHOUT_CASES, Case
from sparseconv.bench.document import rounded
from sparseconv.bench.network import compare
from sparseconv.bench.run import WrongResultError, measure
from sparseconv.measure.machine import measurement_context
from sparseconv.measure.memory import retain_freed_memory
from sparseconv.measure.table import threads_text
from sparseconv.measure.timing import LEAST_ROUNDS

# So that everything takes an hour on two cores, and what README.md shows half of that.
README_SUITES = ("layer", "density", "trained", "network")
ROUNDS, QUICK_ROUNDS = 12, LEAST_ROUNDS
QUICK_BASELINES = ("masked_dense", "dense_best")  # compiling takes most of the network's time

Document = dict[str, Any]
Rows = list[dict[str, Any]]


def run(
    cases: Sequence[Case],
    thread_counts: Sequence[int],
    *,
    others: Collection[str] = (),
    rounds: int | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    quick: bool = False,
    save: Callable[[Document], object] = lambda document: None,
) -> Document:
    """Measure cases and networks; return what files and reports are made of.

    The process keeps freed memory from then on (``retain_freed_memory``): either side gains.

    Everything is measured with each of ``thread_counts``; ``others`` are suites of
    ``WITHOUT_CASES``. ``quick`` takes few rounds, and compiles nothing of the network. ``save`` is
    given the document after each measurement, its ``"complete"`` false until the last.

    Raises:
        WrongResultError: a result left its error bound; the case is named. What was measured
            before it has been saved.
    """
    retain_freed_memory()  # before anything is timed, so that all of it is timed alike
    rounds = QUICK_ROUNDS if quick else rounds
    missing = {case.suite for case in CASES.values() if case not in cases}
    missing |= {name for name in WITHOUT_CASES if name not in others}
    document: Document = {
        "complete": False,
        "suites": [name for name in SUITES if name not in missing],  # measured as a whole
        "rounds": rounds or ROUNDS,
        "machine": measurement_context(),
        "rows": [],
        **{name: [] for name in WITHOUT_CASES},
    }
    measures: list[tuple[str, str, Callable[..., Rows]]] = [
        ("rows", case.name, partial(measure, case=case, baselines=baselines)) for case in cases
    ]
    if "random_kernels" in others:
        measures.append(("random_kernels", "random kernels", random_kernels.measure))
    tasks: list[tuple[str, str, Callable[[], Rows]]] = [
        (key, f"{name}, {threads_text(count)}", partial(call, count, rounds=rounds or ROUNDS))
        for key, name, call in measures
        for count in thread_counts
    ]
    if "network" in others:
        chosen = QUICK_BASELINES if quick else compare.BASELINES
        found = compare.tasks(thread_counts, rounds=rounds or compare.ROUNDS, baselines=chosen)
        tasks += [("network", *task) for task in found]
    for number, (key, name, task) in enumerate(tasks, 1):
        print(f"{number} of {len(tasks)}: {name}", file=sys.stderr, flush=True)
        try:
            document[key] += rounded(task())
        except WrongResultError as error:
            raise WrongResultError(f"{name}: {error}") from error
        save(document)
    document["complete"] = True
    save(document)
    return document
