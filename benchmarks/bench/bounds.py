"""Bound the error and count the operations of random kernels' features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sparseconv.rocket.bank import MINI_LENGTH, KernelBank
from sparseconv.rocket.features import normalised
from sparseconv.rocket.reference import kernel_features_reference, kernel_outputs_reference
from sparseconv.testing import error_bound


def feature_limits(X: Any, bank: KernelBank, exact: bool = False) -> tuple[Any, Any]:
    """Return the smallest and largest correct features, each ``(n_cases, n_features)``.

    Args:
        X: series ``(n_cases, n_channels, length)`` in float32.
        bank: the kernels.
        exact: whether all numbers are small integers, so that float32 sums are exact.
    """
    X = normalised(X).astype(np.float32) if bank.normalise else X
    if bank.kind == "minirocket" or exact:  # its order of additions is part of the result
        with np.errstate(over="ignore", invalid="ignore"):
            features = kernel_features_reference(X, bank).astype(np.float32)
        return features, features
    positive = {name: abs(bank.arrays[name]) for name in ("weights", "bias")}
    absolute = replace(bank, arrays={**bank.arrays, **positive})
    sums = kernel_outputs_reference(X, bank), kernel_outputs_reference(abs(X), absolute)
    lowest, highest = (np.empty((len(X), bank.n_features)) for _ in "ab")
    terms = 1 + bank.arrays["length"] * bank.arrays["n_channels"]
    for k, (s, magnitude) in enumerate(zip(*sums, strict=True)):
        bound = _rounding(s, magnitude, int(terms[k]))
        for limit, values in ((lowest, s - bound), (highest, s + bound)):
            limit[:, 2 * k] = (values > 0).mean(1).astype(np.float32)
            limit[:, 2 * k + 1] = values.max(1)
    return lowest, highest


def _rounding(s: Any, magnitude: Any, terms: int) -> Any:
    s, magnitude, count = (torch.as_tensor(x, dtype=torch.float64) for x in (s, magnitude, terms))
    # A sum of tiny numbers is rounded to whole subnormal steps.
    single = torch.finfo(torch.float32)
    tiny = count * single.smallest_normal * single.eps / 2 * (magnitude > 0)
    return (error_bound(s, magnitude, count, torch.float32) + tiny).numpy()


def operations(bank: KernelBank) -> int:
    """Return the minimum number of operations needed to compute one series' features.

    For ROCKET, these are multiply-adds of taps inside the series; for MiniROCKET, comparisons.
    """
    a, length = bank.arrays, bank.series_length
    if bank.kind == "minirocket":
        outside = np.where(a["padded"] == 1, 0, (MINI_LENGTH - 1) * a["dilation"])
        return int(((length - outside) * a["n_biases"]).sum(dtype=np.int64))
    tap = np.arange(a["length"].max())[:, None]
    first = tap * a["dilation"] - a["padding"]  # sample that the first output reads
    end = length + a["padding"] - (a["length"] - 1 - tap) * a["dilation"]
    inside = (np.minimum(end, length) - np.maximum(first, 0)).clip(0) * (tap < a["length"])
    return int((inside * a["n_channels"]).sum(dtype=np.int64))
