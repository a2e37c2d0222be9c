"""What ``kernel_features`` and the selections of a ``KernelBank`` refuse."""

from __future__ import annotations

import numpy as np
from random_banks import Problem
from refusals import refusals

from sparseconv.rocket import kernel_features

ROCKET, MINI = Problem("rocket", 2).bank, Problem("minirocket", 6).bank
CHANNELS, LENGTH = MINI.series_channels, MINI.series_length
X = np.random.default_rng(0).normal(size=(5, CHANNELS, LENGTH)).astype(np.float32)
FEATURES = np.empty((5, MINI.n_features), np.float32)
READ_ONLY = FEATURES.copy()
READ_ONLY.flags.writeable = False
HOLE = np.where(np.arange(LENGTH) == 3, np.nan, X)

test_random_kernels = refusals(
    (lambda: kernel_features(X, None), TypeError, "make one with KernelBank.from_aeon"),
    (lambda: kernel_features(X[:, :, 1:], MINI), ValueError, f"got (5, {CHANNELS}, {LENGTH - 1})"),
    (lambda: kernel_features([X[0], X[1, :, 1:]], MINI), ValueError, "series of one length, but"),
    (lambda: kernel_features(HOLE, MINI), ValueError, "finite values in X"),
    (lambda: kernel_features(X, MINI, out=FEATURES[1:]), ValueError, "expected out to be"),
    (lambda: kernel_features(X, MINI, out=READ_ONLY), ValueError, "C-contiguous, writeable"),
    (lambda: MINI.select([]), ValueError, "kernels must be a list of different integers"),
    (lambda: MINI.select_features([-1]), ValueError, "features must be a list of different"),
    (lambda: ROCKET.select([0, 10**6]), ValueError, f"from 0 to {ROCKET.n_kernels - 1}"),
    (lambda: ROCKET.select(np.ones(9, bool)), ValueError, "of a mask take numpy.flatnonzero"),
    (lambda: ROCKET.select_features([0, 1, 2]), ValueError, "kernel 1 has two features, and only"),
)  # fmt: skip
