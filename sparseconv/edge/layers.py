"""What a network is for the generator of C: layers that are all the same kind of sum.

Samples lie time-major, ``x[t * C + c]``. The window of an output is then a piece of memory that
begins at ``position * step``, in which weight (c, k) of a convolution meets offset
``k * dilation * C + c``, however long the series is. A 1x1 convolution, a linear layer, averages
over time and a BatchNorm by itself are such sums too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
UNIT = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-149  # its smallest number
_PADS: dict[str, Any] = {"replicate": "edge", "reflect": "reflect", "circular": "wrap"}  # NumPy's


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """``y[position, row] = bias[row] + sum_j weight[row, j] * x[position * step + offsets[j]]``.

    Attributes:
        kind: what it is for a reader.
        weight: float64 ``(rows, columns)``; 0 where not active.
        active: bool, of the same shape: the weights that are stored.
        offsets: int64 ``(columns,)``, ascending: the samples of a window.
        bias: float64 ``(rows,)``.
        step: samples between the windows of successive positions.
        positions: outputs of each row.
        length, channels: of the input.
        padding, padding_mode: rows of channels put around the input before; as in ``nn.Conv1d``.
        zero: what padding with zeros holds.
        over_time: averages: the rows are times and the positions are channels.
        rows_whole: results of a row lie side by side; else those of a position.
        relu: negative outputs become 0.
    """

    kind: str
    weight: Array
    active: Array
    offsets: Array
    bias: Array
    step: int
    positions: int
    length: int
    channels: int
    padding: tuple[int, int] = (0, 0)
    padding_mode: str = "zeros"
    zero: int = 0
    over_time: bool = False
    rows_whole: bool = False
    relu: bool = False

    @property
    def rows(self) -> int:
        return len(self.bias)

    @property
    def padded(self) -> int:
        """Count the samples of the input with its padding."""
        return (self.length + sum(self.padding)) * self.channels

    @property
    def outputs(self) -> int:
        return self.rows * self.positions

    @property
    def is_dense(self) -> bool:
        """Tell whether each row has every weight of one stretch: no positions are stored then."""
        return bool(self.active.all() and (self.offsets == np.arange(len(self.offsets))).all())

    @property
    def is_pointwise(self) -> bool:
        """Tell whether it maps the channels of each time separately, without ReLU or padding."""
        return (
            not self.over_time and not self.relu and self.step == self.channels
            and self.positions == self.length and not any(self.padding)
            and int(self.offsets[-1]) < self.channels
        )  # fmt: skip

    def pad(self, x: Array) -> Array:
        """Put the padding around inputs ``(n_cases, length * channels)``."""
        shaped = x.reshape(len(x), self.length, self.channels)
        around = ((0, 0), self.padding, (0, 0))
        if self.padding_mode == "zeros":
            padded = np.pad(shaped, around, constant_values=self.zero)
        else:
            padded = np.pad(shaped, around, _PADS[self.padding_mode])
        return padded.reshape(len(x), -1)

    def sums(self, padded: Array, weight: Array) -> Array:
        """Compute the sums without bias in float64: ``(n_cases, positions, rows)``."""
        at = np.arange(self.positions)[:, None] * self.step + self.offsets
        return np.stack([case[at] @ weight.T for case in padded.astype(np.float64)])

    def finished(self, y: Array) -> Array:
        """Compute what is stored of sums with their bias."""
        return np.maximum(y, 0) if self.relu else y

    def arranged(self, y: Array) -> Array:
        """Arrange outputs ``(n_cases, positions, rows)`` as they lie in memory."""
        return (y.transpose(0, 2, 1) if self.rows_whole else y).reshape(len(y), -1)

    def __call__(self, x: Array) -> Array:
        """Compute outputs ``(n_cases, outputs)`` of inputs ``(n_cases, length * channels)``."""
        return self.arranged(self.finished(self.sums(self.pad(x), self.weight) + self.bias))


@dataclass(frozen=True, eq=False)
class Network:
    """Layers in a row.

    Attributes:
        input_shape: channels and length of a series.
        ending: ``""``, ``"softmax"`` or ``"log_softmax"``.
    """

    input_shape: tuple[int, int]
    layers: Sequence[Layer]
    ending: str

    @property
    def classes(self) -> int:
        return self.layers[-1].outputs

    def load(self, X: Array) -> Array:
        """Arrange series ``(n_cases, channels, length)`` as the first layer reads them."""
        return X.astype(np.float64).transpose(0, 2, 1).reshape(len(X), -1)

    def tensors(self, X: Array) -> list[Array]:
        """Compute the first layer's input and each layer's output, ``(n_cases, samples)``."""
        found = [self.load(X)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found


def scores_and_bound(network: Network, X: Array) -> tuple[Array, Array]:
    """Compute scores ``(n_cases, n_classes)`` in float64, and how far float32 may be from each.

    A sum of n products and a bias, in any order and with or without fused multiply-adds, is within
    ``(n + 2) * 2**-24`` of its magnitude (Higham 2002, section 3.1); one more for the rounding of
    its weights to float32. What the inputs are off passes through the weights' magnitudes.

    Args:
        X: series ``(n_cases, channels, length)``.

    Returns:
        Both, ``(n_cases, n_classes)``.
    """
    values = network.tensors(X)
    error = np.zeros_like(values[0])
    for layer, x in zip(network.layers, values, strict=False):
        size = np.abs(layer.weight)
        carried = layer.sums(layer.pad(error), size)
        magnitude = layer.sums(layer.pad(np.abs(x)), size) + carried + np.abs(layer.bias)
        terms = layer.active.sum(1) + 3
        error = layer.arranged(carried + terms * (UNIT * magnitude + TINY))
    return _ended(network.ending, values[-1], error)


def _ended(ending: str, x: Array, error: Array) -> tuple[Array, Array]:
    """Compute scores of the last layer's outputs.

    expf and logf may be off by two units in the last place. The difference to the maximum is
    rounded, then its exponential, the sum and the logarithm.
    """
    if not ending:
        return x, error
    behind = x - x.max(1, keepdims=True)  # 0 and below
    total = np.exp(behind).sum(1, keepdims=True)
    log = behind - np.log(total)
    moved = error + error.max(1, keepdims=True)
    deepest = -behind.min(1, keepdims=True)
    relative = UNIT * (deepest + x.shape[1] + 8)  # of the sum
    off = moved + relative + UNIT * (2 * np.abs(behind) + 6 * np.log(total) + 4 * np.abs(log))
    if ending == "log_softmax":
        return log, off
    likely = np.exp(log)
    return likely, np.minimum(likely * np.expm1(np.minimum(off + 8 * UNIT, 50)) + TINY, 1)
