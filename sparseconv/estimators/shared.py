"""Common parts of the estimators: input arrays, threads, seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from aeon.utils.validation import check_n_jobs
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from sparseconv.core.arrays import as_labels, three_axes
from sparseconv.measure.machine import threads

LEAST_WEIGHT = 1e-6  # of the largest class_weight; float32 would lose less


class Shared:
    """Checks series and labels as the rest of this library does, before aeon checks them."""

    n_jobs: int

    def _preprocess_collection(self, X: Any, store_metadata: bool = True) -> Any:
        series = three_axes(type(self).__name__, "X", X)
        return super()._preprocess_collection(series, store_metadata)  # type: ignore[misc]

    def _check_y(self, y: Any, n_cases: int, **options: Any) -> Any:
        labels = as_labels(type(self).__name__, "y", y)
        return super()._check_y(labels, n_cases, **options)  # type: ignore[misc]

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Run torch and BLAS with ``n_jobs`` threads; whatever is set around, compute alike."""
        n_jobs = check_n_jobs(self.n_jobs)
        with (
            threads(n_jobs), threadpool_limits(n_jobs), np.errstate(under="ignore"),
            torch.autocast("cpu", enabled=False),
            # This slows every call of torch, so it is only set if the default is another device.
            nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"),
        ):  # fmt: skip
            yield


class Scored(Shared):
    """A classifier that scores all series and labels that it can be fitted to."""

    def score(self, X: Any, y: Any, *metric: Any, **options: Any) -> float:
        """Score the predictions as aeon's ``score`` does; the default is the accuracy."""
        owner = type(self).__name__
        series, labels = three_axes(owner, "X", X), as_labels(owner, "y", y)
        found: float = super().score(series, labels, *metric, **options)  # type: ignore[misc]
        return found


def case_weights(class_weight: Any, y: npt.NDArray[Any]) -> npt.NDArray[np.float64] | None:
    """Return the weight of each case by its label; None if all are equal."""
    if class_weight is None:
        return None
    labels = y
    if y.dtype.kind == "U" and isinstance(class_weight, dict):
        # scikit-learn would look up "01" as the label 1; it looks up other texts as they are.
        labels = np.char.add("class ", y)
        class_weight = {f"class {label}": weight for label, weight in class_weight.items()}
    found: npt.NDArray[np.float64] = compute_sample_weight(class_weight, labels)
    if (low := ~(found > LEAST_WEIGHT * found.max())).any():
        raise ValueError(
            f"class_weight must have weights above {LEAST_WEIGHT:g} times the largest one, but "
            f"got {found[low][0]:g} for class {y[low][0]}; leave out cases that should not count"
        )
    return found


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Return the seed of one fit: the int, or a number drawn from a ``RandomState``."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    if random_state is None:  # do not advance NumPy's global generator
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31))
