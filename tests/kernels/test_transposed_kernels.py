"""``sparse_conv_transpose1d`` on every instruction set: accurate, for any layout and threads."""

from __future__ import annotations

import random

import pytest
from any_kernels import poisoned_memory  # noqa: F401
from engines import TWINS, Engine, blocks_case
from layouts import LAYOUTS
from transposed_cases import check, compute, given, random_transposed

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
    for outputs, inputs, taps, length in ((150, 90, 3, 40), (7, 300, 1, 300)):
        sizes = {"out_channels": outputs, "in_channels": inputs, "kernel_size": taps * stride}
        length = stride * length - 1
        case = random_transposed(rng, n=2, **sizes, length=length, stride=stride, density=0.05)
        check(case, engines)
        count_cases(1)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("isa", TWINS.values())
def test_blocks(isa, monkeypatch, count_cases):
    monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
    rng = random.Random(3)
    for stride in (1, 2, 3) * 3:
        case = blocks_case(rng, stride=stride, padding=1, padding_mode="zeros", bias=True)
        check(case, lambda: iter([Engine("cpp", isa=isa)]))
        count_cases(case.n > 0)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_and_threads_do_not_change_a_bit(name, count_cases):
    rng = random.Random(7)
    for dtype in ("float32", "bfloat16"):
        case = random_transposed(rng, n=3, dtype=dtype, stride=4, bias=True, pattern="random")
        plain = given(case)
        for i in range(4):
            odd = [LAYOUTS[name](t) if i == at else t for at, t in enumerate(plain)]
            even = [t.contiguous().clone() for t in odd]
            with threads(2):
                found = compute(case, odd)
            with threads(1):
                again = compute(case, even)
            assert all(a.equal(b) for a, b in zip(found, again, strict=True)), case
            count_cases(1)
