"""Paired timing on fake clocks, and the facts that are recorded with a time."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from fake_clock import FakeClock
from numpy.typing import NDArray

from sparseconv.measure import timing


@pytest.mark.parametrize("n", [6, 7, 12, 15, 30, 41])
def test_interval_covers_the_true_median_as_often_as_it_says(n: int) -> None:
    samples = np.sort(np.random.default_rng(1).exponential(1, (3000, n)))
    intervals = np.array([timing.median_with_ci(row)[1:] for row in samples])

    def covered(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
        return float(np.mean((low <= np.log(2)) & (np.log(2) <= high)))

    # Binomial(3000, 0.95) leaves 0.937 ... 0.962 less than once in 1 000.
    assert covered(*intervals.T) >= 0.937
    # And it is not wider than it must be: one sample less at each end would not do.
    left_out = int((samples[0] < intervals[0, 0]).sum()) + 1
    assert covered(samples[:, left_out], samples[:, n - 1 - left_out]) <= 0.962


def test_pairs_cancel_a_drifting_machine() -> None:
    """The machine slows down tenfold in the course of the run; the ratio stays."""
    clock = FakeClock()

    def slowdown() -> float:
        return 1 + len(clock.log) / 50

    calls = {
        "slow": clock.takes("slow", lambda: 0.3 * slowdown()),
        "fast": clock.takes("fast", lambda: 0.1 * slowdown()),
    }
    times = timing.interleave(calls, rounds=300, clock=clock)
    assert times["slow"][-1] > 10 * times["slow"][0]
    median, low, high = timing.ratio(times, "slow", "fast")
    assert 2.9 < low <= median <= high < 3.1


def test_every_round_runs_each_candidate_in_a_drawn_order_and_repeats_short_ones() -> None:
    clock = FakeClock()
    calls = {name: clock.takes(name, lambda: 1.0) for name in "abc"}
    times = timing.interleave(calls, rounds=50, clock=clock)
    untimed = 3 * (2 + 1)  # the warm-up, and one call to see how often to repeat
    rounds = [tuple(clock.log[i : i + 3]) for i in range(untimed, len(clock.log), 3)]
    assert len(rounds) == 50
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) == 6  # every order occurred
    assert all((times[name] == 1.0).all() for name in "abc")
    short = {"short": clock.takes("short", lambda: 1e-4)}
    times = timing.interleave(short, rounds=4, least_seconds=2e-3, clock=clock)
    assert clock.log.count("short") == 3 + 4 * 20
    np.testing.assert_allclose(times["short"], 1e-4)


@pytest.mark.promise("P8")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_collector_is_on_again(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a Ctrl-C that comes before the pause has begun, and after an error inside."""
    disable = gc.disable

    def interrupted() -> None:
        disable()
        if error is KeyboardInterrupt:
            raise error

    def fails() -> None:
        assert not gc.isenabled()
        raise error

    monkeypatch.setattr(gc, "disable", interrupted)
    with pytest.raises(error), timing.collector_paused():
        fails()
    assert gc.isenabled()
