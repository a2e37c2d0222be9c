"""POCKET's selection: the authors' algorithm, written down with p x p matrices, finds the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparseconv.rocket.selection import GroupSelection, Scaling, targets


def naive(
    X: Tensor, Y: Tensor, size: int, k: float, keep: int, n_iter: int
) -> tuple[list[int], Tensor]:
    p = X.shape[1]
    inverse = torch.linalg.inv(k * torch.eye(p, dtype=X.dtype) + X.T @ X)
    theta = U = torch.zeros(p, Y.shape[1], dtype=X.dtype)
    for _ in range(n_iter):
        W = inverse @ (k * (theta + U) + X.T @ Y)
        norms = (W - U).view(-1, size * Y.shape[1]).norm(dim=1)
        limit = norms.sort(descending=True).values[keep]
        theta = (W - U) * (1 - limit / norms).clamp_min(0).repeat_interleave(size)[:, None]
        U = U + theta - W
    return theta.view(len(norms), -1).any(1).nonzero()[:, 0].tolist(), W


@pytest.mark.parametrize("shape", [(20, 60), (80, 30)], ids=["fewer cases", "fewer features"])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("n_iter", [1, 5, 50])
def test_the_authors_algorithm(
    shape: tuple[int, int], size: int, n_classes: int, n_iter: int
) -> None:
    n, p = shape
    raw = torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X = Scaling.of(raw)(raw)
    Y, _ = targets(torch.arange(n) % n_classes, n_classes, X.dtype)
    selection = GroupSelection(X, Y, size)
    for k in (0.1, 1.0, 10.0):
        for keep in (1, 5, p // size - 1):
            kept, W = selection.select(keep, k, n_iter)
            expected, weights = naive(X, Y, size, k, keep, n_iter)
            assert kept.tolist() == expected
            torch.testing.assert_close(W, weights)


def test_one_iteration_is_magnitude_and_everything_is_ridge() -> None:
    raw = torch.randn(30, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    X = Scaling.of(raw)(raw)
    Y, _ = targets(torch.arange(30) % 3, 3, X.dtype)
    ridge = torch.linalg.solve(X.T @ X + torch.eye(40, dtype=X.dtype), X.T @ Y)
    selection = GroupSelection(X, Y, 2)
    largest = ridge.reshape(20, -1).norm(dim=1).topk(6).indices.sort().values
    assert torch.equal(selection.select(6, 1.0, 1)[0], largest)
    kept, W = selection.select(20, 1.0, 50)
    assert kept.tolist() == list(range(20))
    torch.testing.assert_close(W, ridge)


def test_equal_groups_are_kept_by_number() -> None:
    column = torch.tensor([1.0, -1.0, 1.0, -1.0])
    X = (column / 2)[:, None].repeat(1, 5)
    kept, _ = GroupSelection(X, column[:, None], 1).select(2, 1.0, 3)
    assert kept.tolist() == [0, 1]


def test_scaling_and_targets() -> None:
    raw = torch.tensor([[1.0, 7.3, 2.0], [3.0, 7.3, 2.0], [8.0, 7.3, -4.0]])
    scaled = Scaling.of(raw)(raw)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3))
    torch.testing.assert_close(scaled.norm(dim=0), torch.tensor([1.0, 0.0, 1.0]))
    constant = torch.full((50, 1), 0.1) + torch.tensor(1e-9)
    assert not Scaling.of(constant)(constant).any()
    Y, mean = targets(torch.tensor([0, 1, 1, 1]), 2, torch.float32)
    assert (Y + mean)[:, 0].tolist() == [-1, 1, 1, 1]
    Y, mean = targets(torch.tensor([0, 2, 1]), 3, torch.float32)
    assert np.array_equal((Y + mean).numpy(), [[1, -1, -1], [-1, -1, 1], [-1, 1, -1]])


def test_a_ridge_too_small_for_its_features_is_named() -> None:
    X = torch.ones(3, 8)
    with pytest.raises(ValueError, match="k = 1e-30 is too small"):
        GroupSelection(X, torch.ones(3, 1), 1).select(2, 1e-30, 5)
