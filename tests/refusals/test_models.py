"""What the networks of ``sparseconv.models`` refuse."""

from __future__ import annotations

import torch
from refusals import refusals

from sparseconv.models import DSN, LITE, Ensemble, InceptionTime

test_models = refusals(
    (lambda: DSN(1, 2, sparsity=1.0), ValueError, "sparsity must lie in [0, 1), but got 1.0"),
    (lambda: DSN(0, 2), ValueError, "in_channels must be at least 1"),
    (lambda: DSN(1, 2, n_groups=40), ValueError, "n_groups=40 is too large"),
    (lambda: DSN(1, 2, nf=20, block=16), ValueError, "fewer groups, or make nf a multiple of 16"),
    (lambda: DSN(1, 2, nf=8, block=16), ValueError, "a block of 16 x 16 channels is larger"),
    (lambda: DSN(1, 2, block=64), ValueError, "a block of 64 x 64 channels is larger"),
    (lambda: DSN(1, 2, init="sorted"), ValueError, "init must be one of ('prefix', 'random')"),
    (lambda: DSN(1, 2, padding="same"), ValueError, "padding must be one of"),
    (lambda: DSN(1, 2).cost(0), ValueError, "n_timepoints must be at least 1"),
    (lambda: DSN(9, 2)(torch.zeros(2, 8, 50)), ValueError, "(n_cases, 9, n_timepoints)"),
    (lambda: DSN(1, 2)(torch.zeros(4, 20)), ValueError, "pass single-channel series as X[:, None]"),
    (lambda: DSN(2, 2)(torch.zeros(2, 20)), ValueError, "got (2, 20); pass a single series as"),
    (lambda: DSN(2, 2)(torch.zeros(4, 20, 2)), ValueError, "(4, 20, 2); the axes are swapped"),
    (lambda: DSN(2, 2)(torch.zeros(4, 3, 20)), ValueError, "3, 20); pass series with 2 channels"),
    (lambda: LITE(3, 2)(torch.zeros(2, 1, 50)), ValueError, "this LITE expects series of shape"),
    (lambda: InceptionTime(1, 0), ValueError, "n_classes must be at least 1"),
    (lambda: InceptionTime(1, 2, variant="torch"), ValueError, "variant must be one of"),
    (lambda: Ensemble([]), ValueError, "one or more different modules, but got 0"),
    (lambda: Ensemble([LITE(1, 2)] * 2), ValueError, "use copy.deepcopy"),
)  # fmt: skip
