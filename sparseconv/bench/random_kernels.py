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
from sparseconv.rocket.features import kernel_features, normalised, operations
from sparseconv.rocket.reference import kernel_features_reference

SHAPES = ((1, 24), (1, 150), (1, 500), (1, 1500), (6, 200))  # channels and samples
BATCH = 96
CHECKED = 4  # series
# Series that aeon's ROCKET is timed with, which takes seconds for 96: its time is proportional.
AEONS_BATCH = {"rocket": 16, "minirocket": BATCH}
KEPT = (0.4, 0.1)
ROUNDING = 1e-3  # a wrong sum differs by far more; the tests have the computed bound
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
                _check(X[:CHECKED], bank, theirs)
                timed = partial(_row, X=X, theirs=theirs, count=count, rounds=rounds)
                rows += [timed(bank, batch=batch) for batch in (BATCH, 1)]
                with peaks.forced_isa("avx2") as isa:
                    if rows[0]["isa"] != isa and (channels, length) == (1, 150):
                        rows.append(timed(bank, batch=BATCH))
                columns = 2 if kind == "rocket" else 1
                groups = bank.n_features // columns
                for share in KEPT:
                    kept = np.sort(generator.permutation(groups)[: round(share * groups)])
                    features = (kept[:, None] * columns + np.arange(columns)).reshape(-1)
                    pruned = bank.select_features(features.tolist())
                    rows.append(timed(pruned, batch=BATCH, kept=share))
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


def _check(X: npt.NDArray[np.float32], bank: KernelBank, theirs: Any) -> None:
    """Compare with aeon's features: MiniROCKET's bit for bit; ROCKET's with float64's as well."""
    got, expected = kernel_features(X, bank), np.asarray(theirs.transform(X))
    if bank.kind == "minirocket":
        if not np.array_equal(got, expected):
            raise WrongResultError(f"{bank}: {int((got != expected).sum())} features are wrong")
        return
    for name, other in (("aeon", expected), ("float64", _few(X, bank))):
        mine = got[:, : other.shape[1]]
        shares, maxima = (np.abs(mine - other)[:, i::2] for i in (0, 1))
        # An output within rounding of 0 may count or not; and more than one does not happen.
        outputs = bank.series_length + 2 * bank.arrays["padding"]
        outputs = outputs - (bank.arrays["length"] - 1) * bank.arrays["dilation"]
        if not maxima.max() <= ROUNDING or (shares * outputs[: shares.shape[1]] > 1.5).any():
            raise WrongResultError(f"{bank}: features differ from {name}'s by {maxima.max():.3g}")


def _few(X: npt.NDArray[np.float32], bank: KernelBank) -> npt.NDArray[Any]:
    """The first kernels' features by loops over indices."""
    few = bank.select(range(min(200, bank.n_kernels)))
    return kernel_features_reference(normalised(X) if bank.normalise else X, few)


def _row(
    bank: KernelBank,
    *,
    X: npt.NDArray[np.float32],
    theirs: Any,
    count: int,
    rounds: int,
    batch: int,
    kept: float = 1.0,
) -> dict[str, Any]:
    with peaks.forced_isa(None) as isa:
        ours, other = X[:batch], X[: min(batch, AEONS_BATCH[bank.kind])]
        out = np.empty((batch, bank.n_features), np.float32)
        candidates: dict[str, Callable[[], object]]
        candidates = {"sparse": partial(kernel_features, ours, bank, out=out)}
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
