"""The seed of a fit."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_random_state


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Return the seed of one fit: an int is itself, a ``RandomState`` is advanced."""
    if isinstance(random_state, int | np.integer):
        if not 0 <= random_state < 2**32:  # what aeon's kernels take
            raise ValueError(
                f"random_state (--seed) must lie in [0, 2**32), but got {random_state}"
            )
        return int(random_state)
    if random_state is None:  # NumPy's global generator is not ours to advance
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31))
