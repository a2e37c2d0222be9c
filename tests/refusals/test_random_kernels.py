"""What ``kernel_features`` and the selections of a ``KernelBank`` refuse."""

from __future__ import annotations

import numpy as np
from random_banks import Problem
from refusals import refusals

from sparseconv.rocket import kernel_features

ROCKET, MINI = Problem("rocket", 2).bank, Problem("minirocket", 6).bank
CHANNELS, LENGTH = MINI.series_channels, MINI.series_length
X = np.random.default_rng(0).normal(size=(5, CHANNELS, LENGTH)).astype(np.float32)
READ_ONLY = np.zeros((5, MINI.n_features), np.float32)
READ_ONLY.flags.writeable = False
HOLE = np.where(np.arange(LENGTH) == 3, np.nan, X)
MASKED = np.ma.masked_array(X, np.isnan(HOLE))

test_random_kernels = refusals(
    (lambda: kernel_features(X[:, :, 1:], MINI), ValueError, f"got (5, {CHANNELS}, {LENGTH - 1})"),
    (lambda: kernel_features([X[0], X[1, :, 1:]], MINI), ValueError, "same length with aeon"),
    (lambda: kernel_features(MASKED, MINI), ValueError, "are missing (NaN), infinite or too large"),
    (lambda: kernel_features(HOLE, MINI), ValueError, "finite values in X"),
    (lambda: kernel_features(X, MINI, out=READ_ONLY), ValueError, "writeable array"),
    (lambda: ROCKET.select([0, 10**6]), IndexError, "index 1000000 is out of bounds"),
    (lambda: MINI.select([]), ValueError, "expected at least one kernel or feature"),
    (lambda: ROCKET.select_features([0, 1, 2]), ValueError, "kernel 1 has two features, but only"),
)  # fmt: skip
