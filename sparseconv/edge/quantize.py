"""Integers for the layers: int8 weights and activations, int32 sums, no floating point between.

Weights are symmetric for each output channel, activations affine for each tensor; scales are those
of torch's observers. Sums are brought to the next tensor's scale by a fixed-point factor. Whatever
computes this has the same bits: every step is an integer operation with one result.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, sections 2.2 to 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.ao.quantization.observer import HistogramObserver

from sparseconv.edge.layers import Array, Layer, Network

LIMIT = (1 << 30) - 1  # of the last layer's integers: int32 holds the difference of any two
BATCH = 16  # series
POINT = 16  # bits after the point of log-probabilities
INPUT_LIMIT = 1 << 24  # of the input as integers, before they become int8
SMALLEST = 1e-12  # of the scales of what observers see, which is near 1
LOG2_E, LN_2 = round(math.log2(math.e) * 2**24), round(math.log(2) * 2**24)
HALVES = [round(2 ** (31 - 2.0**-bit)) for bit in range(1, 17)]  # 2 to the minus 1/2, 1/4, ...


@dataclass(frozen=True, eq=False)
class Rescale:
    """``floor(value * multiplier / 2**shift + 1/2) + zero``, kept between low and high."""

    multiplier: Array  # int64, one for each row
    shift: int
    zero: int
    low: int = -128
    high: int = 127

    def __call__(self, value: Array) -> Array:
        half = 1 << (self.shift - 1)
        scaled: Array = (value.astype(np.int64) * self.multiplier + half) >> self.shift
        return np.clip(scaled + self.zero, self.low, self.high)

    @classmethod
    def by(cls, factor: Array, zero: int, low: int = -128, high: int = 127) -> Rescale:
        """Write the factors as integers below 2**30 with a common shift."""
        shift = min(61, 30 - math.frexp(float(factor.max()))[1])
        multiplier = np.minimum(np.rint(factor * 2.0**shift), LIMIT)
        return cls(multiplier.astype(np.int64), shift, zero, low, high)


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerLayer(Layer):
    """A layer with weights as int8 and a bias as int32 (the input's zero is in it).

    float64 holds all its sums, so they are exact.
    """

    rescale: Rescale

    def finished(self, y: Array) -> Array:
        """Bring sums to the scale of the next tensor; its ReLU is a limit of that."""
        return self.rescale(y)


@dataclass(frozen=True, eq=False)
class IntegerNetwork(Network):
    """What the int8 program computes.

    Attributes:
        exponent: a sample times ``2**exponent`` is cut to an integer.
        first: makes int8 of it.
        point: bits after the point of the last layer's integers.
    """

    layers: Sequence[IntegerLayer]
    exponent: int
    first: Rescale
    point: int

    def load(self, X: Array) -> Array:
        """Make the first layer's integers of series ``(n_cases, channels, length)``."""
        x = super().load(X.astype(np.float32)) * 2.0**self.exponent
        whole = np.nan_to_num(x, nan=0, posinf=np.inf, neginf=-np.inf)
        return self.first(np.clip(whole, -INPUT_LIMIT, INPUT_LIMIT))

    def run(self, X: Array) -> Array:
        """Compute the last layer's integers as the program does: int64 ``(n_cases, n_classes)``."""
        parts = [self.tensors(X[at : at + BATCH])[-1] for at in range(0, len(X), BATCH)]
        return np.concatenate(parts)

    def scores(self, X: Array) -> Array:
        """Compute the scores, float32 ``(n_cases, n_classes)``, bit by bit as the program does."""
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
    """Compute ``log(total / 2**30) * 2**16`` for a total of 2**30 and above, by squaring."""
    total, log = int(total), 0
    while total >> 31:
        total, log = total >> 1, log + (1 << 16)
    for bit in range(1, 17):
        total = (total * total) >> 30
        if total >> 31:
            total, log = total >> 1, log + (1 << (16 - bit))
    return (log * LN_2) >> 24


def quantize(network: Network, calibration: Array) -> IntegerNetwork:
    """Choose the scales for series ``(n_cases, channels, length)``.

    Raises:
        ValueError: sums that int32 could not hold.
    """
    observers = [
        HistogramObserver(dtype=torch.qint8, qscheme=torch.per_tensor_affine,
                          quant_min=-128, quant_max=127, eps=SMALLEST) for _ in network.layers
    ]  # fmt: skip
    units: list[float] = []  # of the first batch: powers of two, so that dividing rounds nothing
    largest = 0.0
    for start in range(0, len(calibration), BATCH):
        *inputs, outputs = network.tensors(calibration[start : start + BATCH])
        units = units or [math.ldexp(1, math.frexp(np.abs(x).max())[1]) for x in inputs]
        for observer, x, unit in zip(observers, inputs, units, strict=True):
            observer(torch.from_numpy(x / unit).float())
        largest = max(largest, float(np.abs(outputs).max()))
    found = [observer.calculate_qparams() for observer in observers]
    sizes = [float(step) * unit for (step, _), unit in zip(found, units, strict=True)]
    zeros = [int(zero) for _, zero in found]
    exponent = 23 - math.frexp(sizes[0] * 256)[1]
    first = Rescale.by(np.array([2.0**-exponent / sizes[0]]), zeros[0])
    # The last layer's scale is a power of two, with room for four times the largest output.
    point = POINT if network.ending else min(40, 28 - math.frexp(largest or 1.0)[1])
    sizes, zeros = [*sizes, 2.0**-point], [*zeros, 0]
    layers = []
    for at, layer in enumerate(network.layers):
        limits = (-LIMIT, LIMIT) if layer is network.layers[-1] else (-128, 127)
        layers.append(_integers(layer, sizes[at : at + 2], zeros[at : at + 2], *limits))
    return IntegerNetwork(network.input_shape, layers, network.ending, exponent, first, point)


def _integers(
    layer: Layer, sizes: Sequence[float], zeros: Sequence[int], low: int, high: int
) -> IntegerLayer:
    """Make integers of a layer; ``(integer - zero) * size`` is a number before, and after it."""
    # As torch's PerChannelMinMaxObserver does, in float32; a row without weights has any scale.
    largest = np.abs(layer.weight).max(1, initial=0).astype(np.float32)
    steps = np.where(largest > 0, largest / np.float32(127), np.float32(SMALLEST)).astype(float)
    # A bias far above its weights makes them coarser, so that it stays an integer below 2**28.
    steps = np.maximum(steps, np.abs(layer.bias) / (sizes[0] * 2.0**28))
    weight = np.clip(np.rint(layer.weight / steps[:, None]), -127, 127)
    bias = np.rint(layer.bias / (sizes[0] * steps)) - zeros[0] * weight.sum(1)
    if (np.abs(bias) + 128 * np.abs(weight).sum(1)).max() >= 2**31:
        raise ValueError(
            f"{layer.kind}: sums of {int(layer.active.sum(1).max())} products are too large for "
            "int32; export float32"
        )
    low = max(low, zeros[1]) if layer.relu else low
    rescale = Rescale.by(sizes[0] * steps / sizes[1], zeros[1], low, high)
    values = vars(layer) | {"weight": weight, "bias": bias, "zero": zeros[0]}
    return IntegerLayer(**values, rescale=rescale)
