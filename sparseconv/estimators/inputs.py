"""What the estimators accept: series of one length with finite values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from aeon.utils.validation.collection import get_type, has_missing, is_equal_length
from sklearn.utils import check_random_state


def check_series(estimator: Any, X: Any) -> None:
    """Refuse, with the remedy, what aeon would refuse without."""
    owner = type(estimator).__name__
    if isinstance(X, np.ndarray) and X.size == 0:
        raise ValueError(
            f"{owner} expected at least one series with at least one time point, but got shape "
            f"{X.shape}"
        )
    get_type(X)  # aeon's own error for what is not a collection of series
    if not is_equal_length(X):
        raise ValueError(
            f"{owner} expected series of one length, but got unequal length series; pad or cut "
            "them first, with aeon.transformations.collection.unequal_length.Padder or Truncator"
        )
    length = int(np.shape(X[0])[-1]) if isinstance(X, np.ndarray | list) else None
    if estimator.is_fitted and length not in (None, estimator.metadata_["n_timepoints"]):
        raise ValueError(
            f"{owner} expected series of the length in fit, {estimator.metadata_['n_timepoints']}, "
            f"but got {length}; pad or cut them"
        )
    if has_missing(X):
        raise ValueError(
            f"{owner} expected finite values, but got missing values (NaN); fill them in first, "
            "with aeon.transformations.collection.SimpleImputer or, as the DSN paper did, with "
            "zeros: np.nan_to_num(X)"
        )


class CheckedSeries:
    """Before an aeon base class: refuses series with the remedy, which aeon does without."""

    def _check_X(self, X: Any) -> Any:  # noqa: N802 (aeon's name)
        check_series(self, X)
        with np.errstate(invalid="ignore"):  # infinities are refused later
            return super()._check_X(X)  # type: ignore[misc]


def check_finite(owner: str, X: npt.NDArray[Any]) -> None:
    """Refuse numbers that are infinite, or that float32 does not hold."""
    with np.errstate(over="ignore"):  # a number too large for float32 becomes inf
        if not np.isfinite(np.asarray(X, np.float32)).all():
            raise ValueError(
                f"{owner} expected finite values, but got some that are infinite or too large for "
                "float32; remove or rescale them"
            )


def as_float32(owner: str, X: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A contiguous copy, finite."""
    check_finite(owner, X)
    return np.array(X, dtype=np.float32, order="C")


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """The seed of one fit: an int is itself, a ``RandomState`` is advanced."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    if random_state is None:  # NumPy's global generator is not ours to advance
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31))
