"""Random kernels on random series: what the index loop gives, with the same bits anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from engines import ISAS
from random_banks import CASES, KINDS, Problem, feature_limits

from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.rocket import KernelBank, kernel_features

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_random_kernels(
    kind: str,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    """Within the computed bound, MiniROCKET to the last bit; whatever computes it, one result."""
    cases = campaign(110, 10_000)
    for seed in range(block * cases, (block + 1) * cases):
        problem = Problem(kind, seed)
        X, bank, rng = problem.series, problem.bank, problem.rng
        whole = kernel_features(X, bank)
        lowest, highest = feature_limits(X, bank, problem.exact)
        assert ((lowest <= whole) & (whole <= highest)).all(), problem
        for i in range(max(3, len(ISAS))):  # over the seeds, all pairs
            isa, count = ISAS[(seed + i) % len(ISAS)], 1 + i % 3
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            with threads(count):
                out = np.full_like(whole, np.nan)
                kernel_features(X, bank, out=out)
            assert np.array_equal(out, whole), f"{count} threads, {isa}: {problem}"
        monkeypatch.setenv("SPARSECONV_CPU_ISA", str(rng.choice(ISAS)))
        some = rng.choice(len(X), rng.integers(1, len(X) + 1), replace=False)
        assert np.array_equal(kernel_features(X[some], bank), whole[some]), problem
        pruned = selection(bank, rng)
        assert np.array_equal(kernel_features(X, pruned), whole[:, pruned.features]), problem
        monkeypatch.delenv("SPARSECONV_CPU_ISA")
    count_cases(cases)


def selection(bank: KernelBank, rng: np.random.Generator) -> KernelBank:
    """Some kernels, and of MiniROCKET's some features."""

    def some(count: int) -> Any:
        return rng.choice(count, rng.integers(1, count + 1), replace=False)

    bank = bank.select(some(bank.n_kernels))
    return bank if bank.kind == "rocket" else bank.select_features(some(bank.n_features))


def test_the_random_problems_cover_what_the_kernels_tell_apart() -> None:
    """With the numbers of csrc/cpu/rocket.h, for vectors of 16."""
    seen: Counter[str] = Counter()
    sizes: set[tuple[str, int]] = set()
    for kind, seed in product(KINDS, range(400)):
        problem = Problem(kind, seed)
        (n, channels, length), a = problem.series.shape, problem.bank.arrays
        wide, many = length > 560, problem.bank.n_kernels > 99
        sizes |= {("n", n)} | {("channels", used) for used in a["n_channels"]}
        found = {f"{kind}, exact": problem.exact, f"{kind}, rounded": not problem.exact}
        if kind == "rocket":
            few, span = channels == 1 and n < 12, (a["length"] - 1) * a["dilation"]
            beyond = (a["padding"] > 48).any()
            sizes |= {("taps", taps) for taps in a["length"]}
            found |= {
                "kernels are the lanes": few,
                "threads share their kernels": few and many,
                "threads share the kernels of a group": not few and n < 16 and many,
                "padding beyond the margin": beyond and not few,
                "padding beyond the margin, kernels are the lanes": beyond and few,
                "padding beyond the margin, tiles": beyond and wide and not few,
                "as much padding as span": (a["padding"] == span)[span > 48].any(),
                "the last tap at the last sample": (span == length - 1).any(),
            }
        else:
            few = n < 6
            sizes |= {("biases", count) for count in a["n_biases"]}
            found |= {
                "positions are the lanes": few,
                "positions, tiles": few and length > 240 * 16,
                "tiles": not few and wide,
                "threads share kernels": few and many,
                "one output": ((a["padded"] == 0) & (8 * a["dilation"] == length - 1)).any(),
            }
        seen.update({name: int(value) for name, value in found.items()})
    assert [name for name, times in seen.items() if not times] == []
    wanted = {("n", n) for n in CASES} | {("taps", taps) for taps in range(1, 12)}
    wanted |= {("channels", n) for n in range(1, 12)} | {("biases", n) for n in range(1, 40)}
    assert wanted <= sizes
