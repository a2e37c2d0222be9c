"""Random kernels on random series: what the index loop gives, with the same bits anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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


def rocket_ways(problem: Problem) -> dict[str, Any]:
    """What the plan and the kernels tell apart, for vectors of 16, and where the problem has it."""
    (n, channels, length), a = problem.series.shape, problem.bank.arrays
    names = ("dilation", "length", "padding", "n_channels")
    shapes, alike = np.unique([a[name] for name in names], axis=1, return_counts=True)
    dilation, taps, padding, used = shapes
    span = (taps - 1) * dilation
    outputs = length + 2 * padding - span
    columns = (used == 1) & np.isin(taps, (7, 9, 11))
    threads = min(3, n * int((taps * used * outputs * alike).sum()) >> 20)
    found = {f"{size} taps": taps == size for size in range(1, 12)}
    found |= {f"{size} channels": used == size for size in range(1, 12)}
    found["the last tap at the last sample"] = span == length - 1
    for lanes, there, by_columns, turns, shared in (
        ("series", n > 15, columns, 32, n == 16 and threads > 1),
        ("others", n < 7, columns & (channels == 1) & (alike > 6), 32 * 16, n < threads),
    ):
        ways = {
            "columns in several pieces": by_columns & (outputs // dilation > 12),
            "columns of two lengths": by_columns & (outputs % dilation > 0),
            "more columns than take turns": by_columns & (np.minimum(dilation, outputs) > 16),
            "more kernels than take turns": by_columns & (alike > turns),
            "columns of which all is padded": by_columns & (padding == span),
            "entries beyond the margin": ~by_columns & (padding > 48),
            "entries beyond the margin, in tiles": ~by_columns & (padding > 48) & (length > 560),
            "kernels shared by threads": shared,
        }
        found |= {f"{name}, lanes are {lanes}": there & holds for name, holds in ways.items()}
    return found


def minirocket_ways(problem: Problem) -> dict[str, Any]:
    (n, _, length), bank = problem.series.shape, problem.bank
    a, threads = bank.arrays, min(3, n * length * (bank.n_features + 4 * bank.n_kernels) >> 20)
    found = {f"{count} biases": a["n_biases"] == count for count in range(1, 40)}
    return found | {
        "one output": (a["padded"] == 0) & (8 * a["dilation"] == length - 1),
        "tiles, lanes are series": n > 15 and length > 240,
        "tiles, lanes are positions": n < 6 and length > 240 * 16,
        "kernels shared by threads, lanes are series": n == 16 and threads > 1,
        "kernels shared by threads, lanes are positions": n < threads,
    }


@pytest.mark.parametrize("ways", [rocket_ways, minirocket_ways])
def test_the_random_problems_have_what_the_kernels_tell_apart(
    ways: Callable[[Problem], dict[str, Any]],
) -> None:
    problems = [Problem(ways.__name__.removesuffix("_ways"), seed) for seed in range(1100)]
    found: Counter[str] = Counter()
    for problem in problems:
        found.update({name: int(np.any(holds)) for name, holds in ways(problem).items()})
    assert [name for name, count in found.items() if count < 2] == []
    assert {len(problem.series) for problem in problems} == set(CASES)
    assert {problem.exact for problem in problems} == {True, False}
