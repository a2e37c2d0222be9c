"""For correctness tests: random cases, an oracle and computed error bounds."""

from sparseconv.testing.bounds import (
    Expected,
    error_bound,
    expected_dgrad,
    expected_fprop,
    expected_wgrad,
)
from sparseconv.testing.cases import LENGTHS, PATTERNS, Case, Tensors, random_case
from sparseconv.testing.oracle import conv1d_oracle, oracle_dgrad, oracle_wgrad

__all__ = [
    "LENGTHS",
    "PATTERNS",
    "Case",
    "Expected",
    "Tensors",
    "conv1d_oracle",
    "error_bound",
    "expected_dgrad",
    "expected_fprop",
    "expected_wgrad",
    "oracle_dgrad",
    "oracle_wgrad",
    "random_case",
]
