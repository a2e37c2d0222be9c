"""POCKET's choice of kernels: groups of features compete in a ridge classifier.

Source: Chen et al., "P-ROCKET: Pruning Random Convolution Kernels for Time Series Classification
from a Feature Selection Perspective", arXiv 2309.08499 (published as POCKET, Knowledge-Based
Systems 300, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from sklearn.preprocessing import label_binarize
from torch import Tensor

from sparseconv.rocket.features import log_probabilities, rounding

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Selected:
    """The kept features and the classifier on them (POCKET's stage 1).

    Attributes:
        k: the ridge penalty.
        groups, columns: indices of the groups and of their features, ascending.
        coef, intercept: ``(columns, targets)`` for unscaled features; one number per target.
    """

    k: float
    groups: Array
    columns: Array
    coef: Array
    intercept: Array


class GroupSelection:
    """Selects groups of features with ADMM on a ridge loss, without a features x features matrix.

    With ``Q = theta + U``, the step is ``(k I + X^T X)^-1 (k Q + X^T Y)``. With ``G = k I + X
    X^T``, it equals ``Q + X^T G^-1 (Y - X Q)``. Thus n x n matrices suffice if there are fewer
    cases than features. All k share one Gram matrix; for a given k, all numbers of groups share its
    factorization.

    Args:
        features: ``(n, p)``, unscaled.
        labels: ``(n,)``, from 0 to ``n_classes - 1``.
        group_size: number of neighbouring features to keep or drop together.
        weights: ``(n,)``, the weights of the cases in the loss; None if equal.

    Attributes:
        X: the features, centred and scaled to length 1; constant ones are 0.
        Y: the labels as -1 and 1, centred. The rows of both are multiplied by the square roots of
            the weights.
    """

    def __init__(
        self,
        features: Array,
        labels: Array,
        n_classes: int,
        group_size: int,
        weights: Array | None = None,
    ) -> None:
        raw = torch.from_numpy(features)
        self._share = None
        if weights is not None:
            self._share = torch.from_numpy(weights / weights.mean())[:, None].to(raw.dtype)
        self._mean = self._weighted(raw, 1).mean(0, dtype=torch.float64).to(raw.dtype)
        # With dtype=torch.float64 vector_norm takes more than twice as long.
        length = torch.linalg.vector_norm(self._weighted(raw - self._mean, 0.5).double(), dim=0)
        # A constant feature has length 0, up to rounding.
        tiny = rounding(self._mean, len(raw), torch.finfo(raw.dtype).eps)
        self._factor = torch.where(length > tiny, 1 / length, 0).to(raw.dtype)
        self.X = X = self._weighted(raw - self._mean, 0.5) * self._factor
        # One column for two classes, else one a class.
        coded = torch.from_numpy(label_binarize(labels, classes=range(n_classes), neg_label=-1))
        self._offset = self._weighted(coded.to(raw.dtype), 1).mean(0)
        self.Y = self._weighted(coded - self._offset, 0.5)
        self.group_size, self.wide = group_size, len(X) < X.shape[1]
        self.gram = X @ X.T if self.wide else X.T @ X
        self._k, self._cholesky = -1.0, self.gram  # the last k, and its factor

    def _weighted(self, rows: Tensor, power: float) -> Tensor:
        """Multiply rows by a power of their weights, whose mean is 1."""
        return rows if self._share is None else rows * self._share.pow(power)

    def leave_one_out(self, k: float) -> Array:
        """Return each case's decisions from a ridge fit without that case, ``(n, columns)``.

        A residual then grows by the factor 1 / (1 - leverage) (Golub, Heath and Wahba 1979).
        """
        residual = self.Y - self.X @ self.ridge(k)
        if self.wide:
            left = k * torch.cholesky_inverse(self._cholesky).diagonal()
        else:
            left = 1 - (self.X * torch.cholesky_solve(self.X.T, self._cholesky).T).sum(1)
        left = left[:, None] - self._weighted(torch.ones_like(left[:, None]), 1) / len(left)
        decided = self.Y - residual / left.clamp_min(torch.finfo(left.dtype).eps)
        return np.asarray(self._weighted(decided, -0.5).nan_to_num() + self._offset)  # weight 0

    def __call__(self, keep: int, k: float, n_iter: int) -> Selected:
        """Select ``keep`` groups; see ``select``."""
        groups, W = self.select(keep, k, n_iter)
        columns = (groups[:, None] * self.group_size + torch.arange(self.group_size)).view(-1)
        coef = W[columns] * self._factor[columns, None]
        intercept = self._offset - self._mean[columns] @ coef
        arrays = (np.asarray(found) for found in (groups, columns, coef, intercept))
        return Selected(k, *arrays)

    def ridge(self, k: float, Q: Tensor | None = None) -> Tensor:
        """Minimise ``|Y - X W|^2 + k |W - Q|^2`` over W, ``(p, columns)``; None for Q means 0."""
        if k != self._k:
            matrix = self.gram.clone()
            matrix.diagonal().add_(k)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if failed:
                raise ValueError(f"k = {k} is too small for these features; choose a larger one")
            self._k, self._cholesky = k, factor
        if self.wide:
            residual = self.Y if Q is None else self.Y - self.X @ Q
            solved = torch.cholesky_solve(residual, self._cholesky)
            step = (solved.T @ self.X).T  # column by column in memory: twice as fast, here and next
            return step if Q is None else Q + step
        right = self.X.T @ self.Y
        return torch.cholesky_solve(right if Q is None else right + k * Q, self._cholesky)

    def select(self, keep: int, k: float, n_iter: int) -> tuple[Tensor, Tensor]:
        """Return the best ``keep`` groups, ascending, and all weights after ``n_iter`` iterations.

        One iteration selects by magnitude: the largest groups of the ridge solution.
        """
        W = self.ridge(k)
        U = torch.zeros_like(W)
        for iteration in range(1, n_iter + 1):
            shifted = W - U
            norms = shifted.square().sum(1).view(-1, self.group_size).sum(1).sqrt()
            order = torch.argsort(norms, descending=True, stable=True)
            if keep >= len(norms):  # nothing competes, and theta stays at the ridge solution
                return torch.arange(len(norms)), W
            if iteration == n_iter:
                break
            # Groups above the (keep + 1)-th largest stay, shrunk by it.
            shrink = (1 - norms[order[keep]] / norms).clamp_min(0).nan_to_num(0)
            theta = shifted * shrink.repeat_interleave(self.group_size)[:, None]
            U = U + theta - W
            W = self.ridge(k, theta + U)
        return order[:keep].sort().values, W


def fitted_scale(decision: Array, labels: Array, weights: Array | None) -> float:
    """Return the scale of unseen decisions ``(n, columns)`` that maximises the labels' likelihood.

    This is temperature scaling (Guo et al. 2017). A case of each class is added to the labels
    (Platt 1999); otherwise, separable cases would have no finite scale.
    """
    n, classes = len(labels), max(decision.shape[1], 2)
    wanted = (n * np.eye(classes)[labels] + 1) / (n + classes)
    wanted *= 1 if weights is None else weights[:, None]

    def loss(log_scale: float) -> float:
        return -float((wanted * log_probabilities(decision, float(np.exp(log_scale)))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-10, 10), method="bounded").x))


def smallest_good(scores: dict[tuple[float, int], list[float]]) -> tuple[float, int]:
    """Return the (k, keep) with the smallest keep within one standard error of the best."""
    mean = {choice: float(np.mean(found)) for choice, found in scores.items()}
    best = max(mean, key=lambda choice: (mean[choice], -choice[1]))
    error = float(np.std(scores[best], ddof=1)) / len(scores[best]) ** 0.5
    # To be within rounding of equal is to be equal.
    good = [choice for choice in mean if mean[choice] >= mean[best] - error - 1e-12]
    return min(good, key=lambda choice: (choice[1], -mean[choice], choice[0]))
