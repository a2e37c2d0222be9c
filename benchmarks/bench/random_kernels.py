"""Check the features of random kernels, then compare their speed with aeon's and the FMA peak."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.bench import peaks
from benchmarks.bench.bounds import feature_limits, operations
from benchmarks.bench.run import ROUNDS, WrongResultError, times_and_ratios
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.rocket.bank import KINDS, KernelBank
from sparseconv.rocket.features import kernel_features

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
    compiled in this process, because transforms from numba's cache are slower.

    Returns one row per kind, shape, batch and share of kernels, in milliseconds per series.
    ``count`` is the number of threads of torch and aeon.

    Raises:
        WrongResultError: a feature is wrong; its kernels were not timed.
        RuntimeError: aeon, which draws the kernels, is missing.
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
