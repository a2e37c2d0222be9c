"""The factors of ``sc.factorize``: the best that there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from branches import branches, composed

import sparseconv as sc
from sparseconv.pruning.factorize import _factors

SHAPES = [(3, 4, 2, 3), (4, 2, 5, 4), (2, 6, 1, 3)]  # N, O, I, K: tall, wide and thin stacks
EPS = torch.finfo(torch.float64).eps


def stacked(convs: Any, method: str) -> np.ndarray:
    """The matrix whose best approximation the method asks for: one above or next to another."""
    weights = [conv.weight.detach().flatten(1).numpy() for conv in convs]
    return np.concatenate(weights, axis=int(method == "right"))


def rounding(matrix: np.ndarray) -> float:
    """What an SVD may be off by, as ``numpy.linalg.matrix_rank`` computes it."""
    return max(matrix.shape) * EPS * float(np.linalg.norm(matrix))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["left", "right", "svd"])
def test_no_weights_of_this_rank_are_closer(
    method: str, shape: tuple[int, int, int, int], count_cases: Callable[[int], None]
) -> None:
    """Eckart and Young: the best error is the norm of the singular values that are left out."""
    model = branches(shape, dtype=torch.float64)
    sets = [[f"convs.{i}"] for i in range(shape[0])]
    sets = sets if method == "svd" else [[*itertools.chain(*sets)]]
    most = min(stacked(model.convs[: len(sets[0])], method).shape)
    for rank in range(1, most + 1):
        small, report = sc.factorize(model, sets, method=method, rank=rank)
        for names, found in zip(sets, report.layers, strict=True):
            convs = [model.get_submodule(name) for name in names]
            matrix = stacked(convs, method)
            best = float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))
            reached = [composed(small.get_submodule(name)) for name in names]
            pairs = zip(convs, reached, strict=True)
            error = float(torch.stack([c.weight.detach() - w for c, w in pairs]).norm())
            assert abs(error - best) <= 2 * rounding(matrix), (rank, error, best)
            relative = error / float(np.linalg.norm(matrix))
            assert abs(found.relative_error - relative) <= 2 * max(matrix.shape) * EPS
            assert found.rank == rank
            count_cases(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_two_shared_factors_come_back(shape: tuple[int, int, int, int]) -> None:
    n, o, i, k = shape
    model = branches(shape, dtype=torch.float64)
    # Terms in spaces at right angles, one of them larger, are what the singular values tell apart:
    # the first of the alternations finds them.
    u, w = (torch.linalg.qr(torch.randn(size, size).double())[0] for size in (i * k, o))
    shared = torch.randn(n, 1, o - 1).double() @ w[1:]
    own = u[:, 1:] @ torch.randn(n, i * k - 1, 1).double()
    weights = u[:, :1] @ shared / shared.norm() + 5 * (own / own.norm()) @ w[:1]
    for conv, weight in zip(model.convs, weights, strict=True):
        conv.weight.data.copy_(weight.T.reshape(o, i, k))
    small, report = sc.factorize(model, method="both", rank=1)
    bound = 4 * n * max(o, i * k) * EPS
    assert report.layers[0].relative_error <= bound
    for conv, layer in zip(model.convs, small.convs, strict=True):
        assert float((conv.weight.detach() - composed(layer)).norm()) <= bound * weights.norm()


@pytest.mark.parametrize("seed", range(5))
def test_both_falls_in_every_alternation_and_is_never_worse_than_one_of_them(seed: int) -> None:
    torch.manual_seed(seed)
    weights, rank = torch.randn(3, 5, 12).double(), 2
    noise = 60 * EPS * float(weights.norm())

    def residual(method: str, alternations: int = 30) -> float:
        pairs = _factors(weights, method, rank, alternations)
        return float((weights - sum(p @ q for p, q in pairs)).norm())

    falling = [residual("both", count) for count in range(1, 31)]
    assert falling[0] <= min(residual("left"), residual("right")) + noise
    assert all(b <= a + noise for a, b in itertools.pairwise(falling))
    assert falling[-1] < falling[0]
