"""Compute the plans that the GPU kernels read instead of a pattern, once per pair of index tensors.

The sizes of plans depend only on the pattern's shape and ``nnz``, so changing the pattern at
constant ``nnz`` changes no launch grid and no address. After a write to the index tensors, their
plans are recomputed in the same memory, which CUDA graphs continue to read. Both GPU backends read
the same rows, and add the entries of a row in the same order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from sparseconv.core.blocks import unit_shape
from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR

P = TypeVar("P", bound="tuple[Tensor, ...]")
Shape = tuple[int, int, int]
RUN = 16  # entries that a program of Triton's wgrad computes
COLUMNS = 128  # input channels times units that a program of the block wgrad computes
REACH = 40  # samples in a window of the CUDA kernels (csrc/cuda/problem.h)


class Correlation(NamedTuple):
    """Hold the rows of a correlation, heaviest first, and their entries (see ``kernels.py``)."""

    rows: Tensor  # int32 (rows, 3): row, first entry, past the last
    entries: Tensor  # int64 (nnz,): channel in the upper half, offset in the lower


class Transposed(NamedTuple):
    """Hold dgrad's correlation, with one row per input channel and stride phase."""

    rows: Tensor
    entries: Tensor
    source: Tensor  # int32 (nnz,): the index of each entry's weight in `values`


class Masks(NamedTuple):
    """Hold a correlation in the format that the CUDA kernels read."""

    # int64 (rows, 1 + channels), heaviest first: the row, with its first entry in the upper half;
    # then a mask for the kernel of each channel, whose bit k is set if offset k has a weight.
    rows: Tensor
    slots: Tensor  # int32 (nnz,): (row * channels + channel) * REACH + offset


def power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def run_length(shape: Shape) -> int:
    """Return the number of entries per program of wgrad, at most ``RUN``."""
    return min(RUN, power_of_two(shape[1] * shape[2]))


def run_count(shape: Shape, nnz: int, length: int) -> int:
    """Return an upper bound on the number of wgrad's runs for this ``nnz``."""
    return nnz // length + min(shape[0], nnz)


Make = Callable[[Tensor, Tensor, Geometry], P]


# Plans are computed on the device of the tensors; the CPU took three times as long as an H100.
class _Held:
    """Hold the plans of a pattern's two index tensors, with their versions when they were made."""

    def __init__(self, crow: Tensor) -> None:
        self.crow = TensorWeakRef(crow)
        self.versions = self.checked = -1, -1  # `checked`: when the tensors were a pattern
        self.plans: dict[Hashable, tuple[Make[Any], Geometry, tuple[Tensor, ...]]] = {}


_held: Any = WeakTensorKeyDictionary()  # by col_indices


def _of(crow: Tensor, col: Tensor) -> _Held:
    held: _Held | None = _held.get(col)
    if held is None or held.crow() is not crow:
        held = _held[col] = _Held(crow)
    return held


def _kept(make: Make[P]) -> Make[P]:
    """Cache the plans from ``make``, keyed by the two tensors and the geometry except padding."""

    @functools.wraps(make)
    def plan(crow: Tensor, col: Tensor, g: Geometry) -> P:
        if crow.is_inference() or col.is_inference():  # no version shows a change of them
            return make(crow, col, g)
        held, versions = _of(crow, col), (crow._version, col._version)
        if held.checked != versions:
            _check_not_capturing(col)
            KernelCSR(crow, col, g.shape, g.block)
            held.checked = versions
        if held.versions != versions:
            refresh(crow, col)
        key = make, g.shape, g.stride, g.dilation, g.groups, g.block
        if key not in held.plans:
            held.plans[key] = make, g, _elsewhere(make, crow, col, g)
        return cast(P, held.plans[key][2])

    return plan


def trust(crow: Tensor, col: Tensor, same: bool = False) -> None:
    """Record that index tensors contain a pattern; if it is the ``same`` one, keep the plans."""
    if crow.is_inference() or col.is_inference():
        return
    held = _of(crow, col)
    held.checked = crow._version, col._version
    if same:
        held.versions = held.checked


def refresh(crow: Tensor, col: Tensor) -> None:
    """Recompute the plans of index tensors that were written to, in the same memory."""
    held = _held.get(col)
    if held is None:
        return
    for make, geometry, plan in held.plans.values():
        for own, new in zip(plan, make(crow, col, geometry), strict=True):
            own.copy_(new)
    held.versions = crow._version, col._version


def _elsewhere(make: Make[P], crow: Tensor, col: Tensor, g: Geometry) -> P:
    """Compute a plan that outlives the call, outside the memory of a CUDA graph."""
    if col.device.type != "cuda":
        return make(crow, col, g)
    _check_not_capturing(col)
    # torch.compile's graphs allocate from their own pool on the thread and the stream of the call,
    # and overwrite earlier allocations.
    current = torch.cuda.current_stream(col.device)

    def compute() -> P:
        with torch.cuda.device(col.device), torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_stream(current)
            plan = make(crow, col, g)
            torch.cuda.current_stream().synchronize()  # from here on, any stream may read it
        return plan

    return _thread.submit(compute).result()


