"""The machine's own limits, measured: multiply-adds from registers, L1 and L2, and the stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sparseconv.measure.machine import threads
from sparseconv.ops import backends

BLOCK = 1536  # bytes; csrc/cpu/peaks.h, kPeakBlock
REPEATS = 20
_RUN = 2e-3  # seconds of one run: short, so that some run undisturbed; starting threads takes 0.5 %
# Where the system does not tell: sizes that every x86-64 server of the last ten years has.
_L1, _L2, _L3 = 32 << 10, 256 << 10, 32 << 20


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
    variable = "SPARSECONV_CPU_ISA"
    before = os.environ.get(variable)
    if isa is not None:
        os.environ[variable] = isa
    try:
        assert backends.extension is not None
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
    """Measure the peaks of every instruction set, type and number of threads.

    A peak is the fastest of several runs: what disturbs a run only slows it down. The multiply-add
    is the kernels' own, which the portable baseline imitates without the instruction.

    Args:
        thread_counts: numbers of torch's threads, each working in memory of its own.
        isas: instruction sets; all that this CPU can run by default.
        dtypes: ``"float32"`` and ``"float64"``.

    Returns:
        One dict each, with ``fma_gflops`` (operands in registers), ``l1_gflops`` and
        ``l2_gflops`` (one aligned vector loaded per multiply-add) in GFLOP/s of all threads
        together, and ``stream_gbs``, GB/s read and written by ``a = b + s * c`` beyond the last
        cache.

    Raises:
        RuntimeError: the C++ extension is not built.

    Example:
        >>> list(measure([1], ["baseline"], ["float32"])[0])
        ['threads', 'isa', 'dtype', 'fma_gflops', 'l1_gflops', 'l2_gflops', 'stream_gbs']
    """
    if backends.extension is None:
        raise RuntimeError("the peaks are measured by the C++ extension, which is not built")
    rows = []
    for count in thread_counts:
        with threads(count):
            for isa in isas or backends.extension.isas():
                with forced_isa(isa):
                    rows += [_peak(count, isa, dtype) for dtype in dtypes]
    return rows


def find(
    peaks: Sequence[Mapping[str, Any]], threads: int, isa: str, dtype: str
) -> Mapping[str, Any] | None:
    """The peak measured under these conditions, if it was."""
    for peak in peaks:
        if (peak["threads"], peak["isa"], peak["dtype"]) == (threads, isa, dtype):
            return peak
    return None


class Loop(NamedTuple):
    """Multiply-adds from registers, to be timed in turns with a kernel."""

    call: Callable[[], object]
    flops: float  # of all threads, per call


def loop(peak: Mapping[str, Any]) -> Loop:
    """The loop behind ``peak["fma_gflops"]``; each call takes some milliseconds.

    The clock of a shared machine follows its other tenants: what a kernel could reach is what this
    reaches beside it, not what it reached minutes ago.
    """
    wide = peak["dtype"] == "float64"
    size = _whole_blocks(_cache(1, _L1) // 2)
    flops = size * _flops_per_byte(wide)
    passes = max(1, round(_RUN * 1e9 * peak["fma_gflops"] / peak["threads"] / flops))
    assert backends.extension is not None
    call = partial(backends.extension.run_peak, "registers", wide, size, passes, 1)
    return Loop(call, flops * passes * peak["threads"])


def _peak(count: int, isa: str, dtype: str) -> dict[str, Any]:
    wide = dtype == "float64"
    flops = _flops_per_byte(wide)
    l1, l2, l3 = (_cache(i, size) for i, size in ((1, _L1), (2, _L2), (3, _L3)))
    # Half of a cache lies in it for sure; four times the last one, shared out, does not.
    beyond = max(4 * l3 // count, 2 * l2)
    return {
        "threads": count,
        "isa": isa,
        "dtype": dtype,
        "fma_gflops": 1e-9 * flops * _rate("registers", wide, l1 // 2) * count,
        "l1_gflops": 1e-9 * flops * _rate("loads", wide, l1 // 2) * count,
        "l2_gflops": 1e-9 * flops * _rate("loads", wide, l2 // 2) * count,
        "stream_gbs": 1e-9 * _rate("triad", wide, beyond) * count,
    }


def _flops_per_byte(wide: bool) -> float:
    return 2 / (8 if wide else 4)


def _whole_blocks(size: int) -> int:
    return max(size // BLOCK, 1) * BLOCK


def _rate(what: str, wide: bool, size: int) -> float:
    """Bytes per second of one thread."""
    run = backends.extension.run_peak  # type: ignore[union-attr]
    size = _whole_blocks(size)
    once = min(run(what, wide, size, 1, 3))
    passes = max(1, round(_RUN / max(once, 1e-9)))
    best = min(run(what, wide, size, passes, REPEATS))
    return float(size * passes / best)


def _cache(level: int, otherwise: int) -> int:
    """Bytes of the data cache of this level that a core sees, as Linux tells."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            there, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if int(there) == level and kind != "Instruction" and size.endswith("K"):
            return int(size[:-1]) << 10
    return otherwise
