"""Quantize layers: int8 weights and activations, int32 sums, and no floating point in between.

Weights are symmetric per output channel, and activations are affine per tensor, with the scales of
torch's observers. A fixed-point factor converts sums to the next tensor's scale. Every step is an
integer operation, so results are bit-identical on all processors.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, sections 2.2 to 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.ao.quantization.observer import HistogramObserver

from sparseconv.edge.layers import Array, Layer, Network, Pointwise

LIMIT = (1 << 30) - 1  # of the last layer's integers: int32 holds the difference of any two
BATCH = 16  # series
POINT = 16  # bits after the point of log-probabilities
INPUT_LIMIT = 1 << 24  # of the input as integers, before they become int8
SMALLEST = 1e-12  # of the scales of what observers see, which is near 1
LOG2_E, LN_2 = round(math.log2(math.e) * 2**24), round(math.log(2) * 2**24)
HALVES = [round(2 ** (31 - 2.0**-bit)) for bit in range(1, 17)]  # 2 to the minus 1/2, 1/4, ...


@dataclass(frozen=True, eq=False)
class Rescale:
    """``floor(value * multiplier / 2**shift + 1/2) + zero``, clamped to low and high."""

    multiplier: Array  # int64, one for each row
    shift: int
    zero: int
    low: int = -128
    high: int = 127

    def __call__(self, value: Array) -> Array:
        return self.shifted(value.astype(np.int64) * self.multiplier)

    def shifted(self, product: Array) -> Array:
        """Rescale values that have already been multiplied."""
        scaled: Array = (product + (1 << (self.shift - 1))) >> self.shift
        return np.clip(scaled + self.zero, self.low, self.high)

    @classmethod
    def by(cls, factor: Array, zero: int, low: int = -128, high: int = 127) -> Rescale:
        """Represent the factors as integers below 2**30 with a common shift."""
        shift = min(61, max(1, 30 - math.frexp(float(np.abs(factor).max()))[1]))
        multiplier = np.clip(np.rint(factor * 2.0**shift), -LIMIT, LIMIT)
        return cls(multiplier.astype(np.int64), shift, zero, low, high)


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerLayer(Layer):
    """A layer with int8 weights and an int32 bias, which includes the input's zero point.

    The sums are exact in float64.
    """

    rescale: Rescale

    def finished(self, y: Array) -> Array:
        """Rescale sums for the next tensor; the lower limit is the ReLU."""
        return self.rescale(y)


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerPointwise(Pointwise):
    """An int8 operation: a lookup table for one tensor, or a weighted sum or product of two."""

    zeros: list[int]
    rescale: Rescale
    table: Array

    def values(self, *inputs: Array) -> Array:
        if len(inputs) == 1:
            found: Array = self.table[self.by_time(inputs[0]).astype(int) + 128]
            return found
        a, b = (
            self.by_time(x).astype(np.int64) - z for x, z in zip(inputs, self.zeros, strict=True)
        )
        of_a, of_b = self.rescale.multiplier
        product = a * b * of_a if "*" in self.expression else a * of_a + b * of_b
        return self.rescale.shifted(product)


@dataclass(frozen=True, eq=False)
class IntegerNetwork(Network):
    """The computation of the int8 program.

    Attributes:
        exponent: a sample times ``2**exponent`` is truncated to an integer.
        first: rescales the truncated integer to int8.
        point: fractional bits of the last layer's integers.
    """

    exponent: int
    first: Rescale
    point: int

    def load(self, X: Array) -> Array:
        """Quantize series ``(n_cases, channels, length)``."""
        x = super().load(X.astype(np.float32)) * 2.0**self.exponent
        whole = np.nan_to_num(x, nan=0, posinf=np.inf, neginf=-np.inf)
        return self.first(np.clip(whole, -INPUT_LIMIT, INPUT_LIMIT))

    def run(self, X: Array) -> Array:
        """Compute the last layer's integers as the program does, int64 ``(n_cases, classes)``."""
        last = self.steps[-1].output
        parts = [self.tensors(X[at : at + BATCH])[last] for at in range(0, len(X), BATCH)]
        return np.concatenate(parts).astype(np.int64)

    def labels(self, scores: Array) -> Array:
        return super().labels(scores * 2.0**-self.point)

    def scores(self, X: Array) -> Array:
        """Compute the scores, float32 ``(n_cases, n_classes)``, exactly as the program does."""
        out = self.run(X)
        if not self.ending:
            return np.asarray(out.astype(np.float32) * np.float32(2.0**-self.point))
        behind = out.max(1, keepdims=True) - out
        powers = np.vectorize(power_of_e, otypes=[np.int64])(behind)
        total = powers.sum(1, keepdims=True)
        if self.ending == "softmax":
            return np.asarray(powers.astype(np.float32) / total.astype(np.float32))
        log = behind + np.vectorize(natural_log, otypes=[np.int64])(total)
        return np.asarray(-log.astype(np.float32) * np.float32(2.0**-POINT))


def power_of_e(behind: int) -> int:
    """Compute ``exp(-behind / 2**16) * 2**30`` as a product of roots of 1/2."""
    exponent = (int(behind) * LOG2_E) >> 24
    if exponent >> 16 > 30:
        return 0
    power = 1 << 30
    for bit, factor in enumerate(HALVES):
        if exponent & (1 << (15 - bit)):
            power = (power * factor) >> 31
    return power >> (exponent >> 16)


