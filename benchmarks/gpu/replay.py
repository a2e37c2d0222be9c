"""One multiprocessor, clock by clock.

Modelled: stall counts and scoreboards as the compiler wrote them, four schedulers that issue one
instruction a clock each, in order within a warp; integer and multiply lanes that take one every two
clocks; 8 clocks for a jump; one load-store unit, with bank conflicts and 32-byte sectors; 40 clocks
for L1, 270 and half a clock a sector for L2, 30 for shared memory; blocks that wait for one
another; registers and shared memory that limit how many share a multiprocessor. Not modelled:
instruction caches, register banks, contention for L2 between multiprocessors, HBM, launches (2-4
us), what torch runs beside the kernels: all that only adds. Tensor cores and TMA are refused.
Uncertain by about 30 %: nothing of it was ever compared with a GPU.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.gpu.sass import Instruction
from benchmarks.gpu.warp import ARITHMETIC, Warp

L1, L2, SHARED, OTHER, JUMP, BARRIER = 40, 270, 30, 20, 8, 20  # clocks
# 16 lanes of a scheduler: half a warp (CUDA C++ Programming Guide, arithmetic instructions).
HALF_RATE = {*ARITHMETIC, "ISETP", "PLOP3", "FSETP", "FSEL"} - {"LDC", "MUFU", "I2F", "F2I"}


class Replay(NamedTuple):
    clocks: float
    issued: Counter[str]  # instructions by name
    waits: Counter[str]  # clocks of warps by what they waited for


class _Timed:
    """A warp in time."""

    def __init__(self, warp: Warp, block: list[_Timed], scheduler: int) -> None:
        self.warp, self.block, self.scheduler = warp, block, scheduler
        self.barriers: list[tuple[float, str]] = [(0, "")] * 8
        self.copied, self.groups = 0.0, list[float]()  # of cp.async
        self.arrived: float | None = None  # at a barrier of the block


def replay(code: Sequence[Instruction], blocks: Iterable[Sequence[Warp]], slots: int,
           cache_bytes: int = 1 << 18) -> Replay:  # fmt: skip
    """Let one multiprocessor run blocks, so many at a time."""
    issued, waits = Counter[str](), Counter[str]()
    queue, coming, order = list[tuple[float, int, _Timed]](), iter(blocks), iter(range(1 << 62))
    free, unit, port, last = [0.0] * 4, 0.0, 0.0, 0.0
    cached, resident, busy = OrderedDict[int, None](), [0] * 4, Counter[tuple[int, str]]()

    def start(at: float) -> None:
        block: list[_Timed] = []
        for warp in next(coming, ()):
            scheduler = min(range(4), key=lambda i: resident[i])
            resident[scheduler] += 1
            block.append(_Timed(warp, block, scheduler))
            heapq.heappush(queue, (at, next(order), block[-1]))

    def load(sectors: Iterable[int]) -> int:
        """How many sectors are not in L1, where they are from now on."""
        missed = 0
        for sector in sectors:
            missed += sector not in cached
            cached[sector] = None
            cached.move_to_end(sector)
        while len(cached) * 32 > cache_bytes:
            cached.popitem(last=False)
        return missed

    for _ in range(slots):
        start(0)
    while queue:
        ready, _, timed = heapq.heappop(queue)
        warp, at = timed.warp, timed.warp.pc
        instruction = code[at]
        name, control = instruction.name, instruction.control
        lanes = timed.scheduler, "IMAD" if name == "IMAD" else "integer"
        if name in HALF_RATE and busy[lanes] > ready:
            waits["its turn"] += busy[lanes] - ready
            heapq.heappush(queue, (busy[lanes], next(order), timed))
            continue
        clock = max(ready, free[timed.scheduler])
        waits["its turn"] += clock - ready + 1
        free[timed.scheduler], last = clock + 1, max(last, clock)
        if name in HALF_RATE:
            busy[lanes] = clock + 2
        access = warp.step()
        issued[name] += 1
        done, why = clock + OTHER, "other units"
        if access is not None:
            begin = max(clock, unit)
            unit, why = begin + access.turns, "shared memory"
            done = unit - 1 + SHARED
            if access.sectors:
                missed = len(access.sectors) if name == "STG" else load(access.sectors)
                port = max(port, begin) + missed / 2
                done, why = max(unit - 1, port) + (L2 if missed else L1), "global memory"
            if control.read < 6:
                timed.barriers[control.read] = (begin + OTHER, why)
        elif control.read < 6:
            timed.barriers[control.read] = (done, why)
        if control.write < 6 and name != "LDGDEPBAR":
            timed.barriers[control.write] = max(timed.barriers[control.write], (done, why))
        then = clock + max(1, control.stall)
        waits["fixed latency"] += then - clock - 1
        if warp.pc not in (at + 1, -1):
            waits["jumps"] += JUMP
            then += JUMP
        if name == "LDGSTS":
            timed.copied = max(timed.copied, done)
        elif name == "LDGDEPBAR":
            timed.groups.append(timed.copied)
        elif name == "DEPBAR" and len(timed.groups) > (left := int(instruction.operands[-1], 16)):
            until = max(then, timed.groups[-1 - left])
            waits["global memory"] += until - then
            then = until
        if warp.pc == -1:
            timed.block.remove(timed)
            resident[timed.scheduler] -= 1
            if not timed.block:
                start(then)
        elif name == "BAR":
            timed.arrived = then
        else:
            heapq.heappush(queue, (_held(timed, then, code, waits), next(order), timed))
        if timed.block and all(other.arrived is not None for other in timed.block):
            for other in timed.block:
                waits["barrier"] += then + BARRIER - (other.arrived or 0)
                other.arrived = None
                held = _held(other, then + BARRIER, code, waits)
                heapq.heappush(queue, (held, next(order), other))
    if any(resident):
        raise RuntimeError("warps wait at a barrier for others that never come")
    return Replay(last, issued, waits)


def _held(timed: _Timed, then: float, code: Sequence[Instruction], waits: Counter[str]) -> float:
    """When a warp's next instruction has what it waits for."""
    mask = code[timed.warp.pc].control.wait
    until, why = max(((0.0, ""), *(timed.barriers[i] for i in range(6) if mask >> i & 1)))
    if until > then:
        waits[why] += until - then
    return max(until, then)
