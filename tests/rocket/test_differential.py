"""Random kernels on random series: what the index loop gives, with the same bits anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import ISAS
from random_banks import Problem

from benchmarks.bench.random_kernels import feature_limits
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.rocket import KernelBank, kernel_features
from sparseconv.rocket.bank import KINDS

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
    cases = campaign(50, 10_000)
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
