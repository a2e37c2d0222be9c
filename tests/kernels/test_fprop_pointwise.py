"""A sparse convolution with the 1x1 convolution behind it: the bits of the two, one after another.

The rows between the two never leave the scratch memory, so what is tested is which of them each
thread holds, where they are, and that nothing but the last outputs is written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from any_kernels import poisoned_memory  # noqa: F401
from op_arguments import GEOMETRIES, pointwise_arguments
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


def in_one_and_in_two_steps(
    case: Case, x: Tensor, weight: Tensor, weight_bias: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    pattern, (_, values, bias, _) = case.make_pattern(), case.tensors()
    geometry = Geometry(pattern.shape, *case.geometry)
    rows = ops.fprop_rows(pattern, geometry)
    got = OPS.fprop_pointwise(
        x, values, bias, pattern.crow_indices, rows, geometry.numbers, relu, weight, weight_bias
    )
    y = ops.fprop(x, values, bias, pattern, geometry, relu)
    full = KernelCSR.full(tuple(weight.shape))
    dense = Geometry(full.shape, 1, (0, 0), 1, 1, "zeros")
    return got, ops.fprop(y, weight.flatten(), weight_bias, full, dense)


def check(case: Case, isas: Callable[[], Iterator[str]], rows: int, *, relu: bool) -> None:
    x, generator = case.tensors().input, torch.Generator().manual_seed(case.seed)
    x = x if x.dim() == 3 else x[None]
    weight = torch.randn(rows, case.make_pattern().shape[0], 1, generator=generator, dtype=x.dtype)
    for weight_bias in (None, torch.randn(rows, generator=generator, dtype=x.dtype)):
        for isa in isas():
            for count in (1, 2, 7):
                with threads(count):
                    got, exact = in_one_and_in_two_steps(case, x, weight, weight_bias, relu)
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


@pytest.mark.promise("P4")
def test_nan_and_infinity_are_those_of_two_steps(isas) -> None:
    case = Case(2, 3, 20, 5, 40, padding=2)
    for special in (float("nan"), float("inf"), -0.0):
        x = case.tensors().input.clone()
        x[1, 1, 17] = special
        weight = torch.randn(4, 20, 1)
        for _ in isas():
            got, exact = in_one_and_in_two_steps(case, x, weight, None, relu=True)
            torch.testing.assert_close(got, exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("place", "bad", "says"),
    [
        (-2, torch.zeros(3, 5, 1), r"weight of shape \(C_out, 4, 1\), but got \[3, 5, 1\]"),
        (-2, torch.zeros(3, 4, 2), r"weight of shape \(C_out, 4, 1\), but got \[3, 4, 2\]"),
        (-2, torch.zeros(3, 4), r"weight of shape \(C_out, 4, 1\), but got \[3, 4\]"),
        (-2, torch.zeros(3, 4, 1, dtype=torch.float64), "weight"),
        (-1, torch.zeros(4), r"weight_bias of shape \(3,\), but got \[4\]"),
        (-1, torch.zeros(3, dtype=torch.float64), "weight_bias"),
        (2, torch.zeros(5), r"bias of shape \(4,\), but got \[5\]"),
        (1, torch.zeros(999), "nnz|crow"),
    ],
)
def test_wrong_arguments_are_refused(place, bad, says) -> None:
    args = [*pointwise_arguments(GEOMETRIES[2])]
    args[place] = bad
    with pytest.raises((TypeError, ValueError), match=says):
        OPS.fprop_pointwise(*args)


@pytest.mark.promise("P5")
def test_half_types_are_refused() -> None:
    with pytest.raises(TypeError, match="expected float32 or float64"):
        OPS.fprop_pointwise(*pointwise_arguments(GEOMETRIES[2], torch.bfloat16))


def test_empty_batch_and_no_rows() -> None:
    args = pointwise_arguments(GEOMETRIES[2])
    length = GEOMETRIES[2].output_length(20)
    assert OPS.fprop_pointwise(args[0][:0], *args[1:]).shape == (0, 3, length)
    assert OPS.fprop_pointwise(*args[:-2], torch.zeros(0, 4, 1), None).shape == (2, 0, length)
