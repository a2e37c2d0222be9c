"""How the cost of a layer grows with its weights, its batch, its length and its channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparseconv.bench.cases import CASES, Case
from sparseconv.bench.run import COMPUTATIONS, Kernels, check, sparse_calls
from sparseconv.measure import timing
from sparseconv.measure.memory import peak_bytes
from sparseconv.ops import calls

_BASE = CASES["uniform_15"]
SERIES: dict[str, list[Case]] = {
    "nnz": [replace(_BASE, density=d) for d in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)],
    "batch": [replace(_BASE, n=n) for n in (1, 2, 4, 8, 16, 32, 64)],
    "length": [replace(_BASE, length=n) for n in (32, 64, 128, 256, 512, 1024, 2048)],
    "in_channels": [replace(_BASE, in_channels=c) for c in (4, 8, 16, 32, 64, 128, 256)],
}


def measure(
    quantity: str,
    kernels: Kernels = calls,
    *,
    cases: Sequence[Case] | None = None,
    rounds: int = 15,
) -> list[dict[str, Any]]:
    """Check and time one series of sizes; one fit for each computation.

    All sizes take turns, so that a machine that slows down bends no line. The exponent is the slope
    of a straight line through the medians on log axes, over all sizes: fixed costs make it smaller.

    Args:
        quantity: which of ``SERIES``.
        kernels: what is measured.
        cases: other sizes than those of ``SERIES``.
        rounds: calls of each size.

    Raises:
        WrongResultError: a result is wrong; nothing was timed.
        KeyError: no such series.
    """
    problems = [case.build() for case in (cases or SERIES[quantity])]
    sizes = [
        {
            "nnz": problem.pattern.nnz,
            "batch": problem.x.shape[0],
            "length": problem.x.shape[2],
            "in_channels": problem.x.shape[1],
        }[quantity]
        for problem in problems
    ]
    for problem in problems:
        check(kernels, problem)
    fits = []
    for computation in COMPUTATIONS:
        calls = [sparse_calls(kernels, problem)[computation] for problem in problems]
        named = {str(i): call for i, call in enumerate(calls)}
        times = timing.interleave(named, rounds=rounds)
        samples = np.stack([times[name] for name in named], axis=1)
        memory = [peak_bytes(call) for call in calls]
        fits.append(
            {
                "quantity": quantity,
                "computation": computation,
                "threads": torch.get_num_threads(),
                "rounds": rounds,
                "points": [
                    [size, float(ms), peak]
                    for size, ms, peak in zip(
                        sizes, 1e3 * np.median(samples, axis=0), memory, strict=True
                    )
                ],
                "exponent": exponent(sizes, np.median(samples, axis=0)),
                "exponent_range": exponent_range(sizes, samples),
                "memory_exponent": exponent(sizes, memory),
            }
        )
    return fits


def exponent(sizes: Sequence[float], costs: Sequence[float] | NDArray[np.float64]) -> float:
    """Slope of the straight line through the points on log axes, by least squares.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def exponent_range(
    sizes: Sequence[float], samples: NDArray[np.float64], *, resamples: int = 500, seed: int = 0
) -> list[float]:
    """The 95 % bootstrap interval of ``exponent``; ``samples`` is (rounds, sizes), in seconds."""
    rng = np.random.default_rng(seed)
    slopes = [
        exponent(sizes, np.median(samples[rng.integers(len(samples), size=len(samples))], axis=0))
        for _ in range(resamples)
    ]
    return [float(bound) for bound in np.percentile(slopes, (2.5, 97.5))]
