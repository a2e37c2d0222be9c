"""Features of random kernels: checked, then timed beside aeon's and beside the FMA peak."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseconv.bench.run import WrongResultError, times_and_ratios
from sparseconv.measure import peaks, timing
from sparseconv.measure.machine import threads
from sparseconv.rocket.bank import KINDS, KernelBank
from sparseconv.rocket.bounds import feature_limits
from sparseconv.rocket.features import kernel_features, operations

SHAPES = ((1, 24), (1, 150), (1, 500), (1, 1500), (6, 200))  # channels and samples
BATCH = 96
CHECKED = 4  # series
# Series that aeon's ROCKET is timed with, which takes seconds for 96: its time is proportional.
AEONS_BATCH = {"rocket": 16, "minirocket": BATCH}
KEPT = (0.4, 0.1)
TURN = 0.02


def measure(
    count: int,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    n_kernels: int = 10_000,
    rounds: int = 12,
) -> list[dict[str, Any]]:
    """Time 10 000 kernels of ROCKET and MiniROCKET, whole and pruned, for many series and for one.

    aeon's transforms take their turns beside them, with the same kernels and threads. They are
    compiled in this process, since those that numba loads from its cache are slower.

    Args:
        count: torch's threads, and aeon's.
        shapes: (channels, samples) of the series.
        n_kernels: as aeon counts them.
        rounds: pairs of neighbours.

    Returns:
        One dict for each kind, shape, batch, share of kernels and instruction set, with times in
        milliseconds of one series.

    Raises:
        WrongResultError: a feature is wrong; nothing was timed with it.
        RuntimeError: aeon, which draws the kernels, is not installed.
    """
    make = _aeon()
    rows = []
    with threads(count):
        for kind in KINDS:
            for channels, length in shapes:
                generator = np.random.default_rng(0)
                X = generator.normal(size=(BATCH, channels, length)).astype(np.float32)
                theirs = make[kind](n_kernels, random_state=0, n_jobs=count).fit(X)
                bank = KernelBank.from_aeon(theirs)
                _check(X[:CHECKED], bank)
                timed = partial(_row, X, theirs, count, rounds)
                rows += [timed(bank, batch) for batch in (BATCH, 1)]
                with peaks.forced_isa("avx2") as isa:
                    if rows[0]["isa"] != isa and (channels, length) == (1, 150):
                        rows.append(timed(bank, BATCH))
                columns = 2 if kind == "rocket" else 1
                groups = bank.n_features // columns
                for share in KEPT:
                    kept = np.sort(generator.permutation(groups)[: round(share * groups)])
                    features = (kept[:, None] * columns + np.arange(columns)).reshape(-1)
                    pruned = bank.select_features(features.tolist())
                    rows.append(timed(pruned, BATCH, share))
    return rows


def _aeon() -> dict[str, Any]:
    fresh = "aeon.transformations.collection.convolution_based" not in sys.modules
    if fresh and "numba" not in sys.modules:
        folder = tempfile.mkdtemp()  # empty, so that everything is compiled
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["NUMBA_CACHE_DIR"] = folder
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
    X: npt.NDArray[np.float32],
    theirs: Any,
    count: int,
    rounds: int,
    bank: KernelBank,
    batch: int,
    kept: float = 1.0,
) -> dict[str, Any]:
    with peaks.forced_isa(None) as isa:
        ours, other = X[:batch], X[: min(batch, AEONS_BATCH[bank.kind])]
        out = np.empty((batch, bank.n_features), np.float32)
        candidates: dict[str, Callable[[], object]] = {
            "sparse": partial(kernel_features, ours, bank, out=out)
        }
        if kept == 1.0:
            candidates["aeon"] = partial(theirs.transform, other)
        # On one thread only: numba's threads spin for a while after each call of aeon's.
        loop = peaks.loop("float32") if bank.kind == "rocket" and count == 1 else None
        if loop:
            candidates["peak"] = loop.call
        # numba's threads are OpenMP's: its calls change how many torch uses.
        times = timing.interleave(
            candidates, rounds=rounds, least_seconds=TURN, context=lambda _: threads(count)
        )
    flops = 2 * operations(bank)
    times["sparse"] = times["sparse"] / batch
    if "aeon" in times:
        times["aeon"] = times["aeon"] / len(other)
    share = None
    if loop:
        share = float(np.median(flops / times["sparse"] / (loop.flops / times.pop("peak"))))
    return {
        "kind": bank.kind,
        "in_channels": bank.series_channels,
        "length": bank.series_length,
        "batch": batch,
        "kept": kept,
        "threads": count,
        "isa": isa,
        "operations": flops // 2,
        **times_and_ratios(times),
        "share_of_peak": share,
    }
