"""A sparse convolution with the 1x1 convolution behind it: the bits of the two, one after another.

The rows that are mixed never leave the scratch memory, so what is tested is which of them each
thread holds, where they lie, and that nothing but the last outputs is written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry
from sparseconv.measure.machine import threads
from sparseconv.ops import calls as ops
from sparseconv.ops.backends import extension
from sparseconv.testing import Case, random_case

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")

ISAS = extension.isas() if extension is not None else []
OPS = torch.ops.sparseconv


@pytest.fixture
def isas(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Iterator[str]]:
    def switch() -> Iterator[str]:
        for isa in ISAS:
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            yield isa

    return switch


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def both(
    x: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    bias: Tensor | None,
    geometry: Geometry,
    relu: bool,
    weight: Tensor,
    weight_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The result of the op, and that of the sparse convolution mixed by a sum over channels."""
    rows = ops.fprop_rows(pattern, geometry)
    got = OPS.fprop_pointwise(
        x, values, bias, pattern.crow_indices, rows, geometry.numbers, relu, weight, weight_bias
    )
    y = ops.fprop(x, values, bias, pattern, geometry, relu)
    full = KernelCSR.full(tuple(weight.shape))
    dense = Geometry(full.shape, 1, (0, 0), 1, 1, "zeros")
    return got, ops.fprop(y, weight.flatten(), weight_bias, full, dense)


def check(case: Case, isas: Callable[[], Iterator[str]], rows: int, *, relu: bool) -> None:
    tensors, generator = case.tensors(), torch.Generator().manual_seed(case.seed)
    pattern, dtype = case.make_pattern(), tensors.input.dtype
    geometry = Geometry(pattern.shape, *case.geometry)
    x = tensors.input if tensors.input.dim() == 3 else tensors.input[None]
    weight = torch.randn(rows, pattern.shape[0], 1, generator=generator, dtype=dtype)
    for weight_bias in (None, torch.randn(rows, generator=generator, dtype=dtype)):
        for isa in isas():
            for count in (1, 2, 7):
                with threads(count):
                    got, exact = both(
                        x,
                        tensors.values,
                        pattern,
                        tensors.bias,
                        geometry,
                        relu,
                        weight,
                        weight_bias,
                    )
                assert got.equal(exact), f"{isa}, {count} threads, {rows} rows: {case!r}"


@pytest.mark.promise("P7")
@pytest.mark.parametrize("seed", range(20))
def test_random_cases_have_the_bits_of_two_steps(seed, isas, count_cases) -> None:
    rng, counted = random.Random(1000 + seed), 0
    while counted < 5:
        case = random_case(rng, dtype=rng.choice(["float32", "float64"]))
        check(case, isas, rng.choice([1, 2, 5, 13, 24, 47]), relu=rng.random() < 0.5)
        counted += case.n > 0 and case.make_pattern().nnz > 0
    count_cases(counted)


def test_lengths_about_the_pieces(isas, count_cases) -> None:
    for length in (1, 7, 24, 27, 28, 29, 57, 130, 200):
        case = Case(3, 5, 30, 9, length, padding=(0, 8), padding_mode="replicate", seed=length)
        check(case, isas, 47, relu=True)
        count_cases(1)


def test_more_rows_than_wait_in_l2(isas) -> None:
    check(Case(2, 3, 600, 5, 60, padding=2), isas, 3, relu=True)


def arguments(dtype: torch.dtype = torch.float32) -> list[object]:
    torch.manual_seed(0)
    geometry = Geometry((6, 1, 3), 2, (2, 1), 1, 3, "replicate")
    pattern = KernelCSR.random(geometry.shape, 9)
    rows = ops.fprop_rows(pattern, geometry)
    return [
        torch.randn(2, 3, 20, dtype=dtype), torch.randn(9, dtype=dtype),
        torch.randn(6, dtype=dtype), pattern.crow_indices, rows, list(geometry.numbers), True,
        torch.randn(4, 6, 1, dtype=dtype), torch.randn(4, dtype=dtype),
    ]  # fmt: skip


@pytest.mark.promise("P4")
def test_nan_and_infinity_are_those_of_two_steps(isas) -> None:
    case = Case(2, 3, 20, 5, 40, padding=2)
    tensors, pattern = case.tensors(), case.make_pattern()
    geometry, weight = Geometry(pattern.shape, *case.geometry), torch.randn(4, 20, 1)
    for special in (float("nan"), float("inf"), -0.0):
        x = tensors.input.clone()
        x[1, 1, 17] = special
        for _ in isas():
            got, exact = both(x, tensors.values, pattern, None, geometry, True, weight, None)
            assert torch.equal(got.isnan(), exact.isnan())
            assert torch.equal(got.nan_to_num(7.0), exact.nan_to_num(7.0))


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("place", "bad", "says"),
    [
        (
            -2,
            torch.zeros(4, 5, 1),
            r"expected weight of shape \(C_out, 6, 1\), but got \[4, 5, 1\]",
        ),
        (
            -2,
            torch.zeros(4, 6, 2),
            r"expected weight of shape \(C_out, 6, 1\), but got \[4, 6, 2\]",
        ),
        (-2, torch.zeros(4, 6), r"expected weight of shape \(C_out, 6, 1\), but got \[4, 6\]"),
        (-2, torch.zeros(4, 6, 1, dtype=torch.float64), "weight"),
        (-1, torch.zeros(3), r"expected weight_bias of shape \(4,\), but got \[3\]"),
        (-1, torch.zeros(4, dtype=torch.float64), "weight_bias"),
        (2, torch.zeros(5), r"expected bias of shape \(6,\), but got \[5\]"),
        (1, torch.zeros(8), "nnz|crow"),
    ],
)
def test_wrong_arguments_are_refused(place, bad, says) -> None:
    args = arguments()
    args[place] = bad
    with pytest.raises((TypeError, ValueError), match=says):
        OPS.fprop_pointwise(*args)


@pytest.mark.promise("P5")
def test_half_types_are_refused() -> None:
    with pytest.raises(TypeError, match="expected float32 or float64"):
        OPS.fprop_pointwise(*arguments(torch.bfloat16))


def test_empty_batch_and_no_rows() -> None:
    args = arguments()
    assert OPS.fprop_pointwise(args[0][:0], *args[1:]).shape == (0, 4, 11)
    assert OPS.fprop_pointwise(*args[:-2], torch.zeros(0, 6, 1), None).shape == (2, 0, 11)
