"""``sparse_conv_transpose1d`` on every instruction set: accurate, for any layout and threads."""

from __future__ import annotations

import random

import pytest
from any_kernels import poisoned_memory  # noqa: F401
from engines import TWINS, Engine
from layouts import LAYOUTS
from transposed_cases import check, compute, random_transposed

from sparseconv.measure.machine import threads


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(12))
def test_random_cases_within_the_computed_bound(seed, engines, campaign, count_cases):
    rng = random.Random(seed)
    for _ in range(campaign(25, 2000)):
        case = random_transposed(rng)
        check(case, engines)
        count_cases(case.n > 0)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("stride", [2, 16, 17, 40])
def test_many_channels_phases_and_samples(stride, engines, count_cases):
    """Several blocks of channels, rows and positions, and more phases than one run computes."""
    rng = random.Random(stride)
    for shape, length in (((150, 90, 3 * stride), 40), ((7, 300, stride), 300)):
        check(
            random_transposed(
                rng, n=2, groups=1, shape=shape, length=length, stride=stride, dilation=1,
                density=0.05, dtype="float32", padding=1, output_padding=stride - 1,
            ),
            engines,
        )  # fmt: skip
        count_cases(1)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("isa", TWINS.values())
def test_blocks(isa, monkeypatch, count_cases):
    monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
    rng = random.Random(3)
    for sizes in ((16, 16), (40, 33), (64, 32)):
        for stride in (1, 2, 3):
            case = random_transposed(
                rng, groups=1, shape=(*sizes, 5), stride=stride, output_padding=stride - 1,
                padding=1, block=16, density=0.5, dtype="bfloat16", bias=True,
            )  # fmt: skip
            check(case, lambda: iter([Engine("cpp", isa=isa)]))
            count_cases(case.n > 0)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_and_threads_do_not_change_a_bit(name, count_cases):
    rng = random.Random(7)
    for dtype in ("float32", "bfloat16"):
        case = random_transposed(rng, n=3, dtype=dtype, stride=4, bias=True, density=0.3)
        plain = case.tensors()
        for i in range(4):
            odd = [LAYOUTS[name](t) if i == at else t for at, t in enumerate(plain)]
            even = [t.contiguous().clone() for t in odd]
            with threads(2):
                found = compute(case, *odd)
            with threads(1):
                again = compute(case, *even)
            assert all(a.equal(b) for a, b in zip(found, again, strict=True)), case
            count_cases(1)
