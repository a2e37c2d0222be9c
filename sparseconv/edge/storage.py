"""The constants of a program: weights that are active, and how far each is from the one before."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sparseconv.edge.layers import Array, Layer
from sparseconv.edge.quantize import IntegerLayer

BYTES = {"int8_t": 1, "uint8_t": 1, "uint16_t": 2, "int32_t": 4, "uint32_t": 4, "float": 4}
LONGEST_GAP = 255  # of an int8 program


@dataclass(frozen=True)
class CArray:
    """A constant as C text."""

    name: str
    type: str
    length: int
    text: str

    @classmethod
    def of(cls, name: str, type: str, numbers: Array) -> CArray:
        if not len(numbers):  # C has no empty arrays
            numbers = np.zeros(1, numbers.dtype)
        return cls(name, type, len(numbers), numbers_text(numbers))

    @property
    def bytes(self) -> int:
        return self.length * BYTES[self.type]


def stored(layer: Layer, integers: IntegerLayer | None) -> dict[str, Array]:
    """Return the numbers of a layer by name, row by row, in float32 or as integers.

    A layer that has every weight has no gaps and counts.
    """
    numbers: dict[str, Array]
    if integers is None:
        values = layer.weight.astype(np.float32)
        numbers = {"bias": layer.bias.astype(np.float32)}
    else:
        values = integers.weight.astype(np.int8)
        numbers = {"bias": integers.bias.astype(np.int32)}
        numbers["multiplier"] = integers.rescale.multiplier
    if layer.is_dense:
        return numbers | {"weight": values.ravel()}
    rows = []
    for row, active in zip(values, layer.active, strict=True):
        gap = np.diff(layer.offsets[active], prepend=0)
        rows.append((row[active], gap) if integers is None else _bridged(row[active], gap))
    weight, gap = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return numbers | {"weight": weight, "gap": gap, "count": np.array([len(w) for w, _ in rows])}


def _bridged(weight: Array, gap: Array) -> tuple[Array, Array]:
    """Put weights of 0, which change no integer, where a gap does not fit a byte."""
    bridges = np.maximum(-(-gap // LONGEST_GAP) - 1, 0)
    ends = np.arange(len(gap)) + bridges.cumsum()
    gaps = np.full(len(gap) + bridges.sum(), LONGEST_GAP)
    weights = np.zeros(len(gaps), weight.dtype)
    gaps[ends], weights[ends] = gap - LONGEST_GAP * bridges, weight
    return weights, gaps


def narrowest(arrays: Iterable[Array]) -> str:
    """Return the smallest type that holds all of the numbers."""
    largest = max((int(array.max(initial=0)) for array in arrays), default=0)
    return "uint8_t" if largest < 2**8 else "uint16_t" if largest < 2**16 else "uint32_t"


def numbers_text(numbers: Array) -> str:
    """Write numbers as C text, wrapped; float32 with the digits that identify it."""
    flat = np.ravel(numbers)
    if flat.dtype == np.float32:
        words = [f"{x:.9g}" for x in flat]
        words = [f"{word}{'' if '.' in word or 'e' in word else '.0'}f" for word in words]
    else:
        words = [str(int(x)) for x in flat]
    lines = textwrap.wrap(", ".join(words), 96, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "    ")
