"""The machine's own limit, measured: multiply-adds of operands in registers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from sparseconv.measure.machine import threads
from sparseconv.ops import backends

REPEATS = 20
_RUN = 2e-3  # seconds of one run: short, so that some run undisturbed; starting threads takes 0.5 %


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
    if isa in (None, backends.extension.isa()):  # nothing to change for other threads to see
        yield str(backends.extension.isa())
        return
    variable = "SPARSECONV_CPU_ISA"
    before = os.environ.get(variable)
    os.environ[variable] = str(isa)
    try:
        yield str(backends.extension.isa())
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


def measure(
    thread_counts: Sequence[int],
    isas: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
) -> list[dict[str, Any]]:
    """Measure the peak of every instruction set, type and number of threads.

    A peak is the fastest of several runs: what disturbs a run only slows it down. The multiply-add
    is the kernels' own, which the portable baseline imitates without the instruction.

    Args:
        thread_counts: numbers of torch's threads.
        isas: instruction sets; all that this CPU can run by default.
        dtypes: ``"float32"`` and ``"float64"``.

    Returns:
        One dict each, with ``fma_gflops`` in GFLOP/s of all threads together.

    Raises:
        RuntimeError: the C++ extension is not built.

    Example:
        >>> list(measure([1], ["baseline"], ["float32"])[0])
        ['threads', 'isa', 'dtype', 'fma_gflops']
    """
    if backends.extension is None:
        raise RuntimeError("the peaks are measured by the C++ extension, which is not built")
    rows = []
    for count in thread_counts:
        with threads(count):
            for isa in isas or backends.extension.isas():
                with forced_isa(isa):
                    for dtype in dtypes:
                        row: dict[str, Any] = {"threads": count, "isa": isa, "dtype": dtype}
                        rows.append(row | {"fma_gflops": _gflops(dtype) * count})
    return rows


def find(
    peaks: Sequence[Mapping[str, Any]], threads: int, isa: str, dtype: str
) -> Mapping[str, Any] | None:
    """Return the peak measured under these conditions, or None."""
    for peak in peaks:
        if (peak["threads"], peak["isa"], peak["dtype"]) == (threads, isa, dtype):
            return peak
    return None


class Loop(NamedTuple):
    """Multiply-adds from registers, to be timed in turns with a kernel."""

    call: Callable[[], object]
    flops: float  # of all threads, per call


def loop(peak: Mapping[str, Any]) -> Loop:
    """Make the loop that ``peak["fma_gflops"]`` is measured by; each call lasts some milliseconds.

    The clock of a shared machine follows its other tenants: a kernel is compared with this loop in
    turns, not with what the loop reached minutes ago.
    """
    flops = _flops()
    passes = max(1, round(_RUN * 1e9 * peak["fma_gflops"] / peak["threads"] / flops))
    run = partial(_seconds, peak["dtype"], passes, 1)
    return Loop(run, flops * passes * peak["threads"])


def _gflops(dtype: str) -> float:
    """Measure the peak of one thread in GFLOP/s."""
    tried = 10_000
    passes = max(1, round(tried * _RUN / _seconds(dtype, tried, 3)))
    return 1e-9 * _flops() * passes / _seconds(dtype, passes, REPEATS)


def _seconds(dtype: str, passes: int, repeats: int) -> float:
    assert backends.extension is not None
    return float(min(backends.extension.run_peak(dtype == "float64", passes, repeats)))


def _flops() -> int:
    """Return the operations of one pass of the loop."""
    assert backends.extension is not None
    return 2 * int(backends.extension.peak_pass)
