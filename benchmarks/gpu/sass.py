"""NVIDIA's machine code, decoded from cuobjdump's text with the bits that steer the scheduler.

Control bits: Jia et al. 2018, Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking,
https://arxiv.org/abs/1804.06826.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

LINE = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+) )?\s*([A-Z][\w.]*)\s*(.*?) ;\s+/\* 0x(\w{16}) \*/\s+"
    r"/\* 0x(\w{16}) \*/"
)


class Control(NamedTuple):
    """What the compiler tells the scheduler. Barrier 7 is none; `wait` has a bit for each."""

    stall: int
    yields: int
    write: int
    read: int
    wait: int
    reuse: int

    @classmethod
    def of(cls, high: int) -> Control:
        """From the upper half of the 128 bits, whose lowest 41 bits are the instruction's."""
        fields = (41, 15), (45, 1), (46, 7), (49, 7), (52, 63), (58, 15)
        return cls(*(high >> shift & mask for shift, mask in fields))


@dataclass(frozen=True, eq=False)  # each is itself only, which is quickly found in a cache
class Instruction:
    guard: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    low: int
    control: Control


def decode(text: str) -> list[Instruction]:
    """The instructions of one function as ``cuobjdump -sass`` prints them; each has 16 bytes."""
    found = []
    for guard, opcode, operands, low, high in LINE.findall(text):
        name, *modifiers = opcode.split(".")
        parts = re.split(r",\s*", operands) if operands else ()
        control = Control.of(int(high, 16))
        found.append(Instruction(guard, name, (*modifiers,), (*parts,), int(low, 16), control))
    return found
