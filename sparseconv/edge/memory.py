"""Where in the arena each tensor lies: two that are needed at one time do not share memory."""

from __future__ import annotations

from typing import NamedTuple

from sparseconv.edge.layers import Network, Pointwise


class Room(NamedTuple):
    """Memory that is needed from one step to another, both included."""

    size: int
    begin: int
    end: int


def placed(network: Network) -> tuple[dict[int, int], int]:
    """Return where each tensor begins, by its number, and how many samples all take.

    The last step's output lies elsewhere, and is not counted. A tensor begins after the samples
    that are put before it as padding. What is computed sample by sample overwrites an input that
    nothing reads any more.
    """
    steps, shapes = network.steps, network.shapes
    begin, end = {0: -1}, {0: -1}
    around: dict[int, tuple[int, int]] = {}
    root = {0: 0}  # of those that share their memory
    for at, step in enumerate(steps):
        left, right = getattr(step, "padding", (0, 0))
        for number in step.inputs:
            end[number] = at
            known = around.get(number, (0, 0))
            around[number] = max(known[0], left), max(known[1], right)
    for at, step in enumerate(steps[:-1]):
        if step.output in root:
            continue
        begin[step.output], root[step.output] = at, step.output
        alone = sum(other.output == step.output for other in steps) == 1
        for number in step.inputs if alone and isinstance(step, Pointwise) else ():
            if end[number] == at and shapes[number] == shapes[step.output]:
                root[step.output] = root[number]
    rooms: dict[int, Room] = {}
    before: dict[int, int] = {}
    for head in dict.fromkeys(root.values()):
        members = [number for number in root if root[number] == head]
        length, channels = shapes[head]
        left, right = (max(around.get(n, (0, 0))[side] for n in members) for side in (0, 1))
        before[head] = left * channels
        size = (left + length + right) * channels
        rooms[head] = Room(size, begin[head], max(end[number] for number in members))
    limit = max(
        sum(room.size for room in rooms.values() if room.begin <= at <= room.end)
        for at in range(-1, len(steps))
    )  # what must be there at one time, and often is enough
    by_size = dict(sorted(rooms.items(), key=lambda item: -item[1].size))
    while (found := _fit(rooms, limit, 2) or _fit(by_size, limit, 1)) is None:
        limit += 1 + limit // 100
    return {number: found[head] + before[head] for number, head in root.items()}, limit


def _fit(rooms: dict[int, Room], limit: int, ends: int) -> dict[int, int] | None:
    """Place one after the other as low as possible, of 2 ends every second high; None: no room."""
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
