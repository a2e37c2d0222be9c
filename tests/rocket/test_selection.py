"""POCKET's selection: the authors' algorithm, written down with p x p matrices, finds the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparseconv.rocket.selection import GroupSelection


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
@pytest.mark.parametrize("n_iter", [1, 5, 20])
def test_the_authors_algorithm(
    shape: tuple[int, int], size: int, n_classes: int, n_iter: int
) -> None:
    n, p = shape
    raw = np.random.default_rng(0).normal(size=(n, p))
    selection = GroupSelection(raw, np.arange(n) % n_classes, n_classes, size)
    X, Y = selection.X, selection.Y
    for k in (0.1, 10.0):
        for keep in (1, 5, p // size - 1):
            kept, W = selection.select(keep, k, n_iter)
            expected, weights = naive(X, Y, size, k, keep, n_iter)
            assert kept.tolist() == expected
            torch.testing.assert_close(W, weights)


def test_everything_kept_is_ridge() -> None:
    raw = np.random.default_rng(1).normal(size=(30, 40))
    selection = GroupSelection(raw, np.arange(30) % 3, 3, 2)
    X, Y = selection.X, selection.Y
    ridge = torch.linalg.solve(X.T @ X + torch.eye(40, dtype=X.dtype), X.T @ Y)
    kept, W = selection.select(20, 1.0, 50)
    assert kept.tolist() == list(range(20))
    torch.testing.assert_close(W, ridge)


def test_equal_groups_are_kept_by_number() -> None:
    column = np.array([1, 0, 1, 0])
    raw = np.tile(column[:, None], (1, 5)).astype(np.float32)
    kept, _ = GroupSelection(raw, column, 2, 1).select(2, 1.0, 3)
    assert kept.tolist() == [0, 1]


def test_scaling_and_targets() -> None:
    raw = np.array([[1.0, 7.3, 2.0], [3.0, 7.3, 2.0], [8.0, 7.3, -4.0]], np.float32)
    scaled = GroupSelection(raw, np.arange(3) % 2, 2, 1).X
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3))
    torch.testing.assert_close(scaled.norm(dim=0), torch.tensor([1.0, 0.0, 1.0]))
    constant = np.full((50, 1), 0.1, np.float32) + np.float32(1e-9)
    assert not GroupSelection(constant, np.arange(50) % 2, 2, 1).X.any()
    for labels, coded in (
        ([0, 1, 1, 1], [[-1], [1], [1], [1]]),
        ([0, 2, 1], [[1, -1, -1], [-1, -1, 1], [-1, 1, -1]]),
    ):
        found = GroupSelection(raw[:1].repeat(len(labels), 0), np.array(labels), max(labels) + 1, 1)
        wanted = torch.tensor(coded, dtype=torch.float32)
        torch.testing.assert_close(found.Y, wanted - wanted.mean(0))


def test_a_ridge_too_small_for_its_features_is_named() -> None:
    X = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="k = 1e-30"):
        GroupSelection(X[:, [0] * 8], np.arange(3) % 2, 2, 1).select(2, 1e-30, 5)
