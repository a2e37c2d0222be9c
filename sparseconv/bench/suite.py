"""A whole benchmark run: what is measured, how often, and the document that it becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from sparseconv.bench import goals, growth
from sparseconv.bench.cases import Case
from sparseconv.bench.files import rounded
from sparseconv.bench.network import compare
from sparseconv.bench.rivals import RIVALS
from sparseconv.bench.run import WrongResultError, measure
from sparseconv.measure import peaks
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.ops import backends, calls

SCHEMA = 1
# Beside the suites of cases.
MORE = {
    "growth": "how the cost grows with nnz, N, L and C",
    "network": "the whole network: training step, update, inference, latency, epoch",
}
# So that everything takes half an hour on two cores: most rounds where goals are judged by 1 %.
ROUNDS = {"layer": 30, "trained": 12, "density": 12, "growth": 9, "network": compare.ROUNDS}
OTHER_ROUNDS, QUICK_ROUNDS = 15, 5
# The slow rivals are shown where their place is in question: they take most of the time.
FAST_RIVALS = ("conv1d", "conv2d_channels_last")
ALL_RIVALS_IN = ("layer", "trained", "density")
# Compiling takes most of the network's time, and its epochs a minute.
QUICK_NETWORK = {"rivals": ("masked_dense", "dense_best"), "modes": compare.MODES[:4]}

Document = dict[str, Any]
Row = dict[str, Any]


class Task(NamedTuple):
    """What adds rows to one list of the document."""

    name: str
    key: str
    measure: Callable[[], list[Row]]


def run(
    cases: Sequence[Case],
    thread_counts: Sequence[int],
    *,
    more: Sequence[str] = (),
    rounds: int | None = None,
    rivals: Sequence[str] | None = None,
    quick: bool = False,
    save: Callable[[Document], object] = lambda document: None,
) -> Document:
    """Measure peaks, cases, growth and network; return what files and reports are made of.

    Args:
        cases: from ``cases.select``; those whose instruction set cannot run here are left out, and
            stderr says so.
        thread_counts: everything is measured with each.
        more: of ``MORE``.
        rounds: pairs of neighbours; None takes each suite's own number.
        rivals: of ``rivals.RIVALS``, for the cases; None takes the fast ones, and all in some
            suites.
        quick: few rounds; of the network no epoch and nothing compiled.
        save: given the document after each measurement, its ``"complete"`` false until the last.

    Raises:
        WrongResultError: a result left its error bound; the case is named. What was measured
            before it has been saved.
    """
    if quick:
        rounds = QUICK_ROUNDS
    document: Document = {
        "schema": SCHEMA,
        "complete": False,
        "machine": measurement_context(),
        "peaks": [],
        "rows": [],
        "growth": [],
        "network": [],
        "goals": [],
    }
    tasks = [*_case_tasks(cases, thread_counts, rounds, rivals, document["peaks"])]
    if "growth" in more:
        tasks += _growth_tasks(thread_counts, rounds)
    if "network" in more:
        tasks += _network_tasks(thread_counts, rounds, quick)
    with _Bar(1 + len(tasks)) as advance:
        advance("the machine's peaks")
        document["peaks"] += rounded(peaks.measure(thread_counts))
        for task in tasks:
            advance(task.name)
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
    rounds: int | None,
    rivals: Sequence[str] | None,
    machine_peaks: Sequence[Mapping[str, Any]],
) -> Iterator[Task]:
    assert backends.extension is not None
    for case in cases:
        if case.isa not in ("", *backends.extension.isas()):
            print(f"{case.name} is left out: this CPU has no {case.isa}", file=sys.stderr)
            continue
        names = rivals
        if names is None:
            names = list(RIVALS) if case.suite in ALL_RIVALS_IN else FAST_RIVALS
        call = partial(
            measure,
            case,
            calls,
            rival_names=names,
            rounds=rounds or ROUNDS.get(case.suite, OTHER_ROUNDS),
            machine_peaks=machine_peaks,
        )
        for count in thread_counts:
            yield Task(f"{case.name}, {count} threads", "rows", partial(_on_threads, count, call))


def _growth_tasks(thread_counts: Sequence[int], rounds: int | None) -> Iterator[Task]:
    for quantity in growth.SERIES:
        call = partial(growth.measure, quantity, rounds=rounds or ROUNDS["growth"])
        for count in thread_counts:
            name = f"growth with {quantity}, {count} threads"
            yield Task(name, "growth", partial(_on_threads, count, call))


def _network_tasks(thread_counts: Sequence[int], rounds: int | None, quick: bool) -> Iterator[Task]:
    settings: Mapping[str, Any] = QUICK_NETWORK if quick else {}
    for name, call in compare.tasks(
        threads=thread_counts, rounds=rounds or ROUNDS["network"], **settings
    ):
        yield Task(name, "network", partial(_one, call))


def _one(call: Callable[[], Row]) -> list[Row]:
    return [call()]


def _on_threads(count: int, call: Callable[[], list[Row]]) -> list[Row]:
    with threads(count):
        return call()


class _Bar:
    """Says on stderr what is being measured, with tqdm's bar where it is installed."""

    def __init__(self, total: int) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self._bar = None
        else:
            self._bar = tqdm(total=total, unit="case")
        self._begun = False

    def __call__(self, what: str) -> None:
        if self._bar is None:
            print(what, file=sys.stderr, flush=True)
            return
        if self._begun:
            self._bar.update()
        self._begun = True
        self._bar.set_description(what)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            if self._begun and error[0] is None:
                self._bar.update()
            self._bar.close()
