"""The reference is right: oracle against F.conv1d, dense path against autograd and the oracle."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from sparseconv import sparse_conv1d
from sparseconv.reference import conv1d_dense
from sparseconv.testing import exact_results, expected, random_case


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(4))
def test_oracle_is_conv1d(seed, count_cases):
    """Integers, so that both must agree exactly; F.pad writes the padding independently."""
    rng = random.Random(seed)
    for _ in range(50):
        case = random_case(rng, dtype="float64", integers=True, batched=True, n=2)
        pattern = case.make_pattern()
        x, values, bias, grad = case.tensors()
        how = case.stride, 0, case.dilation, case.groups
        padding, mode = case.geometry.padding, case.padding_mode
        x.requires_grad_()
        weight = torch.zeros(pattern.shape, dtype=torch.float64)
        weight[pattern.to_mask()] = values
        weight.requires_grad_()
        padded = F.pad(x, padding, "constant" if mode == "zeros" else mode)
        y = F.conv1d(padded, weight, bias, *how)
        y.backward(grad)
        wanted = y, x.grad, weight.grad[pattern.to_mask()]
        assert all(map(torch.equal, exact_results(case, case.tensors()), wanted)), case
        count_cases(1)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(4))
def test_dense_path_within_the_bound(seed, count_cases):
    rng = random.Random(100 + seed)
    for _ in range(50):
        case = random_case(rng)
        tensors = case.tensors()
        x, values, bias, grad = tensors
        x.requires_grad_(), values.requires_grad_()
        y = sparse_conv1d(x, values, case.make_pattern(), bias, **case.options, backend="reference")
        y.backward(grad)
        results = zip((y, x.grad, values.grad), expected(case, tensors), strict=True)
        for got, (exact, bound) in results:
            assert (got.shape, got.dtype) == (exact.shape, x.dtype), case
            assert ((got.detach().double() - exact).abs() <= bound).all(), case
        count_cases(1)


@pytest.mark.promise("P1")
def test_the_bound_is_tight_enough_to_catch_a_missing_term():
    rng = random.Random(7)
    for _ in range(20):
        case = random_case(rng, dtype="float32", pattern="full", n=2, batched=True)
        tensors = case.tensors()
        x, values, bias, _ = tensors
        wrong = values.clone()
        wrong[0] = 0
        exact, bound = expected(case, tensors)[0]
        y = conv1d_dense(x, wrong, case.make_pattern(), bias, case.geometry)
        assert ((y.double() - exact).abs() > bound).any(), case
