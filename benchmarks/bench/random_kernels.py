"""Check the features of random kernels, then compare their speed with aeon's and the FMA peak."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bench import peaks
from benchmarks.bench.run import ROUNDS, WrongResultError, times_and_ratios
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.rocket.bank import KINDS, MINI_LENGTH, KernelBank
from sparseconv.rocket.features import kernel_features, normalised
from sparseconv.rocket.reference import kernel_features_reference, kernel_outputs_reference
from sparseconv.testing import error_bound

SHAPES = ((1, 24), (1, 150), (1, 500), (1, 1500), (6, 200))  # channels and samples
BATCH, N_KERNELS = 96, 10_000
CHECKED = 4  # series
# Series that aeon's ROCKET is timed with, which takes seconds for 96: its time is proportional.
AEONS_BATCH = {"rocket": 16, "minirocket": BATCH}
KEPT = (0.4, 0.1)
TURN = 0.02


def measure(
    count: int, *, shapes: Sequence[tuple[int, int]] = SHAPES, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Time kernels of ROCKET and MiniROCKET, all and pruned, on many series and on a single one.

    aeon's transforms run interleaved, with the same kernels and number of threads. They are
    compiled in this process, because transforms from numba's cache are slower. Times are in
    milliseconds per series.
    """
    transforms = _aeon()
    rows = []
    with threads(count):
        for kind, (channels, length) in itertools.product(KINDS, shapes):
            generator = np.random.default_rng(0)
            X = generator.normal(size=(BATCH, channels, length)).astype(np.float32)
            theirs = transforms[kind](N_KERNELS, random_state=0, n_jobs=count).fit(X)
            bank = KernelBank.from_aeon(theirs)
            _check(X[:CHECKED], bank)
            rows += [_row(X[:batch], bank, count, rounds, theirs) for batch in (BATCH, 1)]
            columns = 2 if kind == "rocket" else 1  # features that come together
            groups = np.arange(bank.n_features).reshape(-1, columns)
            for share in KEPT:
                kept = np.sort(generator.permutation(len(groups))[: round(share * len(groups))])
                pruned = bank.select_features(groups[kept].ravel().tolist())
                rows.append(_row(X, pruned, count, rounds) | {"kept": share})
    return rows


def _aeon() -> dict[str, Any]:
    if "numba" not in sys.modules:
        folder = tempfile.TemporaryDirectory()  # an empty cache, so that everything is compiled
        atexit.register(folder.cleanup)
        os.environ["NUMBA_CACHE_DIR"] = folder.name
    try:
        from aeon.transformations.collection.convolution_based import MiniRocket, Rocket
    except ImportError as error:
        raise RuntimeError(
            f"aeon draws the random kernels, but it cannot be imported ({error}); install it "
            "with `pip install 'sparseconv[tsc]'`"
        ) from error
    return {"rocket": Rocket, "minirocket": MiniRocket}


def _check(X: npt.NDArray[np.float32], bank: KernelBank) -> None:
    got, (lowest, highest) = kernel_features(X, bank), feature_limits(X, bank)
    if wrong := int((~((lowest <= got) & (got <= highest))).sum()):
        raise WrongResultError(f"{bank}: {wrong} of {got.size} features are wrong")


def _row(
    X: npt.NDArray[np.float32], bank: KernelBank, count: int, rounds: int, theirs: Any = None
) -> dict[str, Any]:
    assert extension is not None
    out = np.empty((len(X), bank.n_features), np.float32)
    few = X[: AEONS_BATCH[bank.kind]]
    calls: dict[str, Callable[[], object]] = {"sparse": partial(kernel_features, X, bank, out=out)}
    if theirs is not None:
        calls["aeon"] = partial(theirs.transform, few)
    # On one thread only: numba's threads spin for a while after each call of aeon's.
    loop = peaks.loop("float32") if bank.kind == "rocket" and count == 1 else None
    if loop:
        calls[peaks.PEAK] = loop.call
    # numba's threads are OpenMP's: its calls change how many torch uses.
    times = timing.interleave(
        calls, rounds=rounds, least_seconds=TURN, context=lambda _: threads(count)
    )
    times["sparse"] /= len(X)
    if "aeon" in times:
        times["aeon"] /= len(few)
    work = operations(bank)
    share = loop.share(times, 2 * work) if loop else None
    return {
        "kind": bank.kind,
        "in_channels": bank.series_channels,
        "length": bank.series_length,
        "batch": len(X),
        "kept": 1.0,
        "threads": count,
        "isa": extension.isa(),
        "operations": work,
        **times_and_ratios(times),
        "share_of_peak": share,
    }


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
