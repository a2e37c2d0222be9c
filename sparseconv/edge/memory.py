"""Place tensors in the arena: tensors that are needed at the same time share no memory."""

from __future__ import annotations

from typing import NamedTuple

from sparseconv.edge.layers import Layer, Network, Pointwise


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
