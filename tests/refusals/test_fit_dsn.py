"""What ``DSNClassifier`` refuses: series with the remedy, constants when it is fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from refusals import refuses, table

from sparseconv import DSNClassifier

X, y = np.random.default_rng(0).normal(size=(12, 1, 40)), np.arange(12) % 2
SMALL: dict[str, Any] = {"nf": 2, "kernel_size": 9, "depth": 2, "epochs": 1, "random_state": 0}
FITTED = DSNClassifier(**SMALL).fit(X, y)
UNEQUAL = [x[:, : 30 + i % 2] for i, x in enumerate(X)]


def fit(X: Any = X, **changes: Any) -> None:
    DSNClassifier(**SMALL | changes).fit(X, y)


def with_value(value: float) -> np.ndarray:
    found = X.copy()
    found[3, 0, 7] = value
    return found


@table(
    (lambda: fit(with_value(np.nan)), ValueError, "DSNClassifier: expected finite values in X"),
    (lambda: FITTED.predict(with_value(np.inf)), ValueError, "1 of 480 are missing (NaN), infin"),
    (lambda: fit(UNEQUAL), ValueError, "lengths from 30 to 31; pad or cut them"),
    (lambda: fit(X[:0]), ValueError, "none of them 0, but got (0, 1, 40)"),
    (lambda: FITTED.predict(X[:, :, :30]), ValueError, "different length"),
    (lambda: FITTED.predict(np.concatenate([X, X], 1)), ValueError, "number of channels"),
    (lambda: fit(epochs=0), ValueError, "epochs must be >= 1"),
)
def test_dsn_classifier(call: Callable[[], Any], error: type[Exception], fragment: str) -> None:
    refuses(call, error, fragment)
