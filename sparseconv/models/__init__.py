"""Networks for time series: the sparse DSN, and dense networks for comparison."""

from __future__ import annotations

from sparseconv.models.dsn import DSN, DSNCost
from sparseconv.models.ensemble import Ensemble
from sparseconv.models.inception_time import InceptionTime
from sparseconv.models.lite import LITE
from sparseconv.models.os_cnn import OSCNN
from sparseconv.models.resnet import ResNet

__all__ = ["DSN", "LITE", "OSCNN", "DSNCost", "Ensemble", "InceptionTime", "ResNet"]
