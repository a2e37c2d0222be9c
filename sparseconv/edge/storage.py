"""Where a program stores its numbers: constants in flash, tensors in the arena.

Constants are the active weights and the gaps between them. The rows of a block share an index: a
gap and a length for each run of neighbours. Tensors that are needed at the same time share no
memory.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import numpy as np

from sparseconv.edge.layers import Array, Layer, Network, Pointwise, Step
from sparseconv.edge.quantize import IntegerLayer, IntegerPointwise

LONGEST_GAP = 255  # of an int8 program
SHORTEST_RUNS = 6  # on average: a run costs some six instructions, and saves one a weight


def constants(layer: Step) -> dict[str, Array]:
    """Return the constants of a step by name, row by row, in the program's types.

    Dense layers have no gaps or counts; in other layers, the types of both are not yet final.
    """
    if isinstance(layer, IntegerPointwise):
        multiplier = layer.rescale.multiplier.astype(np.int32)
        return {"multiplier": multiplier} if len(layer.inputs) > 1 else {"table": layer.table}
    if not isinstance(layer, Layer):
        return {}
    found, weights = {"bias": layer.bias.astype(np.float32)}, layer.weight.astype(np.float32)
    if isinstance(layer, IntegerLayer):
        multiplier, weights = layer.rescale.multiplier, layer.weight.astype(np.int8)
        found = {"bias": layer.bias.astype(np.int32), "multiplier": multiplier.astype(np.int32)}
    if layer.is_dense:
        return found | {"weight": weights.ravel()}
    if runs := _runs(layer):
        return found | {"weight": weights[layer.active]} | runs
    rows = []
    for row, active in zip(weights, layer.active, strict=True):
        weight, gap = row[active], np.diff(layer.offsets[active], prepend=0)
        rows.append(_bridged(weight, gap) if isinstance(layer, IntegerLayer) else (weight, gap))
    count = np.array([len(weight) for weight, _ in rows])
    if not count.any():  # C has no empty arrays
        rows.append((np.zeros(1, weights.dtype), np.zeros(1, int)))
    weight, gap = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return found | {"weight": weight, "gap": gap, "count": count}


def _runs(layer: Layer) -> dict[str, Array]:
    """Return the runs of each group of rows that share them, or none if single gaps are faster."""
    stretches = []
    for active in layer.active[:: layer.share]:
        at = layer.offsets[active]
        begin = np.flatnonzero(np.diff(at, prepend=-2) != 1)
        run = np.diff(begin, append=len(at))
        gap = np.diff(at[begin], prepend=0) - np.append(0, run)[:-1]
        stretches.append(_bridged(run, gap) if isinstance(layer, IntegerLayer) else (run, gap))
    run, gap = (np.concatenate(parts) for parts in zip(*stretches, strict=True))
    if layer.largest or not run.any() or gap.min() < 0 or run.mean() < SHORTEST_RUNS:
        return {}
    return {"gap": gap, "run": run, "count": np.array([len(run) for run, _ in stretches])}


def _bridged(weight: Array, gap: Array) -> tuple[Array, Array]:
    """Use weights of 0, which change nothing, or empty runs to bridge gaps too long for a byte."""
    bridges = np.maximum(-(-gap // LONGEST_GAP) - 1, 0)
    ends = np.arange(len(gap)) + bridges.cumsum()
    gaps = np.full(len(gap) + bridges.sum(), LONGEST_GAP)
    weights = np.zeros(len(gaps), weight.dtype)
    gaps[ends], weights[ends] = gap - LONGEST_GAP * bridges, weight
    return weights, gaps


def c_type(array: Array) -> str:
    return "float" if array.dtype == np.float32 else f"{array.dtype}_t"


def c_numbers(array: Array) -> str:
    """Format numbers as wrapped C text, float32 with enough digits to identify each number."""
    suffix = "f" if array.dtype == np.float32 else ""
    words = ", ".join(f"{number!s}{suffix}" for number in array.ravel())
    return textwrap.indent(textwrap.fill(words, 96, break_on_hyphens=False), " " * 4)


class Room(NamedTuple):
    """Memory that is needed from one step to another, inclusive."""

    size: int
    begin: int
    end: int


def placed(network: Network) -> tuple[dict[int, int], int]:
    """Return each tensor's offset, by number, and the total size in samples.

    The last step's output is stored elsewhere and is not counted. A tensor begins after its left
    padding. A pointwise step overwrites an input that nothing reads later.
    """
    steps, shapes = network.steps, network.shapes
    outputs = [step.output for step in steps]
    last_read = {number: at for at, step in enumerate(steps) for number in step.inputs}
    heads = {0: 0}  # of those that share their memory
    for at, step in enumerate(steps[:-1]):
        over = [n for n in step.inputs if last_read[n] == at and shapes[n] == shapes[step.output]]
        alone = isinstance(step, Pointwise) and outputs.count(step.output) == 1
        heads.setdefault(step.output, heads[over[-1]] if alone and over else step.output)
    rooms: dict[int, Room] = {}
    before: dict[int, int] = {}
    for head in dict.fromkeys(heads.values()):
        members = [number for number in heads if heads[number] == head]
        reading = [s for s in steps if isinstance(s, Layer) and s.inputs[0] in members]
        left, right = (max((s.padding[side] for s in reading), default=0) for side in (0, 1))
        length, channels = shapes[head]
        before[head] = left * channels
        begin = outputs.index(head) if head else -1
        end = max(last_read[number] for number in members)
        rooms[head] = Room((left + length + right) * channels, begin, end)
    limit = max(
        sum(room.size for room in rooms.values() if room.begin <= at <= room.end)
        for at in range(-1, len(steps))
    )  # what must be there at one time, and often is enough
    by_size = dict(sorted(rooms.items(), key=lambda item: -item[1].size))
    while (found := _fit(rooms, limit, 2) or _fit(by_size, limit, 1)) is None:
        limit += 1 + limit // 100
    return {number: found[head] + before[head] for number, head in heads.items()}, limit


def _fit(rooms: dict[int, Room], limit: int, ends: int) -> dict[int, int] | None:
    """Place tensors as low as possible, or at alternating ends; return None if they do not fit."""
    found: dict[int, int] = {}
    for head, (size, begin, end) in rooms.items():
        busy = sorted(
            (at, at + rooms[other].size) for other, at in found.items()
            if rooms[other].begin <= end and begin <= rooms[other].end
        )  # fmt: skip
        free, low = [], 0
        for first, after in [*busy, (limit, limit)]:
            if first - low >= size:
                free += [low, first - size]
            low = max(low, after)
        if not free:
            return None
        found[head] = max(free) if len(found) % ends else min(free)
    return found
