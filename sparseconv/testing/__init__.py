"""Tools for correctness tests: random cases, an oracle and computed error bounds."""

from sparseconv.testing.cases import LENGTHS, PATTERNS, Case, Tensors, random_case
from sparseconv.testing.oracle import Expected, conv1d_oracle, error_bound, exact_results, expected

__all__ = [
    "LENGTHS",
    "PATTERNS",
    "Case",
    "Expected",
    "Tensors",
    "conv1d_oracle",
    "error_bound",
    "exact_results",
    "expected",
    "random_case",
]
