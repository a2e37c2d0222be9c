"""The machine's own limit, measured: multiply-adds of operands in registers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from sparseconv.measure.machine import threads
from sparseconv.ops import backends

DTYPES = ("float32", "float64")
REPEATS = 20
_RUN = 2e-3  # seconds of one run: short, so that some run undisturbed; starting threads takes 0.5 %
_VARIABLE = "SPARSECONV_CPU_ISA"


@contextmanager
def forced_isa(isa: str | None) -> Iterator[str]:
    """Let the C++ kernels use ``isa`` inside the block; None leaves their choice.

    Raises:
        ValueError: this CPU cannot run it; the message names what it can.

    Example:
        >>> with forced_isa("baseline") as isa:
        ...     print(isa)
        baseline
    """
    assert backends.extension is not None
    before = os.environ.get(_VARIABLE)
    if isa is not None:
        os.environ[_VARIABLE] = isa
    try:
        yield str(backends.extension.isa())
    finally:
        os.environ.pop(_VARIABLE, None)
        if before is not None:
            os.environ[_VARIABLE] = before


def measure(
    thread_counts: Sequence[int],
    isas: Sequence[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
) -> list[dict[str, Any]]:
    """Measure the peak of every instruction set, all by default, type and number of threads.

    A peak is the fastest of several runs: what disturbs a run only slows it down. The multiply-add
    is the kernels' own, which the portable baseline imitates without the instruction.

    Returns:
        One dict each, with ``fma_gflops`` in GFLOP/s of all threads together.
    """
    assert backends.extension is not None
    rows = []
    for count in thread_counts:
        for isa in isas or backends.extension.isas():
            for dtype in dtypes:
                with threads(count), forced_isa(isa):
                    found = loop(dtype)
                    gflops = 1e-9 * found.flops / min(found.call() for _ in range(REPEATS))
                row: dict[str, Any] = {"threads": count, "isa": isa, "dtype": dtype}
                rows.append(row | {"fma_gflops": gflops})
    return rows


class Loop(NamedTuple):
    """Multiply-adds from registers, to be interleaved with a kernel."""

    call: Callable[[], float]  # returns its seconds
    flops: float  # of all threads, per call


def loop(dtype: str) -> Loop:
    """Make such a loop for torch's threads and the instruction set in use.

    The clock of a shared machine follows its other tenants: a kernel is compared with a loop that
    runs between its own calls, not with what the loop reached minutes ago.
    """
    assert backends.extension is not None
    tried = 1_000
    passes = max(1, round(tried * _RUN / _seconds(dtype, tried, REPEATS)))
    flops = 2.0 * backends.extension.peak_pass * passes * torch.get_num_threads()
    return Loop(partial(_seconds, dtype, passes, 1), flops)


def _seconds(dtype: str, passes: int, repeats: int) -> float:
    assert backends.extension is not None
    return float(min(backends.extension.run_peak(dtype == "float64", passes, repeats)))
