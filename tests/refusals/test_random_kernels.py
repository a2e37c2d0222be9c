"""What ``kernel_features``, the selections of a ``KernelBank`` and ``from_aeon`` refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_banks import Problem
from refusals import refusals, refuses

from sparseconv.rocket import KernelBank, kernel_features

ROCKET, MINI = Problem("rocket", 2).bank, Problem("minirocket", 6).bank
CHANNELS, LENGTH = MINI.series_channels, MINI.series_length
X = np.random.default_rng(0).normal(size=(5, CHANNELS, LENGTH)).astype(np.float32)
FEATURES = np.empty((5, MINI.n_features), np.float32)
READ_ONLY = FEATURES.copy()
READ_ONLY.flags.writeable = False


def with_value(value: float) -> Any:
    series = X.astype(np.float64)
    series[1, 0, 3] = value
    return series


test_random_kernels = refusals(
    (lambda: kernel_features(X, None), TypeError, "make one with KernelBank.from_aeon"),
    (lambda: kernel_features(X[:, :, 1:], MINI), ValueError, f"got (5, {CHANNELS}, {LENGTH - 1})"),
    (lambda: kernel_features([X[0], X[1, :, 1:]], MINI), ValueError, "series of one length, but"),
    (lambda: kernel_features(with_value(np.nan), MINI), ValueError, "finite values in X"),
    (lambda: kernel_features(X, MINI, out=FEATURES[1:]), ValueError, "expected out to be"),
    (lambda: kernel_features(X, MINI, out=FEATURES.T), ValueError, "C-contiguous, writeable"),
    (lambda: kernel_features(X, MINI, out=READ_ONLY), ValueError, "C-contiguous, writeable"),
    (lambda: MINI.select([]), ValueError, "kernels must be a list of different integers"),
    (lambda: MINI.select_features([-1]), ValueError, "features must be a list of different"),
    (lambda: ROCKET.select([0, 10**6]), ValueError, f"from 0 to {ROCKET.n_kernels - 1}"),
    (lambda: ROCKET.select(np.ones(9, bool)), ValueError, "of a mask take numpy.flatnonzero"),
    (lambda: ROCKET.select_features([0, 1, 2]), ValueError, "kernel 1 has two features, and only"),
)  # fmt: skip


def test_from_aeon() -> None:
    aeon = pytest.importorskip("aeon.transformations.collection.convolution_based")
    refuses(lambda: KernelBank.from_aeon(aeon.Rocket()), ValueError, "not fitted; call fit first")
    refuses(lambda: KernelBank.from_aeon(aeon.MultiRocket(84)), TypeError, "expected aeon's Rocket")
