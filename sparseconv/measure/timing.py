"""Paired timing for shared machines.

Absolute times drift with the clock rate and other tenants. Therefore, candidates run interleaved in
one process, in random order, and only ratios of times from the same round are compared.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Times = dict[str, NDArray[np.float64]]

# With n rounds the whole range of the samples covers the median with probability 1 - 2 / 2^n: six
# are needed before any interval can claim 95 %.
LEAST_ROUNDS = 6
ROUNDS, LEAST_SECONDS = 30, 2e-3  # unless a user says otherwise


class Estimate(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def median_with_ci(samples: ArrayLike) -> Estimate:
    """Return the median and an interval that contains the true median in at least 95 % of cases.

    This is the interval of the sign test: the number of samples below any distribution's median is
    Binomial(n, 1/2). For fewer than ``LEAST_ROUNDS`` samples, it is their whole range, which is too
    narrow.

    Example:
        >>> median_with_ci([3.0, 1.0, 2.0, 4.0, 5.0, 7.0, 6.0, 9.0, 8.0])
        Estimate(median=5.0, low=2.0, high=8.0)
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    n, left_out, tail = len(values), 0, 2.0 ** -len(values)
    while (tail := tail + comb(n, left_out + 1) / 2**n) <= 0.025:
        left_out += 1
    low, high = values[left_out], values[n - 1 - left_out]
    return Estimate(float(np.median(values)), float(low), float(high))


def ratio(times: Times, numerator: str, denominator: str) -> Estimate:
    """Return the median and interval of the paired ratios of two candidates' times."""
    return median_with_ci(times[numerator] / times[denominator])


def milliseconds(seconds: NDArray[np.float64]) -> Estimate:
    """Return the median, in milliseconds, of times in seconds, with its interval."""
    return median_with_ci(1e3 * seconds)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect garbage once, then pause the collector in the block; nested blocks do nothing.

    Example:
        >>> with collector_paused():
        ...     gc.isenabled()
        False
    """
    if not gc.isenabled():
        yield
        return
    try:  # before it is off: a Ctrl-C may come between any two lines
        gc.collect()
        gc.disable()
        yield
    finally:
        gc.enable()


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    least_seconds: float = 2e-3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    context: Callable[[str], AbstractContextManager[object]] = lambda _: nullcontext(),
    settled: Callable[[Times], bool] = lambda _: True,
) -> Times:
    """Time every candidate once per round, in a new random order each round.

    Args:
        candidates: name -> call without arguments.
        rounds: at least 1.
        least_seconds: shorter calls are repeated in a round until they take this time.
        seed: seed for the order.
        clock: returns the time in seconds; on a GPU, it first waits for the device.
        context: returns the context manager for the calls of the named candidate; entering it is
            not timed.
        settled: receives the times so far; while it returns False, the number of rounds is doubled,
            up to three times. Four looks at an interval of 95 %, after 6, 12, 24 and 48 rounds, lie
            above the median with a probability of 4.6 %.

    Returns:
        name -> seconds per call, one entry per round, paired by index.
    """
    repeats = {}
    for name, call in candidates.items():
        with context(name):
            call()  # warms up
            start = clock()
            call()
            repeats[name] = max(1, int(np.ceil(least_seconds / max(clock() - start, 1e-9))))
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    rng = np.random.default_rng(seed)
    names = list(candidates)
    with collector_paused():
        for more in (rounds, rounds, 2 * rounds, 4 * rounds):
            for _ in range(more):
                for name in rng.permutation(names):
                    call, times_in_a_row = candidates[name], repeats[name]
                    with context(name):
                        start = clock()
                        for _ in range(times_in_a_row):
                            call()
                        taken[name].append((clock() - start) / times_in_a_row)
            times = {name: np.array(seconds) for name, seconds in taken.items()}
            if settled(times):
                break
    return times
