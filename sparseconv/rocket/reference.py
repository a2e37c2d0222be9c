"""Features of random kernels by loops over indices, in float64 or in MiniROCKET's exact order."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseconv.rocket.bank import MINI_LENGTH, KernelBank

TAPS = np.array(list(combinations(range(MINI_LENGTH), 3)))


def kernel_features_reference(X: Any, bank: KernelBank) -> npt.NDArray[Any]:
    """``(n_cases, n_features)``: float64 for ROCKET; MiniROCKET's exact arithmetic in float32."""
    X = np.asarray(X)
    return _rocket(X, bank) if bank.kind == "rocket" else _minirocket(X, bank)


def _rocket(X: npt.NDArray[Any], bank: KernelBank) -> npt.NDArray[Any]:
    a, (n, _, length) = bank.arrays, X.shape
    out, w, c = np.empty((n, bank.n_features)), 0, 0
    for k in range(bank.n_kernels):
        taps, d, pad = (int(a[name][k]) for name in ("length", "dilation", "padding"))
        channels = a["channels"][c : c + a["n_channels"][k]]
        weights = a["weights"][w : w + taps * len(channels)].reshape(len(channels), taps)
        c, w = c + len(channels), w + weights.size
        n_out = length + 2 * pad - (taps - 1) * d
        s = np.full((n, n_out), float(a["bias"][k]))
        for channel, row in zip(channels, weights, strict=True):
            x = np.pad(X[:, channel].astype(np.float64), ((0, 0), (pad, pad)))
            for j in range(taps):
                s += float(row[j]) * x[:, j * d : j * d + n_out]
        out[:, 2 * k], out[:, 2 * k + 1] = (s > 0).mean(1), s.max(1)
    return out


def _minirocket(X: npt.NDArray[Any], bank: KernelBank) -> npt.NDArray[np.float32]:
    a, (n, _, length) = bank.arrays, X.shape
    X = X.astype(np.float32)
    triple = np.float32(3) * X
    out, c, f = np.empty((n, bank.n_features), np.float32), 0, 0

    def shifted(x: npt.NDArray[np.float32], steps: int) -> npt.NDArray[np.float32]:
        """x[t + steps], 0 outside."""
        found = np.zeros_like(x)
        if abs(steps) < length:
            source = slice(max(0, steps), length + min(0, steps))
            found[..., max(0, -steps) : length - max(0, steps)] = x[..., source]
        return found

    for k in range(bank.n_kernels):
        d, total = int(a["dilation"][k]), np.zeros((n, length), np.float32)
        for channel in a["channels"][c : c + a["n_channels"][k]]:
            x, g = X[:, channel], triple[:, channel]
            s = -x
            for j in (0, 1, 2, 3, 5, 6, 7, 8):
                s = s - shifted(x, (j - 4) * d)
            for tap in TAPS[a["taps"][k]]:
                s = s + shifted(g, (int(tap) - 4) * d)
            total = total + s
        c += a["n_channels"][k]
        inside = total if a["padded"][k] else total[:, 4 * d : length - 4 * d]
        for bias in a["biases"][f : f + a["n_biases"][k]]:
            out[:, f] = ((inside > bias).sum(1) / np.float32(inside.shape[1])).astype(np.float32)
            f += 1
    return out
