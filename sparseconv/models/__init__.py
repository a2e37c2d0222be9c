"""Networks for time series: the sparse DSN, and dense networks for comparison."""

from __future__ import annotations

from sparseconv.models.dense import LITE, OSCNN, Ensemble, InceptionTime, ResNet
from sparseconv.models.dsn import DSN, DSNCost

__all__ = ["DSN", "LITE", "OSCNN", "DSNCost", "Ensemble", "InceptionTime", "ResNet"]
