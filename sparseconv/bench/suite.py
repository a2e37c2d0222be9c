"""A whole benchmark run: what is measured, how often, and the document that it becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sparseconv.bench import compiled, random_kernels
from sparseconv.bench.baselines import BASELINES
from sparseconv.bench.cases import CASES, SUITES, WITHOUT_CASES, Case
from sparseconv.bench.document import SCHEMA, rounded
from sparseconv.bench.network import compare
from sparseconv.bench.run import WrongResultError, measure
from sparseconv.measure import peaks
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.measure.memory import retain_freed_memory
from sparseconv.measure.table import threads_text
from sparseconv.measure.timing import LEAST_ROUNDS
from sparseconv.ops import backends

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
    """Measure peaks, cases and network; return what files and reports are made of.

    The process keeps freed memory from then on (``retain_freed_memory``): either side gains.

    Args:
        cases: from ``cases.select``; those whose instruction set cannot run here are left out, and
            stderr says so.
        thread_counts: everything is measured with each.
        others: suites of ``WITHOUT_CASES`` to measure as well.
        rounds: pairs of neighbours; None chooses.
        baselines: of ``BASELINES``, for the cases.
        quick: few rounds; of the network nothing compiled.
        save: given the document after each measurement, its ``"complete"`` false until the last.

    Raises:
        WrongResultError: a result left its error bound; the case is named. What was measured
            before it has been saved.
    """
    retain_freed_memory()  # before anything is timed, so that all of it is timed alike
    rounds = QUICK_ROUNDS if quick else rounds
    document: Document = {"schema": SCHEMA, "complete": False}
    document |= {"suites": _whole_suites(cases, others), "rounds": rounds or ROUNDS}
    document |= {"machine": measurement_context()}
    document["peaks"] = rounded(peaks.measure(thread_counts))
    document |= {"rows": [], **{name: [] for name in WITHOUT_CASES}}
    settings = {"rounds": rounds or ROUNDS, "baselines": baselines}
    tasks = [("rows", *task) for task in _case_tasks(cases, thread_counts, settings)]
    if "network" in others:
        beside = QUICK_BASELINES if quick else compare.BASELINES
        found = compare.tasks(thread_counts, rounds=rounds or compare.ROUNDS, baselines=beside)
        tasks += [("network", *task) for task in found]
    measures: dict[str, Callable[..., Rows]] = {
        "random_kernels": random_kernels.measure,
        "compiled": compiled.measure,
    }
    tasks += [
        (key, f"{key.replace('_', ' ')}, {threads_text(count)}",
         partial(measure_part, count, rounds=rounds or ROUNDS))
        for key, measure_part in measures.items() if key in others
        for count in thread_counts
    ]  # fmt: skip
    for number, (key, name, call) in enumerate(tasks, 1):
        print(f"{number} of {len(tasks)}: {name}", file=sys.stderr, flush=True)
        try:
            document[key] += rounded(call())
        except WrongResultError as error:
            raise WrongResultError(f"{name}: {error}") from error
        save(document)
    document["complete"] = True
    save(document)
    return document


def _whole_suites(cases: Sequence[Case], others: Collection[str]) -> list[str]:
    """The suites of which every case is measured."""
    missing = {case.suite for case in CASES.values() if case not in cases}
    missing |= {name for name in WITHOUT_CASES if name not in others}
    return [name for name in SUITES if name not in missing]


def _case_tasks(
    cases: Sequence[Case], thread_counts: Sequence[int], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[], Rows]]]:
    def on_threads(count: int, case: Case) -> Rows:
        with threads(count):
            return measure(case, **settings)

    assert backends.extension is not None
    for case in cases:
        if case.isa in ("", *backends.extension.isas()):
            for count in thread_counts:
                yield f"{case.name}, {threads_text(count)}", partial(on_threads, count, case)
        else:
            print(f"{case.name} is left out: this CPU has no {case.isa}", file=sys.stderr)
