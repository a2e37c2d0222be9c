"""A whole benchmark run: what is measured, how often, and the document that it becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from sparseconv.bench import goals
from sparseconv.bench.baselines import BASELINES
from sparseconv.bench.cases import Case
from sparseconv.bench.document import SCHEMA, rounded, threads_text
from sparseconv.bench.network import compare
from sparseconv.bench.run import WrongResultError, measure
from sparseconv.measure import peaks
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.ops import backends, calls

# Beside the suites of cases.
EXTRA_SUITES = {"network": "the whole network: training step, update, inference, latency"}
# So that everything takes half an hour on two cores, and what README.md shows half of that.
README_SUITES = ("layer", "density", "trained", "network")
ROUNDS, QUICK_ROUNDS = 12, 5
QUICK_NETWORK = {"baselines": ("masked_dense", "dense_best")}  # compiling takes most of its time

Document = dict[str, Any]
Rows = list[dict[str, Any]]


class Task(NamedTuple):
    """What adds rows to one list of the document."""

    name: str
    key: str
    measure: Callable[[], Rows]


def run(
    cases: Sequence[Case],
    thread_counts: Sequence[int],
    *,
    extra: Sequence[str] = (),
    rounds: int | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    quick: bool = False,
    save: Callable[[Document], object] = lambda document: None,
) -> Document:
    """Measure peaks, cases and network; return what files and reports are made of.

    Args:
        cases: from ``cases.select``; those whose instruction set cannot run here are left out, and
            stderr says so.
        thread_counts: everything is measured with each.
        extra: of ``EXTRA_SUITES``.
        rounds: pairs of neighbours; None chooses.
        baselines: of ``BASELINES``, for the cases.
        quick: few rounds; of the network nothing compiled.
        save: given the document after each measurement, its ``"complete"`` false until the last.

    Raises:
        WrongResultError: a result left its error bound; the case is named. What was measured
            before it has been saved.
    """
    rounds = QUICK_ROUNDS if quick else rounds
    document: Document = {
        "schema": SCHEMA,
        "complete": False,
        "machine": measurement_context(),
        "peaks": [],
        "rows": [],
        "network": [],
        "goals": [],
    }
    tasks = [
        *_case_tasks(cases, thread_counts, rounds or ROUNDS, baselines, document["peaks"]),
        *(_network_tasks(thread_counts, rounds, quick) if "network" in extra else ()),
    ]
    document["peaks"] += rounded(peaks.measure(thread_counts))
    for number, task in enumerate(tasks, 1):
        print(f"{number} of {len(tasks)}: {task.name}", file=sys.stderr, flush=True)
        try:
            document[task.key] += rounded(task.measure())
        except WrongResultError as error:
            raise WrongResultError(f"{task.name}: {error}") from error
        document["goals"] = [goal._asdict() for goal in goals.judge(document)]
        save(document)
    document["complete"] = True
    save(document)
    return document


def _case_tasks(
    cases: Sequence[Case],
    thread_counts: Sequence[int],
    rounds: int,
    baselines: Sequence[str],
    machine_peaks: Sequence[Mapping[str, Any]],
) -> Iterator[Task]:
    assert backends.extension is not None
    settings: Any = {"rounds": rounds, "baselines": baselines, "machine_peaks": machine_peaks}

    def on_threads(count: int, case: Case) -> Rows:
        with threads(count):
            return measure(case, calls, **settings)

    for case in cases:
        if case.isa not in ("", *backends.extension.isas()):
            print(f"{case.name} is left out: this CPU has no {case.isa}", file=sys.stderr)
            continue
        for count in thread_counts:
            name = f"{case.name}, {threads_text(count)}"
            yield Task(name, "rows", partial(on_threads, count, case))


def _network_tasks(thread_counts: Sequence[int], rounds: int | None, quick: bool) -> Iterator[Task]:
    settings: Mapping[str, Any] = QUICK_NETWORK if quick else {}
    for name, call in compare.tasks(
        threads=thread_counts, rounds=rounds or compare.ROUNDS, **settings
    ):
        yield Task(name, "network", lambda call=call: [call()])  # type: ignore[misc]
