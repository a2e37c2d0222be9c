"""What the networks of ``sparseconv.models`` and banks of random kernels refuse."""

from __future__ import annotations

import numpy as np
import torch
from random_banks import Problem
from refusals import refusals

from sparseconv.models import DSN, InceptionTime
from sparseconv.rocket import kernel_features

test_models = refusals(
    (lambda: DSN(1, 2, sparsity=1.0), ValueError, "sparsity"),
    (lambda: DSN(0, 2), ValueError, "in_channels"),
    (lambda: DSN(1, 2, n_groups=40), ValueError, "n_groups"),
    (lambda: DSN(1, 2, nf=8, block=16), ValueError, "block"),
    (lambda: DSN(1, 2, init="sorted"), ValueError, "init"),
    (lambda: DSN(1, 2, padding="same"), ValueError, "padding"),
    (lambda: DSN(1, 2).cost(0), ValueError, "n_timepoints"),
    (lambda: DSN(1, 2)(torch.zeros(4, 20)), ValueError, "X[:, None]"),
    (lambda: DSN(2, 2)(torch.zeros(2, 20)), ValueError, "X[None]"),
    (lambda: DSN(2, 2)(torch.zeros(4, 20, 2)), ValueError, "transpose(X"),
    (lambda: InceptionTime(1, 0), ValueError, "n_classes"),
    (lambda: InceptionTime(1, 2, variant="torch"), ValueError, "variant"),
)  # fmt: skip

ROCKET, MINI = Problem("rocket", 2).bank, Problem("minirocket", 6).bank
CHANNELS, LENGTH = MINI.series_channels, MINI.series_length
X = np.random.default_rng(0).normal(size=(5, CHANNELS, LENGTH)).astype(np.float32)
READ_ONLY = np.zeros((5, MINI.n_features), np.float32)
READ_ONLY.flags.writeable = False
HOLE = np.where(np.arange(LENGTH) == 3, np.nan, X)
MASKED = np.ma.masked_array(X, np.isnan(HOLE))

test_random_kernels = refusals(
    (lambda: kernel_features(X[:, :, 1:], MINI), ValueError, "series"),
    (lambda: kernel_features([X[0], X[1, :, 1:]], MINI), ValueError, "X"),
    (lambda: kernel_features(MASKED, MINI), ValueError, "X"),
    (lambda: kernel_features(HOLE, MINI), ValueError, "X"),
    (lambda: kernel_features(X, MINI, out=READ_ONLY), ValueError, "out"),
    (lambda: kernel_features(X, MINI, out=READ_ONLY.tolist()), ValueError, "out"),
    (lambda: ROCKET.select([0, 10**6]), IndexError, "1000000"),
    (lambda: MINI.select([]), ValueError, "kernel"),
    (lambda: ROCKET.select_features([0, 1, 2]), ValueError, "kernel 1"),
)  # fmt: skip
