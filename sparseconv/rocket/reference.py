"""Features of random kernels, computed with loops in float64 or in MiniROCKET's exact order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseconv.rocket.bank import MINI_LENGTH, KernelBank

TAPS = np.array(list(combinations(range(MINI_LENGTH), 3)))


def kernel_features_reference(X: Any, bank: KernelBank) -> npt.NDArray[Any]:
    """Return ``(n_cases, n_features)``, float64 for ROCKET, exact float32 for MiniROCKET."""
    rocket = bank.kind == "rocket"
    out = np.empty((len(X), bank.n_features), np.float64 if rocket else np.float32)
    first = 0
    for k, s in enumerate(kernel_outputs_reference(X, bank)):
        if rocket:
            out[:, 2 * k], out[:, 2 * k + 1] = (s > 0).mean(1), s.max(1)
            continue
        end = first + int(bank.arrays["n_biases"][k])
        for f in range(first, end):
            out[:, f] = (s > bank.arrays["biases"][f]).sum(1) / np.float32(s.shape[1])
        first = end
    return out


def kernel_outputs_reference(X: Any, bank: KernelBank) -> Iterator[npt.NDArray[Any]]:
    """Yield each kernel's outputs ``(n_cases, n_outputs)``."""
    X = np.asarray(X)
    return _rocket(X, bank) if bank.kind == "rocket" else _minirocket(X, bank)


def _rocket(X: npt.NDArray[Any], bank: KernelBank) -> Iterator[npt.NDArray[np.float64]]:
    a, (n, _, length), w, c = bank.arrays, X.shape, 0, 0
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
        yield s


def _minirocket(X: npt.NDArray[Any], bank: KernelBank) -> Iterator[npt.NDArray[np.float32]]:
    a, (n, _, length), c = bank.arrays, X.shape, 0
    X = X.astype(np.float32)
    for k in range(bank.n_kernels):
        d, total = int(a["dilation"][k]), np.zeros((n, length), np.float32)
        taps = [slice(j * d, j * d + length) for j in range(MINI_LENGTH)]
        for channel in a["channels"][c : c + a["n_channels"][k]]:
            x = np.pad(X[:, channel], ((0, 0), (4 * d, 4 * d)))
            triple = np.float32(3) * x
            s = -X[:, channel]
            for j in (0, 1, 2, 3, 5, 6, 7, 8):
                s = s - x[:, taps[j]]
            for j in TAPS[a["taps"][k]]:
                s = s + triple[:, taps[j]]
            total = total + s
        c += a["n_channels"][k]
        yield total if a["padded"][k] else total[:, 4 * d : length - 4 * d]
