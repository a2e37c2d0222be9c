"""What estimators accept besides aeon's collections of series."""

from __future__ import annotations

from typing import Any

from sparseconv.core.arrays import as_labels, three_axes, warn_if_swapped


class ReadsArrays:
    """Read series and labels as the other functions of this library do, before aeon checks them."""

    def _preprocess_collection(self, X: Any, store_metadata: bool = True) -> Any:
        series = three_axes(type(self).__name__, "X", X)
        if store_metadata:
            warn_if_swapped(series.shape)
        return super()._preprocess_collection(series, store_metadata)  # type: ignore[misc]

    def _check_shape(self, X: Any) -> None:
        known: Any = self.metadata_  # type: ignore[attr-defined]
        shape = known["n_channels"], known["n_timepoints"]
        if X.shape[1:] != shape:
            raise ValueError(
                f"{type(self).__name__}: expected series of shape (n_cases, {shape[0]}, "
                f"{shape[1]}), as in fit, but got {X.shape}; pad or cut them to this length"
            )

    def _check_y(self, y: Any, n_cases: int, **options: Any) -> Any:
        labels = as_labels(type(self).__name__, "y", y)
        return super()._check_y(labels, n_cases, **options)  # type: ignore[misc]