def natural_log(total: int) -> int:
    """Compute ``log(total / 2**30) * 2**16`` for a total of at least 2**30, by squaring."""
    total, log = int(total), 0
    while total >> 31:
        total, log = total >> 1, log + (1 << 16)
    for bit in range(1, 17):
        total = (total * total) >> 30
        if total >> 31:
            total, log = total >> 1, log + (1 << (16 - bit))
    return (log * LN_2) >> 24


def quantize(network: Network, calibration: Array) -> IntegerNetwork:
    """Choose the scales for series ``(n_cases, channels, length)``."""
    last = network.steps[-1]
    numbers = list(dict.fromkeys(n for step in network.steps for n in (*step.inputs, step.output)))
    numbers.remove(last.output)
    observers = {
        number: HistogramObserver(dtype=torch.qint8, qscheme=torch.per_tensor_affine,
                                  quant_min=-128, quant_max=127, eps=SMALLEST) for number in numbers
    }  # fmt: skip
    # Of the first batch: powers of two, so that dividing rounds nothing.
    units: dict[int, float] = {}
    largest = 0.0
    for start in range(0, len(calibration), BATCH):
        found = network.tensors(calibration[start : start + BATCH])
        units = units or {n: math.ldexp(1, math.frexp(np.abs(found[n]).max())[1]) for n in numbers}
        for number, observer in observers.items():
            observer(torch.from_numpy(found[number] / units[number]).float())
        largest = max(largest, float(np.abs(found[last.output]).max()))
    chosen = {number: observer.calculate_qparams() for number, observer in observers.items()}
    sizes = {number: float(step) * units[number] for number, (step, _) in chosen.items()}
    zeros = {number: int(zero) for number, (_, zero) in chosen.items()}
    exponent = 23 - math.frexp(sizes[0] * 256)[1]
    first = Rescale.by(np.array([2.0**-exponent / sizes[0]]), zeros[0])
    # The last layer's scale is a power of two, with room for four times the largest output.
    point = POINT if network.ending else min(40, 28 - math.frexp(largest or 1.0)[1])
    sizes[last.output], zeros[last.output] = 2.0**-point, 0
    steps = []
    for step in network.steps:
        limits = (-LIMIT, LIMIT) if step is last else (-128, 127)
        known = [[held[n] for n in (*step.inputs, step.output)] for held in (sizes, zeros)]
        make: Any = _integers if isinstance(step, Layer) else _integer_samples
        steps.append(make(step, *known, *limits))
    return IntegerNetwork(
        network.input_shape, steps, network.shapes, network.ending, network.threshold, exponent,
        first, point,
    )  # fmt: skip


def _integer_samples(
    step: Pointwise, sizes: Sequence[float], zeros: Sequence[int], low: int, high: int
) -> IntegerPointwise:
    """Quantize a pointwise step whose inputs and outputs are ``(integer - zero) * size``."""
    low = max(low, zeros[-1]) if step.relu else low
    x = (np.arange(-128.0, 128) - zeros[0]) * sizes[0]
    table = np.zeros(0)
    factors = np.array([sizes[0], sizes[-2]])
    if len(step.inputs) == 1:
        table = np.clip(np.rint(step.function(x) / sizes[-1]) + zeros[-1], low, high)
    elif "*" in step.expression:
        factors[:] = factors.prod()
    elif "-" in step.expression:
        factors[1] *= -1
    rescale = Rescale.by(factors / sizes[-1], zeros[-1], low, high)
    return IntegerPointwise(
        **vars(step),
        zeros=list(zeros[:-1]),
        rescale=rescale,
        table=table.astype(np.int8),
    )


def _integers(
    layer: Layer, sizes: Sequence[float], zeros: Sequence[int], low: int, high: int
) -> IntegerLayer:
    """Quantize a layer; see ``_integer_samples``."""
    # As torch's PerChannelMinMaxObserver does, in float32; a row without weights has any scale.
    largest = np.abs(layer.weight).max(1, initial=0).astype(np.float32)
    steps = np.where(largest > 0, largest / np.float32(127), np.float32(SMALLEST)).astype(float)
    # A bias far above its weights makes them coarser, so that it stays an integer below 2**28.
    steps = np.maximum(steps, np.abs(layer.bias) / (sizes[0] * 2.0**28))
    steps = np.ones(layer.rows) if layer.largest else steps
    weight = np.clip(np.rint(layer.weight / steps[:, None]), -127, 127)
    read = 1 if layer.largest else weight.sum(1)
    bias = np.rint(layer.bias / (sizes[0] * steps)) - zeros[0] * read
    if (np.abs(bias) + 128 * np.abs(weight).sum(1)).max() >= 2**31:
        raise ValueError(
            f"{layer.kind}: sums of {int(layer.active.sum(1).max())} products are too large for "
            "int32; export float32"
        )
    low = max(low, zeros[1]) if layer.relu else low
    rescale = Rescale.by(sizes[0] * steps / sizes[1], zeros[1], low, high)
    values = vars(layer) | {"weight": weight, "bias": bias, "zero": zeros[0]}
    return IntegerLayer(**values, rescale=rescale)