def _check_not_capturing(col: Tensor) -> None:
    if col.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "expected a call with this pattern before a CUDA graph is captured; call the function "
            "once before the capture"
        )


_thread = ThreadPoolExecutor(1, "sparseconv-plans")  # started at the first plan on a GPU


def _fprop(crow: Tensor, col: Tensor, g: Geometry) -> Correlation:
    _, channel, tap = _weights(crow, col, g)
    return Correlation(_heaviest_first(crow[:: g.shape[1]]), _packed(channel, tap * g.dilation))


def _dgrad(crow: Tensor, col: Tensor, g: Geometry) -> Transposed:
    out_channel, channel, tap = _weights(crow, col, g)
    offset = tap * g.dilation
    row = channel * g.stride + offset % g.stride
    order = row.argsort(stable=True)
    rows = torch.arange(g.shape[1] * g.groups * g.stride + 1, device=row.device)
    bounds = torch.searchsorted(row[order], rows)
    entries = _packed(out_channel, -(offset // g.stride))[order]
    return Transposed(_heaviest_first(bounds), entries, order.int())


triton_fprop, triton_dgrad = _kept(_fprop), _kept(_dgrad)


@_kept
def triton_wgrad(crow: Tensor, col: Tensor, g: Geometry) -> tuple[Tensor]:
    return (_runs(crow, col, g.shape, run_length(g.shape)),)


def _runs(crow: Tensor, col: Tensor, shape: Shape, length: int) -> Tensor:
    """Return ``(runs, 3)``: the channel, first entry and end of each program of wgrad."""
    bounds = crow[:: shape[1]].to(torch.int64)
    runs = ((bounds.diff() + length - 1) // length).cumsum(0)
    # These are enough for any pattern with this nnz; the rest are empty.
    run = torch.arange(run_count(shape, col.shape[0], length), device=col.device)
    channel = torch.searchsorted(runs, run, right=True).clamp(max=shape[0] - 1)
    before = torch.where(channel > 0, runs[channel - 1], 0)
    begin = bounds[channel] + (run - before) * length
    end = torch.minimum(begin + length, bounds[channel + 1])
    return torch.stack((channel, begin, end), 1).int()


class Tile(NamedTuple):
    """Hold the numbers of channels that one product on tensor cores covers."""

    outputs: int
    inputs: int

    @property
    def run_length(self) -> int:
        """Return the number of units per program of wgrad."""
        return COLUMNS // power_of_two(self.inputs)


def tile_of(g: Geometry) -> Tile | None:
    """Return the tile that divides a block, or None for single weights.

    Single weights are used if the sides of a block are not multiples of 16, or if a block crosses a
    group boundary.
    """
    block = g.block
    cut = (g.shape[0] // g.groups) % block[0] or g.shape[1] % block[1]
    if block[0] % 16 or block[1] % 16 or (g.groups > 1 and cut):
        return None
    return Tile(*(max(part for part in (16, 32, 48, 64) if size % part == 0) for size in block))


def unit_count(shape: Shape, tile: Tile, nnz: int) -> int:
    """Return an upper bound on the units for this ``nnz``, as if all blocks were the smallest."""
    last = (size % part or part for size, part in zip(shape[:2], tile, strict=True))
    return min(math.prod(unit_shape(shape, tile)), nnz // math.prod(last))


def _units(crow: Tensor, col: Tensor, g: Geometry) -> tuple[Tensor, Tensor, Geometry, Tensor]:
    """Return a pattern whose channels are blocks and whose weights are units, and their places."""
    # A place has the unit's first kernel in the upper half, and the rank of its weight in each
    # kernel in the lower. If small last blocks leave a rest, idle units without a channel follow.
    tile = cast(Tile, tile_of(g))
    shape = unit_shape(g.shape, tile)
    kernels = torch.arange(g.shape[0] * g.shape[1], device=col.device).view(g.shape[:2])
    if len(crow) != kernels.numel() + 1:  # the kernels read all of it
        raise ValueError(f"expected {kernels.numel() + 1} crow_indices, but got {len(crow)}")
    leaders = kernels[:: tile.outputs, :: tile.inputs].flatten()
    begin = crow[leaders].long()
    first = torch.nn.functional.pad((crow[leaders + 1] - begin).cumsum(0), (1, 0))
    unit = torch.arange(unit_count(g.shape, tile, col.shape[0]), device=col.device)
    block = (torch.searchsorted(first, unit, right=True) - 1).clamp(0, len(leaders) - 1)
    rank = unit - first[block]
    taps = col[(begin[block] + rank).clamp(0, col.shape[0] - 1)]
    return (
        first,
        taps,
        g._replace(out_channels=shape[0], group_channels=shape[1]),
        _packed(leaders[block], rank),
    )


@_kept
def block_places(crow: Tensor, col: Tensor, g: Geometry) -> tuple[Tensor]:
    return (_units(crow, col, g)[3],)


@_kept
def block_fprop(crow: Tensor, col: Tensor, g: Geometry) -> Correlation:
    return _fprop(*_units(crow, col, g)[:3])


@_kept
def block_dgrad(crow: Tensor, col: Tensor, g: Geometry) -> Transposed:
    return _dgrad(*_units(crow, col, g)[:3])


@_kept
def block_wgrad(crow: Tensor, col: Tensor, g: Geometry) -> tuple[Tensor]:
    first, taps, of_units, _ = _units(crow, col, g)
    length = cast(Tile, tile_of(g)).run_length
    return (_runs(first, taps, of_units.shape, length),)


def cuda_computes(geometry: Geometry) -> bool:
    """Return whether the CUDA kernels support this geometry, in float32 or half precision."""
    return (
        geometry.stride == geometry.groups == 1
        and (geometry.kernel_size - 1) * geometry.dilation < REACH
        and geometry.out_channels * geometry.group_channels * REACH < 2**31
    )


def cuda_pays(dtype: torch.dtype, nnz: int, geometry: Geometry) -> bool:
    """Return whether "auto" chooses the CUDA kernels instead of Triton's."""
    # The CUDA kernels share each sample among the active weights of a kernel, so more weights per
    # kernel suit them. On an H100, fprop, dgrad and wgrad together took 0.63 to 0.99 of Triton's
    # time with one weight per kernel, and 1.02 to 1.51 with half a weight.
    # (benchmarks/results/gpu.json, part "density": three shapes, 64 to 2048 samples.) Batch and
    # length do not decide, or bits would depend on them.
    return (
        dtype == torch.float32
        and cuda_computes(geometry)
        and nnz >= geometry.shape[0] * geometry.shape[1]
    )


@_kept
def cuda_fprop(crow: Tensor, col: Tensor, g: Geometry) -> Masks:
    """Return the plan for fprop and wgrad."""
    _check_cuda(g)
    out_channel, channel, tap = _weights(crow, col, g)
    rows = _heaviest_first(crow[:: g.shape[1]])
    return _masks(rows, out_channel, channel, tap * g.dilation, g.shape[1])


@_kept
def cuda_dgrad(crow: Tensor, col: Tensor, g: Geometry) -> Masks:
    """Return the plan for dgrad, whose rows are input channels; errors are as in ``cuda_fprop``."""
    _check_cuda(g)
    out_channel, channel, tap = _weights(crow, col, g)
    # bincount would wait for the GPU.
    counts = channel.new_zeros(g.shape[1]).scatter_add_(0, channel, torch.ones_like(channel))
    swizzled = _heaviest_first(torch.nn.functional.pad(counts.cumsum(0), (1, 0)))
    return _masks(swizzled, channel, out_channel, tap * g.dilation, g.shape[0])


def _check_cuda(geometry: Geometry) -> None:
    if not cuda_computes(geometry):
        raise NotImplementedError(
            "the CUDA kernels support only stride 1, one group, dilation * (kernel_size - 1) < "
            f"{REACH} and fewer than 2**31 / {REACH} kernels, but got {geometry}; use "
            "backend='auto' or 'triton'"
        )


def _weights(crow: Tensor, col: Tensor, g: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output channel, input channel and tap of every active weight, in CSR order."""
    out_channels, group_channels, _ = g.shape
    weight = torch.arange(col.shape[0], device=crow.device)
    # Idle units get the channel after the last, so that no row has them.
    kernel = torch.searchsorted(crow.long(), weight, right=True) - 1
    out_channel = kernel // group_channels
    group = out_channel // (out_channels // g.groups)
    return out_channel, group * group_channels + kernel % group_channels, col.to(torch.int64)


def _heaviest_first(bounds: Tensor) -> Tensor:
    """Return ``(rows, 3)``: row, first entry and end; ``bounds`` are the first entries."""
    order = bounds.diff().argsort(descending=True, stable=True)  # Sputnik's row swizzle
    return torch.stack((order, bounds[order], bounds[order + 1]), 1).to(torch.int32)


def _packed(channel: Tensor, offset: Tensor) -> Tensor:
    """Pack two numbers into one int64, because loads limit the speed of Triton's kernels."""
    return channel << 32 | offset & 0xFFFFFFFF


def _masks(rows: Tensor, row: Tensor, channel: Tensor, offset: Tensor, channels: int) -> Masks:
    """Make masks from swizzled rows, and from the row, channel and offset of every weight."""
    kernel = row * channels + channel
    masks = torch.zeros(len(rows) * channels, dtype=torch.int64, device=row.device)
    masks.scatter_add_(0, kernel, torch.ones_like(offset) << offset)
    number, begin, _ = rows.long().unbind(1)
    records = (number | begin << 32)[:, None], masks.view(-1, channels)[number]
    return Masks(torch.cat(records, 1), (kernel * REACH + offset).int())
