"""Exact results, and how far a kernel may be from them: bounds computed from the case."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparseconv.testing.cases import Case, Tensors
from sparseconv.testing.oracle import conv1d_oracle, oracle_dgrad, oracle_wgrad


class Expected(NamedTuple):
    """A result in float64 and how far from it a correct computation may lie."""

    exact: Tensor
    bound: Tensor


def expected_fprop(case: Case, tensors: Tensors) -> Expected:
    """Compute the output with its error bound.

    Example:
        >>> import sparseconv as sc
        >>> case = Case(n=2, in_channels=4, out_channels=6, kernel_size=3, length=10)
        >>> x, values, bias, _ = tensors = case.tensors()
        >>> y = sc.sparse_conv1d(x, values, case.make_pattern(), bias, **case.options)
        >>> exact, bound = expected_fprop(case, tensors)
        >>> bool(((y - exact).abs() <= bound).all())
        True
    """
    pattern = case.make_pattern()

    def oracle(x: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        y = conv1d_oracle(_batch(x), values, pattern, bias, *case.geometry)
        return y if case.batched else y[0]

    data = (tensors.input, tensors.values, tensors.bias)
    return _expected(oracle, *(tensor for tensor in data if tensor is not None))


def expected_dgrad(case: Case, tensors: Tensors) -> Expected:
    """Compute the gradient of the input with its error bound; see ``expected_fprop``."""
    pattern = case.make_pattern()

    def oracle(grad: Tensor, values: Tensor) -> Tensor:
        dx = oracle_dgrad(_batch(grad), values, pattern, case.length, *case.geometry)
        return dx if case.batched else dx[0]

    return _expected(oracle, tensors.grad, tensors.values)


def expected_wgrad(case: Case, tensors: Tensors) -> Expected:
    """Compute the gradient of the values with its error bound; see ``expected_fprop``."""
    pattern = case.make_pattern()

    def oracle(grad: Tensor, x: Tensor) -> Tensor:
        return oracle_wgrad(_batch(grad), _batch(x), pattern, *case.geometry)

    return _expected(oracle, tensors.grad, tensors.input)


def _batch(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x.unsqueeze(0)


def _expected(oracle: Callable[..., Tensor], *data: Tensor) -> Expected:
    # On magnitudes the oracle adds up what can be rounded, on ones it counts the terms.
    exact = oracle(*data)
    magnitude = oracle(*(tensor.abs() for tensor in data))
    terms = oracle(*(torch.ones_like(tensor) for tensor in data))
    return Expected(exact, error_bound(exact, magnitude, terms, data[0].dtype))


def error_bound(exact: Tensor, magnitude: Tensor, terms: Tensor, dtype: torch.dtype) -> Tensor:
    """Bound the rounding error of a sum of products, whatever the order of its terms.

    ``(terms + 2) * u * magnitude`` with the unit roundoff ``u`` of the accumulator (Higham,
    "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1), where ``magnitude`` is
    the sum of the products' absolute values; of sums that neither over- nor underflow. The half
    types accumulate in float32 and add one
    rounding to the result. In float64 the oracle rounds as well, which doubles the bound.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> bool(error_bound(one, one, one, torch.float32) == 3 * 2**-24)
        True
    """
    half = dtype in (torch.bfloat16, torch.float16)
    unit = torch.finfo(torch.float32 if half else dtype).eps / 2
    bound = (terms + 2) * unit * magnitude
    if dtype == torch.float64:
        return 2 * bound
    if half:
        info = torch.finfo(dtype)
        spacing = info.smallest_normal * info.eps  # of the subnormal numbers
        bound = bound + info.eps / 2 * (exact.abs() + bound) + spacing / 2
    return bound
