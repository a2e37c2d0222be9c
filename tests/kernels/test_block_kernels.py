"""Blocks of 16 x 16 channels that share their taps, in bfloat16.

The same kernels run on AMX, on AVX-512, and on their twins in plain C++, which every machine has.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from any_kernels import (
    check_integers,
    check_layout,
    check_special_input,
    poisoned_memory,  # noqa: F401
)
from engines import TWINS, UNITS, Engine, Engines, blocks_case, check, compute
from layouts import LAYOUTS

from sparseconv import KernelCSR, sparse_conv1d
from sparseconv.measure.machine import threads
from sparseconv.testing import Case, Tensors, expected


@pytest.fixture
def engines(unit: str) -> Engines:
    return lambda: iter([Engine("cpp", isa=unit)])


@pytest.fixture
def rounding() -> Iterator[None]:
    convolutions = torch.backends.mkldnn.conv
    convolutions.fp32_precision = "bf16"
    yield
    convolutions.fp32_precision = "none"


def one_case(**fixed: object) -> Case:
    given = {"density": 0.4, "dtype": "bfloat16", "pattern": "blocks"}
    return Case(
        **({"n": 2, "in_channels": 16, "out_channels": 20, "kernel_size": 5} | given | fixed)
    )


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(4))
def test_within_the_computed_bound(seed, engines, campaign, count_cases):
    rng = random.Random(seed)
    for _ in range(campaign(6, 1000)):
        check(blocks_case(rng), engines)
        count_cases(1)


@pytest.mark.promise("P1")
def test_every_length_about_the_rows_of_tiles(engines, count_cases):
    for length in (1, 300, *(n + i for n in (8, 16, 24, 32, 64, 128, 256) for i in (-1, 0, 1))):
        check(one_case(n=1, padding=2, length=length), engines)
        count_cases(1)


@pytest.mark.promise("P2")
def test_integers_are_exact(engines, count_cases):
    rng, counted = random.Random(5), 0
    for _ in range(8):
        counted += check_integers(blocks_case(rng, integers=True), engines)
    count_cases(counted)


@pytest.mark.promise("P1")
def test_float32_that_torch_may_round(engines, rounding):
    rng = random.Random(6)
    (engine,) = engines()
    for _ in range(6):
        case = blocks_case(rng, dtype="float32")
        given = case.tensors()
        rounded = Tensors(*(None if t is None else t.bfloat16().float() for t in given))
        rounded = rounded._replace(bias=given.bias)
        found = compute(case, rounded, engine)
        for got, (exact, bound) in zip(found, expected(case, rounded), strict=True):
            assert ((got.double() - exact).abs() <= bound).all(), case
        assert all(a.equal(b) for a, b in zip(compute(case, given, engine), found, strict=True))
    torch.backends.mkldnn.enabled = False  # then torch does not round
    try:
        exact = compute(case, given, engine)
    finally:
        torch.backends.mkldnn.enabled = True
    assert not any(a.equal(b) for a, b in zip(exact, found, strict=True))


@pytest.mark.promise("P6")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_does_not_change_a_bit(name, engines):
    for stride, mode in ((1, "replicate"), (2, "zeros")):
        check_layout(
            one_case(length=37, stride=stride, padding=(3, 2), padding_mode=mode), name, engines
        )


@pytest.mark.promise("P4")
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_special_numbers(special, mode, engines):
    case = one_case(length=19, padding=2, padding_mode=mode, density=0.2, seed=3)
    check_special_input(case, special, engines, every=97)


@pytest.mark.promise("P3")
def test_bits_depend_on_no_number_of_threads(engines):
    (engine,) = engines()
    for case in (one_case(n=1, length=700, padding=2), one_case(n=9, length=300, stride=2)):
        tensors, found = case.tensors(), []
        for count in (1, 2, 3):
            with threads(count):
                found.append(compute(case, tensors, engine))
        for other in found[1:]:
            assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.promise("P5")
def test_runs_of_different_spans_fold_inside_the_series(engines):
    # Phases of the stride reach differently far; all are staged for the longest.
    mask = torch.zeros(16, 16, 8, dtype=torch.bool)
    mask[..., [1, 4, 5]] = True
    x = torch.randn(2, 16, 9).to(torch.bfloat16)
    pattern = KernelCSR.from_mask(mask, 16)
    values = torch.randn(pattern.nnz).to(torch.bfloat16).requires_grad_()
    for mode in ("reflect", "circular"):
        y = sparse_conv1d(x, values, pattern, stride=5, padding=7, padding_mode=mode)
        grad = torch.randn_like(y)
        exact = values.detach().double().requires_grad_()
        wide = sparse_conv1d(x.double(), exact, pattern, stride=5, padding=7, padding_mode=mode,
                             backend="reference")  # fmt: skip
        (got,) = torch.autograd.grad(y, values, grad)
        (wanted,) = torch.autograd.grad(wide, exact, grad.double())
        torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_computes_the_same_bits(name, monkeypatch, campaign):
    if name not in UNITS:
        pytest.skip(f"needs a CPU with {name}")
    rng = random.Random(7)
    for _ in range(campaign(10, 1000)):
        case, found = blocks_case(rng), []
        for isa in (name, TWINS[name]):
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            found.append(compute(case, case.tensors(), Engine("cpp", isa=isa)))
        assert all(a.equal(b) for a, b in zip(*found, strict=True)), case


def test_a_twin_flushes_the_same_sums(monkeypatch):
    """About the least normal number, where the instruction rounds before it compares."""
    if "avx512bf16" not in UNITS:
        pytest.skip("needs a CPU with avx512bf16")
    rng = torch.Generator().manual_seed(0)
    pattern = KernelCSR.from_mask(torch.ones(16, 16, 1, dtype=torch.bool), 16)

    for _ in range(200):
        exponents = torch.randint(-78, -72, (256,), generator=rng)
        values = (torch.randn(256, generator=rng) * 2.0**exponents).bfloat16()
        bias = torch.randn(16, generator=rng).sign().bfloat16() * 2.0**-126
        x = torch.zeros(1, 16, 16, dtype=torch.bfloat16)
        x[:, :2] = 2.0**-75
        found = []
        for isa in ("avx512bf16", "avx512bf16-emulated"):
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            found.append(sparse_conv1d(x, values, pattern, bias))
        assert found[0].view(torch.int16).equal(found[1].view(torch.int16))


def test_what_the_unit_computes(engines):
    """It flushes subnormal sums to zero: by that one sees where it works."""
    x, value = torch.full((1, 16, 16), 2.0**-100), 2.0**-35

    def unit_computes(mask: torch.Tensor, groups: int = 1, dtype=torch.bfloat16) -> bool:
        pattern = KernelCSR.from_mask(mask)
        values = torch.full((pattern.nnz,), value, dtype=dtype)
        given = x.repeat(1, groups * mask.shape[1] // 16 + 1, 1)[:, : groups * mask.shape[1]]
        y = sparse_conv1d(given.to(dtype), values, pattern, groups=groups)
        return bool((y == 0).all())

    full = torch.ones(48, 16, 3, dtype=torch.bool)
    assert unit_computes(full)
    assert unit_computes(full[:, :, :1])
    assert unit_computes(full, groups=3)
    assert unit_computes(full[:33])
    assert not unit_computes(full, dtype=torch.float32)
    assert not unit_computes(full[:36], groups=3)  # 12 outputs a group
    assert not unit_computes(full[:15])
    assert not unit_computes(full[:, :15])
    other = full.clone()
    other[47, 15, 2] = False
    assert not unit_computes(other)
    other[32:, :, 2] = False
    assert unit_computes(other)
