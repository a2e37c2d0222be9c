"""Say what the kernels' own orders, lanes and rows (``ops.lanes``), can hold."""

from __future__ import annotations

import functools

import torch

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.ops.backends import extension

UNSHARED = "kernels of 16 x 16 channels have different taps; use block_mask and block=16"
UNFIT = "groups cut blocks of 16 channels, or there are too many channels and taps for the caches"


def runs_eagerly() -> bool:
    """Return whether torch runs without a tracer, mode, transform or forward-mode derivative."""
    casts = torch.is_autocast_enabled("cpu")  # rows can follow it to bfloat16 only
    if torch.compiler.is_compiling() or extension is None:
        return False
    return bool(extension.runs_plainly(casts)) and (not casts or _casts_to_bfloat16())


def _casts_to_bfloat16() -> bool:
    assert extension is not None
    dtype = torch.get_autocast_dtype("cpu")
    return dtype == torch.bfloat16 and bool(extension.has_block_kernels())


def fits_rows(pattern: KernelCSR, geometry: Geometry) -> bool:
    """Return whether block kernels can compute the pattern, or the taps of its one channel."""
    assert extension is not None
    return bool(extension.fits_rows(pattern.crow_indices, pattern.col_indices, geometry))


@functools.cache
def pointwise_fits_rows(rows: int, columns: int) -> bool:
    """Return whether block kernels can compute a dense convolution with one tap."""
    shape = rows, columns, 1
    return fits_rows(KernelCSR.full(shape), Geometry.of(shape, 1, 0, 1, 1, "zeros"))


def rounds_float32() -> bool:
    """Return whether torch lets its own CPU convolutions round float32 to bfloat16."""
    unit = torch.backends.mkldnn
    return bool(unit.enabled and unit.conv.fp32_precision == "bf16")  # type: ignore[attr-defined]


def kernels_for(pattern: KernelCSR, geometry: Geometry, dtype: torch.dtype) -> tuple[str, str]:
    """Return a layer's kernels, ``"blocks"`` or ``"single weights"``, and why blocks cannot run.

    Both are empty without the C++ kernels, and for a pattern of single weights if no blocks could
    run anyway.
    """
    if extension is None:
        return "", ""
    why = ""
    if not extension.has_block_kernels():
        why = "this CPU has neither AMX nor AVX-512 BF16"
    elif dtype != torch.bfloat16 and (dtype != torch.float32 or not rounds_float32()):
        why = "blocks are computed only in bfloat16, or under torch.autocast to it"
    elif min(geometry.shape[0] // geometry.groups, geometry.shape[1]) < 16:
        why = "a group has fewer than 16 channels"
    if why:
        return ("single weights", why) if pattern.block != (1, 1) else ("", "")
    if fits_rows(pattern, geometry):
        return "blocks", ""
    empty = KernelCSR.from_positions(torch.zeros(0, dtype=torch.int64), geometry.shape)
    return "single weights", UNSHARED if fits_rows(empty, geometry) else UNFIT
