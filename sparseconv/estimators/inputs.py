"""What the estimators accept: series of one length with finite values; and their seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from sparseconv.datasets import as_series


class CheckedSeries:
    """Before an aeon base class: refuse series with the remedy, where aeon only refuses."""

    def _check_X(self, X: Any) -> Any:  # noqa: N802 (aeon's name)
        if isinstance(X, np.ndarray | list):  # aeon's error is enough for anything else
            as_series(type(self).__name__, "X", X)
        return super()._check_X(X)  # type: ignore[misc]


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Return the seed of one fit: an int is itself, a ``RandomState`` is advanced."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    if random_state is None:  # NumPy's global generator is not ours to advance
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31))
